"""A reward model from the command line: trained, judged, judging, and choosing the best of several responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_from_training_to_best_of(
    here: Path, prlhf: Run, prlhf_json: Run, trained: Path, prepared: Path, tiny_base: Path
) -> None:
    values = {"dataset": prepared, "model": tiny_base, "user_tokens": 2, "lora_r": 2, "max_steps": 2}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    shown = prlhf("train", "--objective", "rm", *settings, "--out", "rm")
    assert shown.exit_code == 0, shown.stderr
    assert "reward accuracy, held-out comparisons" in shown.stdout
    assert "implicit" not in shown.stdout
    assert "unseen users" in shown.stdout
    assert json.loads((here / "rm/model/prlhf.json").read_text())["kind"] == "reward model"

    found = prlhf_json("judge", "--checkpoint", "rm", "--dataset", prepared, "--out", "c")
    own = json.loads((here / "rm/results.json").read_text())["eval"]
    assert found["accuracy_by_user"] == own["accuracy_by_user"]
    assert found["readings"]["shuffled"] is not None

    short = ["--max-new-tokens", "4", "--max-prompts", "2"]
    prlhf_json("generate", trained, *short, "--out", "one.jsonl")
    prlhf_json("generate", trained, *short, "--best-of", "4", "--reward", "rm", "--out", "best.jsonl")
    judged = prlhf_json("judge", "best.jsonl", "one.jsonl", "--judge", "reward:rm")
    assert judged["losses"] == 0  # the only candidate is one of the four
    assert judged["wins"] > 0


def test_a_reward_model_writes_nothing(here: Path, prlhf: Run, prepared: Path, tiny_base: Path) -> None:
    options = ["--dataset", prepared, "--model", tiny_base, "--max-steps", "1"]
    assert prlhf("train", "--objective", "rm", *options, "--out", "rm").exit_code == 0
    refused = prlhf("generate", "rm", "--out", "a.jsonl")
    assert refused.exit_code == 2
    assert "rm is a reward model, which does not write" in refused.stderr
    assert not (here / "a.jsonl").exists()
    unpaired = prlhf("generate", "rm", "--best-of", "2", "--out", "a.jsonl")
    assert unpaired.exit_code == 2
    assert "best_of = 2 has no reward to choose by; add --reward RUN" in unpaired.stderr


def test_the_command_of_a_recipe_for_policies_is_resumed(
    here: Path, prlhf: Run, prepared: Path, tiny_base: Path
) -> None:
    """What the recipe says of policies alone (beta) is left out, as at the start."""
    (here / "mine.yaml").write_text("train: {beta: 0.1, user_tokens: 2, lora_r: 2, batch_size: 2}\n")
    line = ["train", "--recipe", "mine.yaml", "--objective", "rm", "--dataset", prepared, "--model", tiny_base]
    for more in ([], ["--resume"]):
        shown = prlhf(*line, "--out", "rm", "--max-steps", "1", *more)
        assert shown.exit_code == 0, shown.stderr
