"""What workers do, in this process: whole commands with a worker's work done here, one block at a time. The tests with
a real Ray are in test_generate_on_ray.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.errors import PrlhfError
from prlhf.generate import on_ray, writer
from prlhf.generate.on_ray import BlockProgress, Counts, Worker
from prlhf.generate.output import Block
from prlhf.generate.run import generate
from prlhf.generate.writer import WriterSpec, open_model, open_plan
from prlhf.progress import Silent
from prlhf.recipes import resolve
from prlhf.responses import parse_line, read_responses
from prlhf.train.per_user import train_per_user
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
TWO = ClusterConfig(workers=2)


class NeverLost(on_ray.RestartLimit):
    def __init__(self, most: int = 0) -> None:
        self.workers, self.most, self.here = 1, most, Counts()

    def _ask(self, name: str, *args: Any) -> int:
        return int(getattr(self.here, name)(*args))


def config(tmp_path: Path, **options: Any) -> GenerateConfig:
    values = {"out": tmp_path / "out.jsonl", "max_new_tokens": 6, "max_prompts": 3, "device": "cpu", "block": 2}
    return resolve(GenerateConfig, values, options)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts one worker that sits here in Ray's place, and returns what loaded a model after the driver had planned."""
    loaded: list[Any] = []
    opened = open_model

    def here(given: WriterSpec, blocks: Sequence[Block], *_: Any) -> Iterator[Any]:
        worker = Worker(given, ".", NeverLost(), Silent())  # type: ignore[arg-type]
        for block in reversed(blocks):
            batch = {"block": [block.number], "requests": [json.dumps([asdict(request) for request in block.requests])]}
            back = worker(batch)
            if back["refusal"][0]:
                raise PrlhfError(*json.loads(back["refusal"][0]))
            yield block.number, [parse_line(line, "here") for line in back["lines"][0].split("\n") if line]

    monkeypatch.setattr(on_ray, "write_on_ray", here)
    monkeypatch.setattr("prlhf.generate.writer.open_model", lambda *args: loaded.append(args) or opened(*args))
    return loaded


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "adapters"
    train_per_user(make_config(folder, max_steps=2))
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    train(make_config(folder, full_finetune=True, max_steps=1))
    return folder


CASES: dict[str, dict[str, Any]] = {
    "sampled": {"users": "all"},
    "greedy": {"temperature": 0},
    "some of each": {"users": "zoe,generic,anna,cat", "unknown_as_generic": True},
    "own prompts": {"prompts": "own"},
    "base": {"baseline": "base"},
    "in context": {"baseline": "in-context", "examples": 1, "users": "seen"},
    "best of": {"best_of": 2, "max_prompts": 1},
    "one adapter each": {"users": "all,zoe"},
    "base of adapters": {"baseline": "base"},
    "all weights": {"users": "generic"},
    "base of all weights": {"baseline": "base"},
}


@pytest.mark.parametrize("case", CASES)
def test_workers_write_what_one_process_writes(
    tmp_path: Path, loads: list[Any], request: pytest.FixtureRequest, trained: Path, case: str
) -> None:
    """Byte for byte, whatever is written with; and each worker opens it once."""
    run = trained
    if "adapter" in case or "all weights" in case:
        run = request.getfixturevalue("tuned" if "all weights" in case else "adapters")
    options = CASES[case] | ({"reward": trained} if case == "best of" else {})
    alone = generate(run, config(tmp_path, **options))
    assert loads == []
    said = generate(run, config(tmp_path, **options, out=tmp_path / "workers.jsonl"), cluster=TWO)
    assert (tmp_path / "workers.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert len(loads) == 1
    assert said["blocks"] == 2 * -(-alone["responses"] // 4) or said["blocks"] == -(-alone["responses"] // 2)
    assert (said["new"], said["tokens"], said["users"]) == (alone["new"], alone["tokens"], alone["users"])


def test_baselines_without_a_run(tmp_path: Path, loads: list[Any], prepared: Path, tiny_base: Path) -> None:
    options = {"baseline": "in-context", "examples": 1, "model": str(tiny_base), "dataset": str(prepared)}
    generate(None, config(tmp_path, **options))
    generate(None, config(tmp_path, **options, out=tmp_path / "workers.jsonl"), cluster=TWO)
    assert (tmp_path / "workers.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_shards_do_not_depend_on_who_writes_them(tmp_path: Path, loads: list[Any], trained: Path) -> None:
    for name, cluster in (("alone", ClusterConfig()), ("workers", TWO)):
        generate(trained, config(tmp_path, out=tmp_path / name, block=5), cluster=cluster)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("alone", "workers")]
    assert len(files[0]) == 5  # three shards, the manifest and the marker
    assert files[0] == files[1]


def test_workers_finish_what_one_process_began(tmp_path: Path, loads: list[Any], trained: Path) -> None:
    """Rows of one process and blocks of workers are of one kind."""
    generate(trained, config(tmp_path, out=tmp_path / "whole.jsonl"))
    generate(trained, config(tmp_path, users="bob"))
    assert generate(trained, config(tmp_path), cluster=TWO)["new"] == 9
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert generate(trained, config(tmp_path), cluster=TWO)["blocks"] == 0
    assert len(loads) == 1  # where nothing is left, nothing is started


def test_the_planner_reads_no_weights(
    tmp_path: Path, trained: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    wholes = [open_model(run, config(tmp_path), []) for run in (trained, adapters)]
    monkeypatch.setattr(writer, "load_policy", refused)
    monkeypatch.setattr(writer, "load_base", refused)
    for run, whole in zip((trained, adapters), wholes, strict=True):
        plan = open_plan(run, config(tmp_path), [])
        assert (plan.weights, plan.base, plan.adapters) == (whole.weights, whole.base, whole.adapters)
        assert plan.policy.index_of() == whole.policy.index_of()
        assert plan.policy.base.context == whole.policy.base.context


def test_chosen_responses_need_no_workers(tmp_path: Path, loads: list[Any], prepared: Path) -> None:
    notes: list[str] = []
    said = Silent()
    said.note = notes.append  # type: ignore[method-assign]
    options = {"baseline": "chosen", "prompts": "own", "dataset": str(prepared)}
    assert generate(None, config(tmp_path, **options), said, TWO)["responses"] == 8
    assert (notes, loads) == (["the chosen responses are only copied: no workers are started"], [])


# ---- what goes wrong ----


def block_of(number: int) -> dict[str, Any]:
    return {"block": [number], "requests": ["[]"]}


def test_errors_of_workers_come_back_as_one_line(tmp_path: Path, trained: Path) -> None:
    nowhere = WriterSpec(tmp_path / "nowhere", config(tmp_path), [], {})
    worker = Worker(nowhere, str(tmp_path / "gone"), NeverLost(), Silent())  # type: ignore[arg-type]
    back = worker(block_of(3))
    assert (back["block"], back["lines"]) == ([3], [""])
    assert json.loads(back["refusal"][0])[0].endswith("nowhere is not a checkpoint: it has no prlhf.json")


def test_a_block_that_kills_its_workers_is_given_up(tmp_path: Path, trained: Path) -> None:
    """Begun four times by as many workers, of which two may be lost."""
    deaths, given = NeverLost(most=2), WriterSpec(trained, config(tmp_path), [], {})
    lines: list[str] = []
    relay: Any = Silent()
    relay.note = lines.append
    refusals = [Worker(given, ".", deaths, relay)(block_of(7))["refusal"][0] for _ in range(4)]
    assert refusals[:3] == [""] * 3
    message, hint = json.loads(refusals[3])
    assert message == "3 workers in a row were lost writing block 7, more than max_failures = 2"
    assert "fewer workers" in hint
    assert lines == ["a worker was lost: block 7 is written again"] * 2
    assert Worker(given, ".", deaths, relay)(block_of(8))["refusal"] == [""]


def test_a_model_that_kills_its_workers_is_given_up(tmp_path: Path, trained: Path) -> None:
    deaths = NeverLost(most=1)
    deaths.loading()
    deaths.loading()
    with pytest.raises(PrlhfError, match="2 workers in a row were lost loading the model, more than max_failures = 1"):
        deaths.loading()
    deaths.beginning(0)  # one that was loaded: those before are forgiven
    deaths.loading()


# ---- the bar ----


class Shown(Silent):
    def __init__(self) -> None:
        self.at, self.lines = 0, list[str]()

    def advance(self, steps: int = 1, **values: float) -> None:
        assert values == {}  # blocks are not for the eye
        self.at += steps

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_what_is_written_again_counts_once() -> None:
    shown = Shown()
    tally = BlockProgress(shown)
    for steps in (0, 2, 1, 0):  # begun, three rows, lost, begun again
        tally.advance(steps, block=4)
    assert shown.at == 0
    tally.advance(3, block=4)
    tally.advance(2, block=5)
    assert shown.at == 5
    tally.settle(4, 6)
    tally.advance(3, block=4)  # still on its way when the block was there
    assert shown.at == 8
    tally.settle(5, 2)
    tally.settle(6, 1)
    assert shown.at == 9


def test_a_line_from_all_workers_is_shown_once() -> None:
    shown = Shown()
    tally = BlockProgress(shown)
    for _ in range(3):
        tally.note("slow")
    assert shown.lines == ["slow"]


# ---- options ----


@pytest.mark.parametrize(
    ("line", "section", "expected"),
    [
        ([], "", {}),
        (["--workers", "2", "--cpus-per-worker", "0.5", "--verbose"], "",
         {"workers": 2, "cpus_per_worker": 0.5, "verbose": True}),
        (["--gpus-per-worker", "0", "--ray-address", "auto"], "workers: 3",
         {"workers": 3, "gpus_per_worker": 0.0, "ray_address": "auto"}),
        (["--workers", "1"], "workers: 3, max_failures: 0", {"workers": 1, "max_failures": 0}),
    ],
)  # fmt: skip
def test_the_options_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str], section: str, expected: dict[str, Any]
) -> None:
    from typer.testing import CliRunner

    from prlhf_cli.main import app

    asked: list[Any] = []
    done = {"out": "o", "responses": 1, "users": 1, "new": 1}
    monkeypatch.setattr("prlhf.generate.run.generate", lambda *args: asked.extend(args) or done)
    (tmp_path / "r.yaml").write_text(f"generate: {{block: 9}}\ncluster: {{{section}}}\n")
    result = CliRunner().invoke(app, ["generate", "run", "--recipe", str(tmp_path / "r.yaml"), *line])
    assert result.exit_code == 0, result.stderr
    assert (asked[1].block, asked[3]) == (9, ClusterConfig.model_validate(expected))


def test_unused_gpus_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ClusterConfig] = []
    monkeypatch.setattr(on_ray, "worker_resources", lambda cluster: asked.append(cluster) or {"CPU": 1.0})
    for device, gpus in (("cpu", None), ("auto", None), ("cpu", 0.5)):
        given = WriterSpec(None, GenerateConfig(device=device), [], {})
        on_ray.resources(given, ClusterConfig(workers=1, gpus_per_worker=gpus))
    assert [cluster.gpus_per_worker for cluster in asked] == [0, None, 0.5]


def test_ray_is_not_imported_in_one_process(tmp_path: Path, trained: Path) -> None:
    code = "import sys\nfrom prlhf_cli.main import app\n"
    code += "try:\n    app()\nexcept SystemExit:\n    assert 'ray' not in sys.modules"
    line = ["generate", str(trained), "--max-prompts", "1", "--max-new-tokens", "1", "--out", str(tmp_path / "o")]
    subprocess.run([sys.executable, "-c", code, *line], check=True, capture_output=True)
    assert len(read_responses(tmp_path / "o")) == 4
