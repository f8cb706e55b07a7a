"""Every command once from end to end, on a tiny random base: what it prints, and that a rerun repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., Any]


def last_line(result: Any) -> Any:
    """The JSON that --json puts alone on standard output."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stdout.count("\n") == 1, "progress belongs on standard error"
    return json.loads(result.stdout)


@pytest.fixture
def small(prepared: Path, tiny_base: Path) -> list[str]:
    """--set for a run of a second."""
    values = {"dataset": prepared, "model": tiny_base, "user_tokens": 2, "lora_r": 2, "max_steps": 1, "eval_limit": 4}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_prep(here: Path, prlhf: Run) -> None:
    result = prlhf("prep", "demo", "--comparisons", "2", "--out", "d", "--json")
    said = last_line(result)
    assert said["out"] == "d"
    assert said["content_hash"] == json.loads((here / "d/manifest.json").read_text())["content_hash"]
    assert prlhf("prep", "demo", "--comparisons", "2", "--out", "d").stdout.startswith("d ")


def test_train_generate_judge(here: Path, prlhf: Run, small: list[str], prepared: Path) -> None:
    trained = prlhf("train", *small, "--user-model", "cluster", "--k", "2", "--out", "r", "--json")
    said = last_line(trained)
    assert (said["run"], said["steps"]) == ("r", 1)
    assert said["eval"]["accuracy_by_user"].keys() == {"ann", "bob", "cat", "zoe"}
    assert "evaluating" in trained.stderr
    assert last_line(prlhf("train", "--resume", "--out", "r", "--json")) == said

    short = ["--max-new-tokens", "4", "--max-prompts", "2"]
    written = prlhf("generate", "r", *short, "--users", "ann,generic", "--out", "a.jsonl", "--json")
    assert last_line(written)["responses"] == 4
    assert "generating" in written.stderr
    again = prlhf("generate", "r", *short, "--users", "ann,generic", "--out", "a.jsonl", "--json")
    assert last_line(again)["new"] == 0
    assert (
        last_line(prlhf("generate", "r", *short, "--baseline", "base", "--out", "b.jsonl", "--json"))["responses"] == 2
    )

    judged = last_line(prlhf("judge", "a.jsonl", "b.jsonl", "--judge", "rule:longer", "--json"))
    assert judged == json.loads((here / "judged/results.json").read_text())
    checked = last_line(prlhf("judge", "--checkpoint", "r", "--dataset", prepared, "--out", "c", "--json"))
    assert "readings" in checked

    for shown in (
        prlhf("train", "--resume", "--out", "r"),
        prlhf("generate", "r", *short, "--users", "ann,generic", "--out", "a.jsonl"),
        prlhf("judge", "a.jsonl", "b.jsonl", "--judge", "rule:longer"),
        prlhf("judge", "--checkpoint", "r", "--dataset", prepared, "--out", "c"),
    ):
        assert shown.exit_code == 0, shown.stderr
        assert shown.stdout.strip()


def test_one_adapter_per_user(here: Path, prlhf: Run, small: list[str], prepared: Path) -> None:
    without_users = [
        part for pair in zip(small[::2], small[1::2], strict=True) if "user" not in pair[1] for part in pair
    ]
    refused = prlhf("train", "--per-user", *small)
    assert refused.exit_code == 2
    assert "user_tokens = 2 is not used with --per-user; leave user_tokens out" in refused.stderr
    said = last_line(prlhf("train", "--per-user", *without_users, "--json"))
    assert (said["run"], said["users"]) == (f"runs/{prepared.name}-per-user", 3)
    assert said["eval"]["accuracy_by_user"].keys() == {"ann", "bob", "cat"}
    again = prlhf("train", "--resume", "--out", said["run"])  # the folder says what it is
    assert again.exit_code == 0, again.stderr
    assert "macro average" in again.stdout
    line = ["generate", said["run"], "--max-new-tokens", "2", "--prompts", "own", "--json"]
    assert last_line(prlhf(*line))["responses"] == len((here / "responses.jsonl").read_text().splitlines()) == 8


def test_baselines_without_a_run(here: Path, prlhf: Run, prepared: Path, tiny_base: Path) -> None:
    line = ["generate", "--dataset", prepared, "--prompts", "own", "--json"]
    chosen = last_line(prlhf(*line, "--baseline", "chosen", "--out", "chosen.jsonl"))
    shown = ["--baseline", "in-context", "--examples", "2", "--model", tiny_base, "--max-new-tokens", "2"]
    shown += ["--out", "shown.jsonl"]
    assert last_line(prlhf(*line, *shown))["responses"] == chosen["responses"] == 8
    judged = last_line(prlhf("judge", "shown.jsonl", "chosen.jsonl", "--judge", "rule:shorter", "--json"))
    assert (judged["unpaired_a"], judged["unpaired_b"]) == (0, 0)


def test_sweep(here: Path, prlhf: Run, small: list[str]) -> None:
    line = ["sweep", *small, "--space", "alpha=0.2,0.8", "--metric", "loss", "--mode", "min"]
    shown = prlhf(*line, "--concurrent", "2")
    assert shown.exit_code == 0, shown.stderr
    assert "trial-001" in shown.stdout
    assert "2/2 trials" in shown.stderr
    weights = here / "sweep/trial-000/model/user_model.safetensors"
    written = weights.stat().st_mtime_ns
    assert prlhf(*line).exit_code == 2  # it is there already
    said = last_line(prlhf("sweep", "--resume", "--json"))
    assert [trial["point"] for trial in said["trials"]] == [{"alpha": 0.2}, {"alpha": 0.8}]
    assert (said["done"], said["skipped"], said["metric"], said["mode"]) == (2, 2, "loss", "min")
    assert weights.stat().st_mtime_ns == written


def test_demo(here: Path, prlhf: Run, tiny_base: Path) -> None:
    recipe = {
        "prep": {"comparisons": 2},
        "train": {"model": str(tiny_base), "user_tokens": 1, "max_steps": 1, "lora_r": 2, "max_prompt_tokens": 32},
        "generate": {"max_prompts": 1, "max_new_tokens": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = last_line(prlhf("demo", "--recipe", "recipe.yaml", "--out", "out", "--json"))
    assert Path(said["figure"]).is_file()
    assert [row["label"] for row in said["rows"]][-3:] == ["generic", "vanilla", "base"]


def test_a_flag_wins_over_set_and_set_over_the_recipe(here: Path, prlhf: Run, small: list[str]) -> None:
    Path("r.yaml").write_text("train: {alpha: 0.1, beta: 0.1, nll: 0.1}\n")
    line = ["--recipe", "r.yaml", "--set", "beta=0.2", "--set", "nll=0.2", "--nll", "0.3", "--out", "r"]
    assert prlhf("train", *small, *line).exit_code == 0
    saved = yaml.safe_load(Path("r/recipe.yaml").read_text())["train"]
    assert (saved["alpha"], saved["beta"], saved["nll"], saved["lora_alpha"]) == (0.1, 0.2, 0.3, 16)
