"""Data sets of the hub: errors, and choices between configurations and splits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import fake_hub

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.errors import PrlhfError

ANSWERS = {
    "org/gated": (
        "data set org/gated needs access",
        "huggingface.co/datasets/org/gated and log in with `hf auth login`",
    ),
    "org/gated-no-login": ("data set org/gated-no-login needs access", "hf auth login"),
    "org/missing": ("the hub has no data set 'org/missing'", "check the spelling"),
    "org/private": ("the hub has no data set 'org/private'", "if it is private, log in"),
}


ASK = """
import sys
from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.errors import PrlhfError
for name in sys.argv[2:]:
    try:
        prepare(PrepConfig(dataset=name, out=sys.argv[1]))
    except PrlhfError as error:
        print(error)
"""


def test_refusals_of_the_hub_have_different_messages(tmp_path: Path) -> None:
    """In a separate process, because the hub's client reads its address when it is first imported."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with fake_hub({}) as address:
        environment |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", ASK, str(tmp_path / "out"), *ANSWERS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(ANSWERS)
    for line, (message, hint) in zip(lines, ANSWERS.values(), strict=True):
        assert message in line
        assert hint in line


RAISED = {
    "script": (
        RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        "--revision refs/convert/parquet",
    ),
    "no config": (
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['easy', 'hard']"),
        "choose one with --config NAME",
    ),
    "other config": (ValueError("BuilderConfig 'x' not found. Available: ['easy', 'hard']"), "--config NAME"),
}


@pytest.mark.parametrize("case", RAISED)
def test_open_choices_name_their_option(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    raised, hint = RAISED[case]

    def refuse(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(PrlhfError) as error:
        prepare(PrepConfig(dataset="some/thing", out=tmp_path / "out"))
    assert hint in error.value.hint
    assert case == "script" or "'easy', 'hard'" in error.value.message


def test_split_config_and_revision_reach_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: Any) -> None:
    import datasets

    asked = []

    def load(repo: str, config: str | None = None, revision: str | None = None) -> Any:
        asked.append((repo, config, revision))
        return {"train_prefs": [row(), row(user_id="bo")], "test_prefs": [row(prompt="x")], "train_sft": []}

    monkeypatch.setattr(datasets, "load_dataset", load)
    options: dict[str, Any] = {"dataset": "some/thing", "config": "easy", "revision": "main"}
    with pytest.raises(PrlhfError, match=r"has the splits train_prefs, test_prefs, train_sft and no 'train'"):
        prepare(PrepConfig(out=tmp_path / "out", **options))
    manifest = prepare(PrepConfig(out=tmp_path / "out", split="train_prefs,test_prefs", **options))
    assert asked == [("some/thing", "easy", "main")] * 2
    assert manifest["kept"] == {"train": 2, "eval": 1}
    assert manifest["options"]["split"] == "train_prefs,test_prefs"
