"""Data sets of the hub: errors, choices between configurations and splits, and known data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import few_shot_raw
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
import json, sys
from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.errors import PrlhfError
for values in json.loads(sys.argv[1]):
    try:
        print(json.dumps(prepare(PrepConfig(**values))))
    except PrlhfError as error:
        print(error)
"""


def ask(configs: list[dict[str, Any]], **variables: str) -> list[str]:
    """A line for each preparation, its manifest or its error, in a process of its own that may ask the hub.

    The hub's client reads its address when it is first imported.
    """
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", ASK, json.dumps(configs)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(configs), done.stdout
    return lines


def test_refusals_of_the_hub_have_different_messages(tmp_path: Path) -> None:
    with fake_hub({}) as address:
        lines = ask(
            [{"dataset": name, "out": str(tmp_path / "out")} for name in ANSWERS],
            HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip
    for line, (message, hint) in zip(lines, ANSWERS.values(), strict=True):
        assert message in line
        assert hint in line


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small repositories in the layout of the published ones, which the real hub has under these names."""
    raw = tmp_path_factory.mktemp("repositories")
    return {
        "namkoong-lab/PersonalLLM": few_shot_raw.personalllm(raw / "personalllm"),
        "MichaelR207/prism_personalized_0125": few_shot_raw.rewardbench(raw / "prism"),
        "MichaelR207/chatbot_arena_personalized_0125": few_shot_raw.rewardbench(raw / "arena"),
        "openbmb/UltraFeedback": few_shot_raw.ultrafeedback(raw / "uf", [few_shot_raw.rated(n) for n in range(20)]),
    }


FROM_THE_HUB: dict[str, dict[str, Any]] = {
    "namkoong-lab/PersonalLLM": {"dataset": "personalllm", "users": 6, "comparisons": 5, "unseen_fraction": 0.34},
    "MichaelR207/prism_personalized_0125": {"dataset": "personalrewardbench"},
    "MichaelR207/chatbot_arena_personalized_0125": {"dataset": "personalrewardbench", "people": "arena"},
    "openbmb/UltraFeedback": {"dataset": "ultrafeedback"},
}


def test_known_data_sets_from_the_hub_and_from_its_cache(repositories: dict[str, Path], tmp_path: Path) -> None:
    """The same data from the hub, then offline from the cache, and from the downloaded files by `source`."""
    configs = [{**values, "out": str(tmp_path / str(n))} for n, values in enumerate(FROM_THE_HUB.values())]
    local = [{**one, "source": str(repositories[name])} for name, one in zip(FROM_THE_HUB, configs, strict=True)]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    with fake_hub(repositories) as address:
        online = ask(configs, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", **home)
    made = [list(map(json.loads, lines)) for lines in (online, ask(configs, HF_HUB_OFFLINE="1", **home), ask(local))]
    for name, *manifests in zip(FROM_THE_HUB, *made, strict=True):
        assert [one["source"] for one in manifests] == [name, name, str(repositories[name])]
        assert len({one["content_hash"] for one in manifests}) == 1
        assert all(one["kept"].keys() == {"train", "eval", "choices"} and min(one["kept"].values()) > 0
                   for one in manifests)  # fmt: skip


def test_offline_one_line_names_the_files_to_give(tmp_path: Path) -> None:
    configs = [{**values, "out": str(tmp_path / "out")} for values in FROM_THE_HUB.values()]
    lines = ask(configs, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    for line, (name, values) in zip(lines, FROM_THE_HUB.items(), strict=True):
        assert line.startswith(
            f"data set {name} is not in the cache, and HF_HUB_OFFLINE forbids the hub; unset it, or "
        )
        assert f"run: prlhf prep {values['dataset']} --source FOLDER" in line
    assert not (tmp_path / "out").exists()


def test_a_split_that_the_hub_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": []})
    for values in FROM_THE_HUB.values():
        if values["dataset"] != "ultrafeedback":
            with pytest.raises(PrlhfError, match=r" has no split '(test|validation)'"):
                prepare(PrepConfig(**values, out=tmp_path / "out"))


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
