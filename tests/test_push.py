"""`prlhf push` by the hub's own client, to a hub on this machine; `load_base`, as `train` has it, reads it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import fake_hub

import prlhf
from prlhf.errors import PrlhfError

ASK = """
import json, sys
from pathlib import Path
import prlhf
from prlhf.errors import PrlhfError
from prlhf.model.base import load_base
for folder, repo in json.loads(sys.argv[1]):
    try:
        print(prlhf.push(folder, repo).url)
    except PrlhfError as error:
        print(error)
base = load_base("org/mine")
print(base.tokenizer.convert_tokens_to_ids("<|user:ann:0|>"), float(base.lm.get_input_embeddings().weight.sum()))
"""


def test_an_export_is_pushed_and_read_back(trained: Path, tmp_path: Path) -> None:
    prlhf.export(trained, "ann", tmp_path / "out", format="hf-users")
    repos = {"org/mine": tmp_path / "hub", "org/run": tmp_path / "hub-run"}
    asked = [[str(tmp_path / "out"), "org/mine"], [str(trained), "org/run"], [str(tmp_path / "out"), "org/forbidden"]]
    with fake_hub(repos) as address:
        told = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test"}
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(asked)],
            env=os.environ | told, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr[-2000:]
    assert lines[0].endswith("/org/mine/commit/" + "0" * 39 + "1")
    assert lines[2].startswith("the hub refuses your login for model org/forbidden (status 403)")
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()} == sent
    assert {path.name for path in (tmp_path / "hub-run").iterdir()} == {p.name for p in (trained / "model").iterdir()}
    made = json.loads((tmp_path / "made.json").read_text())
    assert made.get("visibility") == "private" or made.get("private") is True
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own = AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<|user:ann:0|>")
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).get_input_embeddings().weight
    assert lines[3] == f"{own} {float(weight.sum())}"


def test_what_is_not_pushed(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(PrlhfError, match="is a prepared data set; give a finished run"):
        prlhf.push(prepared, "me/mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PrlhfError, match="cannot push to me/mine: HF_HUB_OFFLINE forbids the hub; unset it"):
        prlhf.push(trained, "me/mine")
