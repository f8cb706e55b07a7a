import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.sweep.settings import Settings, identity
from prlhf.sweep.trials import Trial, best_trial, metrics_of, planned_trials, read_trials, write_table, write_trials


def test_numbers_are_what_can_be_compared() -> None:
    result = {"accuracy": 0.5, "steps": 3, "nan": math.nan, "inf": math.inf, "text": "0.5", "whole": True, "none": None}
    assert metrics_of(result) == {"accuracy": 0.5, "steps": 3.0}


@pytest.mark.parametrize("status", ["planned", "running", "done", "stopped", "failed", "interrupted"])
def test_trials_are_read_back_as_written(status: str, tmp_path: Path) -> None:
    config = identity(Settings(train=TrainConfig(alpha=0.1 + 0.2, out=Path("here"))))
    trials = [
        Trial("trial-000", {"alpha": 0.1 + 0.2}, config, status, {"run\u2028": [1, None]}, "é", "a\nb", 0.1, [(3, 0.1)])
    ]  # type: ignore[arg-type]
    write_trials(tmp_path, trials)
    assert read_trials(tmp_path) == trials


def test_a_trial_is_known_by_its_settings_wherever_it_was_written() -> None:
    configs = [Settings(train=TrainConfig(alpha=0.2, out=Path("elsewhere"))), Settings(train=TrainConfig(alpha=0.5))]
    known = [Trial("trial-004", {"alpha": 0.2}, identity(Settings(train=TrainConfig(alpha=0.2))), "done")]
    trials = planned_trials(configs, [{"alpha": 0.2}, {"alpha": 0.5}], known)
    assert trials[0] is known[0]
    assert (trials[1].name, trials[1].status) == ("trial-005", "planned")


def test_a_point_is_recorded_as_validated() -> None:
    assert planned_trials([Settings(train=TrainConfig(lr=1e-5))], [{"lr": "1e-5"}], [])[0].point == {"lr": 1e-5}


def test_stopped_trials_do_not_win() -> None:
    stopped = Trial("trial-000", {}, {}, "stopped", {"score": 2.0})
    done = Trial("trial-001", {}, {}, "done", {"score": 1.0})
    assert best_trial([stopped, done], "score", "max") is done
    assert best_trial([stopped], "score", "max") is None


@pytest.mark.parametrize("point", [{"alpha": [0.2]}, {"alphas": 0.2}, {"alpha": "\u0000"}, {"alpha": None}])
def test_a_point_that_its_config_does_not_have_is_one_line(point: dict[str, object], tmp_path: Path) -> None:
    write_trials(tmp_path, [Trial("trial-000", point, identity(Settings(train=TrainConfig(alpha=0.2))))])
    with pytest.raises(PrlhfError, match=r"results.jsonl:1 is not a trial: its point has alphas? = "):
        read_trials(tmp_path)


def test_a_trial_of_another_space_stands_in_the_table(tmp_path: Path) -> None:
    """A first sweep varied alpha, a second one alpha and beta; 0.1 is the default of beta."""
    settings = [Settings(train=TrainConfig(alpha=0.2, beta=beta)) for beta in (0.1, 0.3)]
    known = planned_trials(settings[:1], [{"alpha": 0.2}], [])
    trials = planned_trials(settings, [{"alpha": 0.2, "beta": 0.1}, {"alpha": 0.2, "beta": 0.3}], known)
    assert trials[0] is known[0]
    write_table(tmp_path / "table.parquet", trials)
    assert pq.read_table(tmp_path / "table.parquet")["config/beta"].to_pylist() == [0.1, 0.3]
