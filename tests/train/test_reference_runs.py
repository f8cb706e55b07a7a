"""The reference cache under whole runs: what is computed once is not computed again, and comes out to the last bit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import numbers
from test_resume import OPTIONS, Killed, StopAt

from prlhf.errors import PrlhfError
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.scoring import load_rewards, score
from prlhf.progress import Silent
from prlhf.records import read_prepared
from prlhf.train import metrics
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


class Heard(Silent):
    """What was noted, and the bars that were opened."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int]] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def start(self, label: str, total: int) -> None:
        self.bars.append((label, total))

    @property
    def counts(self) -> tuple[int, int]:
        """(from the cache, computed), as the run said."""
        (line,) = (line for line in self.lines if line.startswith("reference: "))
        cached, computed = map(int, re.findall(r"\d+", line))
        return cached, computed


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one for each test."""
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/reference"


def heard(config: Any, resume: bool = False) -> Heard:
    progress = Heard()
    train(config, resume, progress)
    return progress


def pairs_of(folder: Path) -> int:
    """Distinct (prompt, response) of a data set."""
    data = read_prepared(folder)
    return len({(row.prompt, text) for row in [*data.train, *data.eval] for text in (row.chosen, row.rejected)})


def same_files(a: Path, b: Path) -> bool:
    def drop(rows: list[dict[str, Any]]) -> list[Any]:
        return [numbers(row) for row in rows]

    names = ("adapter_model.safetensors", "user_model.safetensors")
    weights = all((a / "model" / name).read_bytes() == (b / "model" / name).read_bytes() for name in names)
    return weights and drop(metrics.read(a / "metrics.jsonl")) == drop(metrics.read(b / "metrics.jsonl"))


def test_other_users_seeds_and_losses_compute_nothing(tmp_path: Path, prepared: Path, make_config: MakeConfig) -> None:
    every = pairs_of(prepared)
    assert heard(make_config(tmp_path / "first")).counts == (0, every)
    for name, changes in {
        "seed": {"seed": 4, "lora_r": 4, "batch_size": 3},
        "cluster": {"user_model": "cluster", "user_tokens": 5, "user_text": False},
        "uniform": {"user_model": "uniform", "user_tokens": 0, "loss": "ipo", "beta": 0.3},
        "full": {"full_finetune": True, "lr": 1e-3},
    }.items():
        assert heard(make_config(tmp_path / name, **changes)).counts == (every, 0), name


def test_another_base_or_precision_computes_all(
    tmp_path: Path, prepared: Path, tiny_base: Path, make_config: MakeConfig, cache: Path
) -> None:
    from safetensors.torch import load_file, save_file

    every = pairs_of(prepared)
    assert heard(make_config(tmp_path / "first")).counts == (0, every)
    assert heard(make_config(tmp_path / "low", precision="bf16")).counts == (0, every)
    other = tmp_path / "base"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][-1] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert heard(make_config(tmp_path / "other", model=str(other))).counts == (0, every)
    assert len(list(cache.iterdir())) == 3


def test_with_and_without_are_the_same_run(tmp_path: Path, make_config: MakeConfig, cache: Path) -> None:
    """The first run on a base computes in the same batches with the cache as without, which touches no disk."""
    without = heard(make_config(tmp_path / "without", reference_cache=False, **OPTIONS))
    assert without.lines == []
    assert not cache.parent.exists()
    train(make_config(tmp_path / "with", **OPTIONS))
    assert cache.is_dir()
    assert same_files(tmp_path / "with", tmp_path / "without")
    _, rewards = load_rewards(tmp_path / "without", "cpu")
    assert rewards._reference._cache is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [1, 4, 7])
@pytest.mark.parametrize("how", ["error", "power"])
@pytest.mark.parametrize("full", [False, True])
def test_resumed_to_the_last_bit(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, at: int, how: str, full: bool
) -> None:
    """Killed before the first checkpoint; after one; and later: by an error, and by what leaves no time to save."""
    options = OPTIONS | ({"full_finetune": True, "lr": 1e-3, "lora_dropout": 0.0} if full else {})
    if full and how == "power":
        pytest.skip("all is saved before the first step")
    train(make_config(tmp_path / "whole", **options))
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache2"))

    def die() -> None:
        if (tmp_path / "cache2").exists():
            shutil.copytree(tmp_path / "cache2", tmp_path / "cache3")
        raise Killed

    config = make_config(tmp_path / "run", **options)
    with pytest.raises(Killed):
        train(config, progress=StopAt(at, die))
    if how == "power":
        monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache3"))
    progress = heard(config, resume=True)
    assert (progress.counts[0] > 0) == (how == "error" or at > 3)
    if full:
        assert metrics.read(tmp_path / "run/metrics.jsonl") == metrics.read(tmp_path / "whole/metrics.jsonl")
    else:
        assert same_files(tmp_path / "run", tmp_path / "whole")


def test_all_at_first(tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass with a bar of its own, after which nothing is computed; the same values but for rounding."""
    every = pairs_of(prepared)
    calls, original = [], PersonalizedLM.reference

    def counted(self: PersonalizedLM, rows: Any) -> torch.Tensor:
        calls.append(len(rows.ids))
        return original(self, rows)

    monkeypatch.setattr(PersonalizedLM, "reference", counted)
    progress = heard(make_config(tmp_path / "first", reference_first=True, batch_size=3))
    assert progress.bars[0] == ("reference", every)
    assert progress.counts == (0, every)
    assert sum(calls) == every
    assert calls[:-1] == [6] * (len(calls) - 1)
    again = heard(make_config(tmp_path / "again", reference_first=True, seed=5))
    assert [label for label, _ in again.bars] == ["training", "evaluating"]
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "elsewhere"))
    train(make_config(tmp_path / "lazily", batch_size=3))
    here, there = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("first", "lazily"))
    assert [row["loss"] for row in here if "loss" in row] == pytest.approx(
        [row["loss"] for row in there if "loss" in row], rel=1e-5
    )


def test_it_may_change_on_resume(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(Killed):
        train(config, progress=StopAt(4))
    train(config.model_copy(update={"reference_cache": False, "reference_first": True}), resume=True)
    assert (tmp_path / "run/model").is_dir()


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_line(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "cache").write_text("in the way")
    progress = heard(make_config(tmp_path / "run", **OPTIONS))
    said = [line for line in progress.lines if line.startswith("note: ")]
    assert len(said) == 1
    assert "nothing more goes into the reference cache" in said[0]
    assert (tmp_path / "run/model").is_dir()


def test_judging_reads_what_training_computed(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config(tmp_path / "run"))

    def refuse(self: PersonalizedLM, rows: Any) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(PersonalizedLM, "reference", refuse)
    trained, rewards = load_rewards(tmp_path / "run", "cpu")
    data = [trained.encoder().comparison(row) for row in read_prepared(prepared).eval]
    assert len(score(rewards, data, [0] * len(data), 4)) == len(data)


@pytest.mark.parametrize("broken", ["yes please", 3])
def test_what_is_no_switch_is_refused(tmp_path: Path, broken: Any) -> None:
    from prlhf.config import TrainConfig, resolve

    with pytest.raises(PrlhfError, match="set reference_cache to true or false"):
        resolve(TrainConfig, {"reference_cache": broken})
