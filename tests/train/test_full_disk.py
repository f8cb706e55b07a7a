"""A disk that fills up while a run writes: one line, nothing that looks whole but is not, and the run goes on."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prlhf.errors import CannotWrite, PrlhfError
from prlhf.train import checkpoints, metrics
from prlhf.train.checkpoints import SEAL, newest_checkpoint
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file of more than `size` bytes can be written: the system answers EFBIG, as it answers ENOSPC elsewhere."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(folder))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# of a run's files: 30 bytes of marker, 1,200 of recipe, 1,600 of config, 12,100 of adapter, 14,300 of random states,
# 14,500 of tokenizer (in the model), 45,100 of optimizer; the log has 1,700 at its end
@pytest.mark.parametrize(
    ("size", "what"),
    [
        (20, "prlhf.json"), (1_100, "recipe.yaml"), (1_500, "checkpoint-2"),
        (2_000, "checkpoint-2"), (9_000, "checkpoint-2"), (13_000, "checkpoint-2"), (20_000, "checkpoint-2"),
        (40_000, "checkpoint-2"),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    size: int, what: str, tmp_path: Path, make_config: MakeConfig, whole: Path
) -> None:
    config = make_config(tmp_path / "run")
    message = rf"^cannot write .*{what}: File too large; .*raise the limit"
    with pytest.raises(PrlhfError, match=message) as caught, full_beyond(size):
        train(config)
    begun = (tmp_path / "run").exists()
    assert begun == (what == "checkpoint-2")
    assert caught.value.hint.endswith(f"then continue with: prlhf train --resume --out {tmp_path}/run") == begun
    assert not [name for name in files_of(tmp_path) if "checkpoints" in name]
    train(config, resume=begun)
    assert same(files_of(tmp_path / "run")) == same(files_of(whole))


def same(files: dict[str, bytes]) -> dict[str, bytes]:
    """What tells neither times nor places."""
    return {name: content for name, content in files.items() if name.endswith((".safetensors", "metrics.jsonl"))}


def test_the_checkpoint_before_stays(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one kept, the older one goes only when the new one is whole."""
    config = make_config(tmp_path / "run", keep_checkpoints=1, max_steps=4)
    seal = checkpoints.atomic_file

    def full(path: Path) -> Any:
        if path.name == SEAL and path.parent.name == "checkpoint-4":
            raise CannotWrite(f"cannot write {path}: No space left on device", "free some space")
        return seal(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "atomic_file", full)
        with pytest.raises(PrlhfError, match="free some space, then continue with: prlhf train --resume"):
            train(config)
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert found.name == "checkpoint-2"
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-2"]
    train(config, resume=True)
    assert (tmp_path / "run/model/prlhf.json").exists()


def write_checkpoint(folder: Path, step: int, sealed: bool = True, keep: int = 2) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    with checkpoints.writing(checkpoint):
        (checkpoint / "weights").write_text(str(step))
        if sealed:
            checkpoints.seal(checkpoint, [folder / "metrics.jsonl"], keep)
    return checkpoint


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_as_many_checkpoints_as_are_to_be_kept(keep: int, tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        write_checkpoint(tmp_path, step, keep=keep)
    assert left(tmp_path) == sorted(f"checkpoint-{step}" for step in (8, 9, 10, 11)[-keep:])


def test_what_is_not_whole_goes_with_the_next_one(tmp_path: Path) -> None:
    """Half-written ones, and a later one that was found damaged; not what others put there."""
    write_checkpoint(tmp_path, 3, sealed=False)
    write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 9)
    (tmp_path / "checkpoint-mine").mkdir()
    write_checkpoint(tmp_path, 6)
    assert left(tmp_path) == ["checkpoint-4", "checkpoint-6", "checkpoint-mine"]


def test_a_checkpoint_written_anew_is_not_whole_by_its_old_seal(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 4)
    with checkpoints.writing(checkpoint):
        assert checkpoints.fault(checkpoint) is None


def test_a_start_that_logs_nothing_is_taken_back(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer has made its folder by then; the same command may be given again."""

    def full(path: Path, row: dict[str, Any]) -> None:
        raise CannotWrite(f"cannot write {path}: No space left on device", "free some space")

    config = make_config(tmp_path / "run", max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", full)
        with pytest.raises(PrlhfError, match="free some space, or write elsewhere"):
            train(config)
    assert not (tmp_path / "run").exists()
    train(config)
