"""Sweeps on Ray, with real trials; one start of Ray for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prlhf.cluster import connected
from prlhf.config import ClusterConfig, SweepConfig, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import load_recipe, resolve
from prlhf.sweep.run import sweep


@pytest.fixture(scope="module", autouse=True)
def ray_started() -> Iterator[None]:
    with connected(ClusterConfig()):
        yield


@pytest.fixture
def sections(make_config: Any) -> dict[str, Any]:
    """The recipe of a tiny run of 4 steps."""
    train = make_config(Path("none"), max_steps=4, beta=0.1).model_dump(mode="json", exclude={"out"})
    return {"train": train, "generate": {"max_new_tokens": 4, "max_prompts": 2, "users": "ann,generic"}}


def entries(folder: Path) -> int:
    """The number of log-probs in the reference caches of all bases."""
    return sum(np.load(path).shape[1] for path in folder.glob("reference/*/*.npy"))


def another_base(tiny_base: Path, out: Path) -> Path:
    """The tiny base with one changed weight, so that the cache does not have its log-probs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(tiny_base)
    lm.model.norm.weight.data += 0.01
    lm.save_pretrained(out)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(out)
    return out


def test_trials_run_side_by_side_and_share_the_reference(
    sections: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    from prlhf.files import cache_folder

    sections["train"] |= {"model": str(another_base(tiny_base, tmp_path / "base")), "max_steps": 3}
    before = entries(cache_folder())
    space = {"alpha": "0.1:0.9", "user_tokens": "1,3", "lora_targets": '"q_proj,v_proj",nothing'}
    config = SweepConfig(space=space, out=tmp_path / "sweep", trials=4, seed=1, concurrent=2)
    report = sweep(config, sections)
    points = [trial["point"] for trial in report["trials"]]
    assert {p["lora_targets"] for p in points} == {"q_proj,v_proj", "nothing"}  # whatever the seed draws first
    for trial in report["trials"]:
        assert trial["status"] == ("failed" if trial["point"]["lora_targets"] == "nothing" else "done")
        assert ("nothing" in (trial["error"] or "")) == (trial["status"] == "failed")
        assert trial["value"] is None or 0 <= trial["value"] <= 1

    counts = report["shared"]["before_trials"]
    assert counts["cached"] == 0
    assert 0 < counts["computed"] < 2 * (12 + 8)  # 3 steps of 2 comparisons see 6 of 12
    assert entries(cache_folder()) - before == counts["computed"]  # no trial had to compute any

    table = pq.read_table(tmp_path / "sweep/results.parquet").to_pydict()
    done = [row == "done" for row in table["status"]]
    assert table["reference_computed"] == [0 if row else None for row in done]
    assert table["reference_cached"] == [counts["computed"] if row else None for row in done]
    assert table["config/alpha"] == [p["alpha"] for p in points]
    assert len(set(table["config/alpha"])) == 4
    best = resolve(TrainConfig, load_recipe(tmp_path / "sweep/best.yaml")["train"])
    expected = resolve(TrainConfig, sections["train"], report["best"]["point"])
    assert best == expected.model_copy(update={"dataset": best.dataset})
    assert not (tmp_path / "sweep/.tune").exists()

    models = sorted((tmp_path / "sweep").glob("trial-*/model"))
    written = [path.stat().st_mtime_ns for path in models]
    again = sweep(config, sections, resume=True)
    assert again["trials"] == report["trials"]  # what failed fails again; what is done stays
    assert again["skipped"] == report["done"]
    assert again["shared"]["before_trials"]["computed"] == counts["computed"]
    assert [path.stat().st_mtime_ns for path in models] == written


def test_asha_stops_what_is_behind(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["train"] |= {"eval_every": 1, "user_lr": 1e-9}
    given = {"asha": True, "grace": 2, "reduction": 2, "metric": "eval/margin_mean", "concurrent": 1}
    config = SweepConfig(space={"lr": "1e-2,1e-9"}, out=tmp_path / "sweep", **given)
    report = sweep(config, sections)
    assert [trial["status"] for trial in report["trials"]] == ["done", "stopped"]
    rows = pq.read_table(tmp_path / "sweep/results.parquet").to_pylist()
    assert rows[1]["result/step"] == 2
    assert report["trials"][1]["value"] == pytest.approx(rows[1]["result/eval/margin_mean"])
    wider = config.model_copy(update={"space": {"lr": "1e-2,1e-9,2e-9"}})
    more = sweep(wider, sections, resume=True)  # what the first run reported still counts
    assert [trial["status"] for trial in more["trials"]] == ["done", "stopped", "stopped"]
    assert more["skipped"] == 2


def test_the_metric_can_come_from_judging_what_trials_write(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["judge"] = {"judge": "rule:shorter", "bootstrap": 10}
    space = {"generate.temperature": "0.5:1", "alpha": "0.1,0.9"}
    given = {"metric": "judge/winrate", "search": "optuna", "trials": 2, "concurrent": 2}
    report = sweep(SweepConfig(space=space, out=tmp_path / "sweep", **given), sections)
    assert report["done"] == 2
    assert report["shared"]["base_responses"] == 2
    assert all(0 <= trial["value"] <= 1 for trial in report["trials"])
    assert (tmp_path / "sweep/trial-001/judged/results.json").is_file()
    best = load_recipe(tmp_path / "sweep/best.yaml")
    assert best["generate"]["temperature"] == report["best"]["point"]["generate.temperature"]
    assert best["judge"] == sections["judge"]


def test_more_than_the_cluster_has_is_refused(sections: dict[str, Any], tmp_path: Path) -> None:
    config = SweepConfig(space={"alpha": "0.1,0.9"}, out=tmp_path / "sweep", concurrent=999)
    with pytest.raises(PrlhfError, match="concurrent trials = 999 of 1 CPU each do not fit: the cluster has"):
        sweep(config, sections)
    with pytest.raises(PrlhfError, match=r"concurrent trials x 500 workers = 500 of 1 CPU each do not fit"):
        sweep(
            config.model_copy(update={"concurrent": None, "out": tmp_path / "other"}),
            sections,
            ClusterConfig(workers=500),
        )


@pytest.mark.slow
def test_a_trial_can_have_workers_of_its_own(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["train"] |= {"eval_every": 2}
    config = SweepConfig(space={"alpha": "0.3"}, out=tmp_path / "sweep")
    report = sweep(config, sections, ClusterConfig(workers=2))
    assert [(trial["status"], trial["error"]) for trial in report["trials"]] == [("done", None)]
    row = (tmp_path / "sweep/results.jsonl").read_text()
    assert '"history":[[2,' in row
    assert report["shared"]["in_trials"]["computed"] == 0
    assert report["shared"]["in_trials"]["cached"] > 0
