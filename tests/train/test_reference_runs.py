"""The reference cache under whole runs: what is computed once is not computed again, and comes out to the last bit."""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import OPTIONS, Killed, StopAt
from typer.testing import CliRunner

from prlhf.dataset import read_prepared
from prlhf.model.checkpoint import read_about
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.rewards import load_rewards, score
from prlhf.progress import Silent
from prlhf.train import metrics
from prlhf.train.run import train
from prlhf_cli.main import app

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run that was never stopped, on values of its own: those of the batches in their order."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(folder, reference_cache=False, **OPTIONS))
    return folder


def heard(config: Any, resume: bool = False) -> Heard:
    progress = Heard()
    train(config, resume, progress)
    return progress


def pairs_of(folder: Path) -> int:
    """Distinct (prompt, response) of a data set."""
    data = read_prepared(folder)
    return len({(row.prompt, text) for row in [*data.train, *data.eval] for text in (row.chosen, row.rejected)})


def rewards_of(run: Path, prepared: Path) -> None:
    trained, rewards = load_rewards(run, "cpu")
    data = [trained.encoder().comparison(row) for row in read_prepared(prepared).eval]
    assert len(score(rewards, data, [0] * len(data), 4)) == len(data)


def same_files(a: Path, b: Path) -> bool:
    names = ("metrics.jsonl", "model/adapter_model.safetensors", "model/user_model.safetensors")
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_other_users_seeds_and_losses_compute_nothing(tmp_path: Path, prepared: Path, make_config: MakeConfig) -> None:
    every = pairs_of(prepared)
    assert heard(make_config(tmp_path / "first")).counts == (0, every)
    for name, changes in {
        "seed": {"seed": 4, "lora_r": 4, "batch_size": 3},
        "cluster": {"user_model": "cluster", "user_tokens": 5, "user_text": False},
        "full": {"user_model": "uniform", "user_tokens": 0, "loss": "ipo", "full_finetune": True, "lr": 1e-3},
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


def test_with_and_without_are_the_same_run(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, whole: Path, cache: Path
) -> None:
    """The first run on a base computes in the same batches with the cache as without."""
    train(make_config(tmp_path / "with", **OPTIONS))
    assert cache.is_dir()
    assert same_files(tmp_path / "with", whole)


def test_without_the_cache_no_disk_is_touched(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, cache: Path
) -> None:
    """Neither in training nor when the run's rewards are used."""
    assert heard(make_config(tmp_path / "run", reference_cache=False, full_finetune=True, max_steps=1)).lines == []
    rewards_of(tmp_path / "run", prepared)
    gc.collect()
    assert not cache.parent.exists()


@pytest.mark.parametrize(("how", "at"), [("error", 2), ("error", 5), ("power", 2), ("power", 5)])
def test_resumed_to_the_last_bit(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, whole: Path, how: str, at: int
) -> None:
    """Killed before the first checkpoint, and after it: by an error, and by what leaves no time to save."""

    def die() -> None:
        (tmp_path / "cache").mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "cache", tmp_path / "as it was")
        raise Killed

    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(Killed):
        train(config, progress=StopAt(at, die))
    if how == "power":
        monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "as it was"))
    cached, _ = heard(config, resume=True).counts
    assert (cached > 0) == (how == "error" or at > OPTIONS["save_every"])
    assert same_files(tmp_path / "run", whole)


def test_full_finetuning_resumes_to_the_last_bit(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"full_finetune": True, "lr": 1e-3, "lora_dropout": 0.0}
    with pytest.raises(Killed):
        train(make_config(tmp_path / "run", **options), progress=StopAt(5))
    assert heard(make_config(tmp_path / "run", **options), resume=True).counts == (pairs_of(prepared), 0)
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "elsewhere"))
    train(make_config(tmp_path / "whole", **options))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_all_at_first(tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass with its own bar, after which nothing is computed; the same values up to rounding."""
    every = pairs_of(prepared)
    calls, original = [], PersonalizedLM.reference

    def counted(self: PersonalizedLM, rows: Any) -> torch.Tensor:
        calls.append(rows.readings)
        return original(self, rows)

    monkeypatch.setattr(PersonalizedLM, "reference", counted)
    progress = heard(make_config(tmp_path / "first", reference_first=True, batch_size=3))
    assert progress.bars[1] == ("reference", every)  # the first is the base
    assert progress.counts == (0, every)
    assert sum(calls) == every
    assert calls[:-1] == [6] * (len(calls) - 1)
    again = heard(make_config(tmp_path / "again", reference_first=True, seed=5))
    assert [label for label, _ in again.bars][1:] == ["training", "evaluating"]
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "elsewhere"))
    train(make_config(tmp_path / "lazily", batch_size=3))
    here, there = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("first", "lazily"))
    assert [row["loss"] for row in here if "loss" in row] == pytest.approx(
        [row["loss"] for row in there if "loss" in row], rel=1e-5
    )


def test_full_finetuning_computes_all_at_first(tmp_path: Path, prepared: Path, make_config: MakeConfig) -> None:
    """Later the base is gone: its weights are those that are trained."""
    progress = heard(make_config(tmp_path / "run", full_finetune=True, max_steps=1))
    assert progress.bars[1] == ("reference", pairs_of(prepared))  # the first is the base


def test_it_may_change_on_resume(tmp_path: Path, make_config: MakeConfig) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(make_config(out, **OPTIONS), progress=StopAt(4))
    flags = ["--no-reference-cache", "--set", "reference_first=true"]
    done = CliRunner().invoke(app, ["train", "--resume", "--out", str(out), *flags])
    assert done.exit_code == 0, done.stderr
    settings = read_about(out / "model")["train"]
    assert (settings["reference_cache"], settings["reference_first"]) == (False, True)


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_line(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "cache").write_text("in the way")
    progress = heard(make_config(tmp_path / "run", **OPTIONS))
    said = [line for line in progress.lines if line.startswith("note: ")]
    assert len(said) == 1
    assert "nothing more is written to the reference cache" in said[0]
    assert (tmp_path / "run/model").is_dir()


def test_rewards_read_what_training_computed(
    tmp_path: Path, prepared: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config(tmp_path / "run"))

    def refuse(self: PersonalizedLM, rows: Any) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(PersonalizedLM, "reference", refuse)
    rewards_of(tmp_path / "run", prepared)
