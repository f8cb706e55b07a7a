"""`prlhf export`: plain transformers and PEFT compute what the run computes for that person."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import prlhf
from prlhf.errors import PrlhfError
from prlhf.export.run import folder_names
from prlhf.model.checkpoint import load_policy
from prlhf.model.readings import Reading, padded
from prlhf.train.run import train
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]
ROOT = Path(__file__).parents[2]
PROMPT, RESPONSE = (5, 6, 7, 8, 9), (20, 21, 22)
USERS = {"ann": 1, "bob": 2, "generic": 0}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("gated") / "run"
    train(make_config(folder, user_in="adapter", gates="block", max_steps=20, user_text=False))
    return folder


def plain(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(lm, adapter).eval()


def log_prob(lm: Any) -> float:
    ids = torch.tensor([PROMPT + RESPONSE])
    with torch.no_grad():
        found = lm(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(found[len(PROMPT) - 1 :].sum())


def test_peft_has_the_log_probs_and_the_greedy_tokens_of_the_person(
    gated: Path, tiny_base: Path, tmp_path: Path
) -> None:
    result = prlhf.export(gated, list(USERS), tmp_path / "people")
    assert [(one.user, one.folder) for one in result.adapters] == [(u, tmp_path / "people" / u) for u in USERS]
    policy, loaded = load_policy(gated, "cpu", "fp32"), prlhf.load(gated, device="cpu", precision="fp32")
    values = {}
    for user, index in USERS.items():
        lm = plain(tiny_base, tmp_path / "people" / user)
        with torch.no_grad():
            expected = float(policy.model(padded([Reading(index, PROMPT, RESPONSE)], 0, 0)))
        values[user] = log_prob(lm)
        assert values[user] == pytest.approx(expected, abs=1e-4)
        ids = policy.tokenizer("POST: my boss lost cars.\nTL;DR:", return_tensors="pt").input_ids
        written = lm.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        text = policy.tokenizer.decode(written, skip_special_tokens=True)
        assert text == loaded.generate("POST: my boss lost cars.\nTL;DR:", user, max_new_tokens=8, temperature=0)
    assert abs(values["ann"] - values["bob"]) > 1e-3
    card = (tmp_path / "people/ann/README.md").read_text()
    assert "# User ann of a run of prlhf" in card


def test_the_guides_snippet_runs(gated: Path, tiny_base: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["export", str(gated), "--user", "ann", "--out", str(tmp_path / "ann"), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout.splitlines()[-1])["adapters"] == [{"user": "ann", "folder": str(tmp_path / "ann")}]
    guide = (ROOT / "docs/GUIDE.md").read_text(encoding="utf-8")
    code = guide.partition("## 6. Export a person")[2].partition("```python\n")[2].partition("```")[0]
    code = code.replace('"BASE"', repr(str(tiny_base))).replace('"adapters/ann"', repr(str(tmp_path / "ann")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def refused(run: Path, users: str, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(PrlhfError) as error:
        prlhf.export(run, users, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_what_cannot_be_an_adapter_is_refused(
    gated: Path, trained: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    assert "user 'an' is unknown to" in refused(gated, "an", tmp_path)
    assert "did you mean 'ann'" in refused(gated, "an", tmp_path)
    for user in ("ann", "generic"):
        assert re.search("vectors in front of the prompt.*--user-in adapter", refused(trained, user, tmp_path))
    train(make_config(tmp_path / "full", full_finetune=True, max_steps=1, lr=1e-5))
    assert "has no adapter" in refused(tmp_path / "full", "ann", tmp_path)
    assert "format 'onnx' is not known" in refused(gated, "ann", tmp_path, format="onnx")


def test_a_run_without_users_is_the_generic_user(make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path / "run", user_model="uniform", user_tokens=0, max_steps=2))
    assert "serves everyone alike" in refused(tmp_path / "run", "ann", tmp_path)
    prlhf.export(tmp_path / "run", "generic", tmp_path / "out")
    policy = load_policy(tmp_path / "run", "cpu", "fp32")
    with torch.no_grad():
        expected = float(policy.model(padded([Reading(0, PROMPT, RESPONSE)], 0, 0)))
    assert log_prob(plain(tiny_base, tmp_path / "out")) == pytest.approx(expected, abs=1e-4)


def test_names_of_folders() -> None:
    assert folder_names(["ann", "b.c"]) == {"ann": "ann", "b.c": "b.c"}
    found = folder_names(["../x", "Ann", "ann", "", "é", "a" * 300, ".hidden"])
    assert len({name.casefold() for name in found.values()}) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,60}", name) for name in found.values())
