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
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import prlhf
from prlhf.errors import PrlhfError
from prlhf.export import person
from prlhf.export.names import folder_names
from prlhf.model.base import load_base
from prlhf.model.checkpoint import assemble, load_policy, save_policy
from prlhf.model.gates import folded
from prlhf.model.per_user import run_of
from prlhf.model.readings import Reading, padded
from prlhf.train.per_user import train_per_user
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
    assert result.compared is not None
    assert result.compared.rows >= 6
    assert result.compared.difference < 0.1  # on the base in bf16, where the run rounds its adapter too
    assert [(one.user, one.folder) for one in result.people] == [(u, tmp_path / "people" / u) for u in USERS]
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
    assert json.loads(said.stdout.splitlines()[-1])["people"] == [{"user": "ann", "folder": str(tmp_path / "ann")}]
    guide = (ROOT / "docs/GUIDE.md").read_text(encoding="utf-8")
    code = guide.partition("## 7. Export a person")[2].partition("```python\n")[2].partition("```")[0]
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
    for format in ("gguf", "hf"):
        said = refused(trained, "ann", tmp_path, format=format)
        assert re.search(f"in front of the prompt, which {format} does not hold; use --format hf-users or", said)
    train(make_config(tmp_path / "full", full_finetune=True, user_model="uniform", user_tokens=0, max_steps=1, lr=1e-5))
    assert "has no adapter" in refused(tmp_path / "full", "generic", tmp_path)
    assert "format 'onnx' is not known" in refused(gated, "ann", tmp_path, format="onnx")


def test_a_run_without_users_is_the_generic_user(make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path / "run", user_model="uniform", user_tokens=0, max_steps=2))
    assert "serves everyone alike" in refused(tmp_path / "run", "ann", tmp_path)
    prlhf.export(tmp_path / "run", "generic", tmp_path / "out")
    policy = load_policy(tmp_path / "run", "cpu", "fp32")
    with torch.no_grad():
        expected = float(policy.model(padded([Reading(0, PROMPT, RESPONSE)], 0, 0)))
    assert log_prob(plain(tiny_base, tmp_path / "out")) == pytest.approx(expected, abs=1e-4)


def test_an_adapter_that_differs_is_refused(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person, "folded", lambda lm, layers, gate: folded(lm, layers, -gate))
    with pytest.raises(PrlhfError, match=r"the adapter differs from the run by .* nats per token for 'ann'"):
        prlhf.export(gated, "ann", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cluster_gates(make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path / "run", user_model="cluster", user_in="adapter", max_steps=8, user_text=False))
    prlhf.export(tmp_path / "run", ["ann", "cat"], tmp_path / "out")
    policy = load_policy(tmp_path / "run", "cpu", "fp32")
    values = []
    for user, index in (("ann", 1), ("cat", 3)):
        with torch.no_grad():
            expected = float(policy.model(padded([Reading(index, PROMPT, RESPONSE)], 0, 0)))
        values.append(log_prob(plain(tiny_base, tmp_path / "out" / user)))
        assert values[-1] == pytest.approx(expected, abs=1e-4)
    assert abs(values[0] - values[1]) > 1e-4


def test_one_adapter_per_user(make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> None:
    train_per_user(make_config(tmp_path / "run", user_model="uniform", user_tokens=0, max_steps=4))
    for format in ("peft", "hf"):
        result = prlhf.export(tmp_path / "run", ["ann", "cat"], tmp_path / format, format=format)
        assert result.compared is not None
        assert result.compared.rows >= 2
    for user, index in (("ann", 1), ("cat", 3)):
        policy = load_policy(run_of(tmp_path / "run", index), "cpu", "fp32")
        with torch.no_grad():
            expected = float(policy.model(padded([Reading(0, PROMPT, RESPONSE)], 0, 0)))
        assert log_prob(plain(tiny_base, tmp_path / "peft" / user)) == pytest.approx(expected, abs=1e-4)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / user)
        assert log_prob(whole) == pytest.approx(expected, abs=1e-4)
    assert "user 'zoe' is unknown" in refused(tmp_path / "run", "zoe", tmp_path)


@pytest.mark.parametrize("place", ["adapter", "prompt"])
def test_a_user_of_more_than_a_thousand(place: str, make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> None:
    """Only the named users' rows are read; the others of the run do not become theirs."""
    config = make_config(tmp_path / "run", user_model="individual", user_in=place)
    ids = [f"u{i}" for i in range(1, 1501)]
    policy = assemble(load_base(str(tiny_base)), config, ids, {"u1500": "the last"})
    for name, value in policy.model.named_parameters():
        if "lora_B" in name or "offsets" in name:
            value.data.normal_(0, 0.3)
    (tmp_path / "run").mkdir()
    save_policy(policy, tmp_path / "run")
    users, format = ["u7", "u1500"], "peft" if place == "adapter" else "hf-users"
    result = prlhf.export(tmp_path / "run", users, tmp_path / "out", format=format)
    assert result.compared is not None
    assert result.compared.difference < (0.1 if place == "adapter" else 1e-4)
    with torch.no_grad():
        rows = [float(policy.model(padded([Reading(i, PROMPT, RESPONSE)], config.slots, 0))) for i in (7, 1500)]
    assert abs(rows[0] - rows[1]) > 1e-2
    if place == "adapter":
        for user, expected in zip(users, rows, strict=True):
            assert log_prob(plain(tiny_base, tmp_path / "out" / user)) == pytest.approx(expected, abs=1e-4)
    else:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        own = tokenizer.convert_tokens_to_ids(["<|user:u1500:0|>", "<|user:u1500:1|>"])
        assert torch.equal(lm.get_input_embeddings().weight[own], policy.model.users(torch.tensor([1500]))[0])


def test_names_of_folders() -> None:
    assert folder_names(["ann", "b.c"]) == {"ann": "ann", "b.c": "b.c"}
    found = folder_names(["../x", "Ann", "ann", "", "é", "a" * 300, ".hidden"])
    assert len({name.casefold() for name in found.values()}) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,60}", name) for name in found.values())
