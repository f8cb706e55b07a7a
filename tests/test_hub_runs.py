"""A run that `prlhf push` wrote is read back by its id, from a hub on this machine and then from the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import fake_hub

import prlhf
from prlhf.errors import PrlhfError
from prlhf.model import hub_run
from prlhf.upload import then_pushed

PROMPT = "POST: my boss lost cars.\nTL;DR:"
ASK = """
import json, os, sys
from pathlib import Path
import prlhf
from prlhf.config import GenerateConfig, ServeConfig
from prlhf.conversation import open_conversation
from prlhf.errors import PrlhfError
from prlhf.model.hub_run import found_run, hub_name
from prlhf.serve.run import open_service
from prlhf.upload import then_pushed

trained, prompt, out, phase = sys.argv[1:]
os.chdir(out)
how = {"device": "cpu", "temperature": 0.0, "max_new_tokens": 8}
told = {}
def refusal(what):
    try:
        what()
    except PrlhfError as error:
        return str(error)
if phase == "online":
    told["pushed"] = then_pushed(lambda: {"run": trained}, "org/run", False)["pushed"]
    told["forbidden"] = refusal(lambda: then_pushed(lambda: print("trained"), "org/forbidden", False))
    for repo in ("org/missing", "org/plain"):
        told[repo] = refusal(lambda: found_run(Path(repo)))
if phase != "empty":
    Path("prompts.txt").write_text("POST: my boss lost cars. TL;DR:\\n")
    prlhf.generate("org/run", prompts="prompts.txt", users="ann", out=f"{phase}.jsonl", **how)
    told["generated"] = json.loads(Path(f"{phase}.jsonl").read_text())["response"]
    told["loaded"] = prlhf.load("org/run", device="cpu").generate(prompt, "ann", temperature=0.0, max_new_tokens=8)
    told["chat"] = "".join(open_conversation(Path("org/run"), "ann", GenerateConfig(**how)).ask(prompt))
    run = found_run(Path("org/run"))
    service = open_service(run, ServeConfig(device="cpu", feedback=Path("kept.sqlite")))
    service.engine.close()
    told["served"] = [service.name, service.keeper.learning is None, hub_name(run)]
    told["forget"] = refusal(lambda: prlhf.forget(run, "ann"))
else:
    told["refused"] = refusal(lambda: prlhf.load("org/run"))
print(json.dumps(told))
"""


def told(trained: Path, out: Path, phase: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(trained), PROMPT, str(out), phase],
        env=os.environ | {"HF_TOKEN": "hf_test"} | environment,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trained" not in done.stdout.splitlines()  # what the hub refuses is known before
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_is_pushed_and_read_back_by_its_id(trained: Path, tmp_path: Path) -> None:
    repos = {"org/run": tmp_path / "hub-run", "org/plain": tmp_path / "hub-plain"}
    repos["org/plain"].mkdir()
    (repos["org/plain"] / "config.json").write_text("{}")
    home = str(tmp_path / "home")
    with fake_hub(repos) as address:
        online = told(trained, tmp_path, "online", HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=home)
    assert online["pushed"].endswith("/org/run/commit/" + "0" * 39 + "1")
    assert online["forbidden"].startswith("the hub refuses your login for model org/forbidden (status 403)")
    assert online["org/missing"].startswith("there is no folder org/missing here, and the hub has no model")
    assert online["org/plain"] == (
        "org/plain on the hub is not a run of prlhf: it has no prlhf.json; give one that `prlhf push` wrote"
    )
    own = prlhf.load(trained, device="cpu")
    assert online["loaded"] == online["chat"] == own.generate(PROMPT, "ann", temperature=0.0, max_new_tokens=8)
    text = "POST: my boss lost cars. TL;DR:"
    assert online["generated"] == own.generate(text, "ann", temperature=0.0, max_new_tokens=8)
    assert online["served"] == ["run", True, "org/run"]  # and nobody is learned into the cache
    assert (
        online["forget"] == "org/run was read from the hub, and its copy in the cache stays as it is; copy the folder"
    )
    # the hub is gone
    offline = told(trained, tmp_path, "offline", HF_HUB_OFFLINE="1", HF_HOME=home)
    assert {name: offline[name] for name in ("loaded", "chat", "generated", "served")} == {
        name: online[name] for name in ("loaded", "chat", "generated", "served")
    }
    shutil.rmtree(home)
    assert told(trained, tmp_path, "empty", HF_HUB_OFFLINE="1", HF_HOME=home)["refused"] == (
        "there is no folder org/run here, and model org/run is not in the cache, and HF_HUB_OFFLINE forbids the hub; "
        "unset it, or give the folder of a finished run"
    )


def test_a_path_is_not_asked_for_at_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_run.hub, "probe", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "me/mine").mkdir(parents=True)
    for name in ("nowhere", "runs/demoo", "me/mine", "../b", "/a/b", "a/b/c", "~/b", "./b"):
        assert str(hub_run.found_run(Path(name))) == str(Path(name))


def test_a_push_that_fails_at_the_end_keeps_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PrlhfError("the hub is gone", "try again")

    monkeypatch.setattr("prlhf.upload.make_repo", lambda _: None)
    monkeypatch.setattr("prlhf.upload.push_folder", refuse)
    with pytest.raises(
        PrlhfError, match="the run r is finished, but the hub is gone; push it later: prlhf push r me/m"
    ):
        then_pushed(lambda: {"run": "r"}, "me/m", False)
    assert then_pushed(lambda: {"run": "r"}, None, True) == {"run": "r"}
