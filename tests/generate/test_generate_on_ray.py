"""Workers of a real Ray, which has two CPUs: all that it has is asked for. One Ray for all tests of a process."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate import on_ray, writer
from prlhf.generate.run import generate
from prlhf.progress import Silent
from prlhf.recipes import resolve
from prlhf.responses import read_responses

TWO = ClusterConfig(workers=2)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def config(tmp_path: Path, **options: Any) -> GenerateConfig:
    values = {"out": tmp_path / "out.jsonl", "max_new_tokens": 6, "max_prompts": 3, "device": "cpu", "block": 2}
    return resolve(GenerateConfig, values, options)


def watched(loads: Path, deaths: Path) -> type[on_ray.Worker]:
    """A worker that writes its process id into the file `loads` when a model is loaded, and that dies after it
    reported its first rows, as often as the file `deaths` has letters."""

    class Watched(on_ray.Worker):
        def __init__(self, *args: Any) -> None:
            load = writer.load_policy

            def counted(*args: Any) -> Any:
                with loads.open("a") as file:
                    file.write(f"{os.getpid()}\n")
                return load(*args)

            writer.load_policy = counted  # type: ignore[assignment]
            super().__init__(*args)
            advance = self.relay.advance

            def dying(steps: int = 1, **values: float) -> None:
                advance(steps, **values)
                if steps and deaths.is_file() and (left := deaths.read_text()):
                    deaths.write_text(left[1:])
                    os.kill(os.getpid(), signal.SIGKILL)

            self.relay.advance = dying  # type: ignore[method-assign]

    return Watched


class Shown(Silent):
    def __init__(self) -> None:
        self.at, self.lines = 0, list[str]()

    def advance(self, steps: int = 1, **values: float) -> None:
        self.at += steps

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def whole(tmp_path: Path, trained: Path) -> bytes:
    generate(trained, config(tmp_path, out=tmp_path / "whole.jsonl"))
    return (tmp_path / "whole.jsonl").read_bytes()


def test_all_cpus_write_what_one_process_writes(
    ray: Any, tmp_path: Path, trained: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Six sampled blocks on two workers, of which each loads the model once."""
    monkeypatch.setattr(on_ray, "Worker", watched(tmp_path / "loads", tmp_path / "deaths"))
    shown = Shown()
    said = generate(trained, config(tmp_path), shown, TWO)
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert (said["blocks"], said["new"], said["workers"]) == (6, 12, 2)
    workers = (tmp_path / "loads").read_text().split()
    assert len(workers) == len(set(workers)) == 2
    assert str(os.getpid()) not in workers
    assert (shown.at, shown.lines) == (12, [])
    assert capfd.readouterr() == ("", "")  # neither Ray's bars nor its lines


def test_an_interrupted_run_frees_its_workers(ray: Any, tmp_path: Path, trained: Path, whole: bytes) -> None:
    class Stop(Silent):
        def advance(self, steps: int = 1, **values: float) -> None:
            here = threading.current_thread() is threading.main_thread()  # where Ctrl-C is heard
            if here and (tmp_path / "out.jsonl.partial").exists():
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"stopped with \d+ of 12 responses written; run it again to continue"):
        generate(trained, config(tmp_path), Stop(), TWO)
    left = 12 - len(read_responses(tmp_path / "out.jsonl.partial", partial=True)[0])
    assert 0 < left < 12
    said = generate(trained, config(tmp_path), cluster=TWO)  # does not end if the first run still has the CPUs
    assert said["new"] == left
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_what_a_worker_refuses_is_one_line(
    ray: Any, tmp_path: Path, trained: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged weights, which the driver does not read."""
    shutil.copytree(trained, tmp_path / "run")
    weights = tmp_path / "run/model/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(PrlhfError, match=r"adapter_model\.safetensors"):
        generate(tmp_path / "run", config(tmp_path), cluster=ClusterConfig(workers=1))


def test_workers_that_do_not_fit_are_refused(ray: Any, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(PrlhfError, match=r"workers = 3 of 1 CPU each do not fit: .*; ask for at most 2 workers"):
        generate(trained, config(tmp_path), cluster=ClusterConfig(workers=3))


@pytest.mark.slow
def test_a_killed_worker_s_block_is_written_again(
    ray: Any, tmp_path: Path, trained: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "Worker", watched(tmp_path / "loads", tmp_path / "deaths"))
    (tmp_path / "deaths").write_text("xx")
    shown = Shown()
    generate(trained, config(tmp_path, batch_size=1), shown, TWO)
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert (tmp_path / "deaths").read_text() == ""
    assert len((tmp_path / "loads").read_text().split()) == 4
    assert shown.at == 12
    assert all(line.startswith("a worker was lost: block ") for line in shown.lines)
    assert 1 <= len(shown.lines) <= 2


@pytest.mark.slow
def test_workers_that_always_die_are_given_up(
    ray: Any, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "Worker", watched(tmp_path / "loads", tmp_path / "deaths"))
    (tmp_path / "deaths").write_text("x" * 50)
    with pytest.raises(PrlhfError, match=r"2 workers in a row were lost writing block 0, more than max_failures = 1"):
        generate(trained, config(tmp_path), cluster=ClusterConfig(workers=1, max_failures=1))
