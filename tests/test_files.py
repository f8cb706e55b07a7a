"""Atomic writes: readers see the old file or the new one, never a part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prlhf import files
from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir, atomic_file


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_file_is_replaced_and_its_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file"
    for text in ("old", "new"):
        with atomic_file(path) as beside:
            beside.write_text(text)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a", "a/b", "a/b/file"]


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a/d"
    for name in ("old", "new"):
        with atomic_dir(path) as beside:
            (beside / name).write_text(name)
            assert not (path / name).exists()
    assert names(tmp_path) == ["a", "a/d", "a/d/new"]


@pytest.mark.parametrize("error", [PrlhfError("said by the body"), ValueError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_any_error_passes_through_and_leaves_the_old(kind: str, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(kind, path, "old")
    with pytest.raises(type(error)) as caught, (atomic_file if kind == "file" else atomic_dir)(path) as beside:  # noqa: PT012
        (beside if kind == "file" else beside / "inside").write_text("half")
        raise error
    assert caught.value is error
    assert read(kind, path) == "old"
    assert names(tmp_path) == (["x"] if kind == "file" else ["x", "x/inside"])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_systems_refusal_names_the_place(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(kind, path, "old")
    full = OSError(28, "No space left on device")
    with (
        pytest.raises(PrlhfError, match=r"cannot write .*/x: No space left on device; free some space") as caught,
        (atomic_file if kind == "file" else atomic_dir)(path),
    ):
        raise full
    assert caught.value.__cause__ is full
    assert read(kind, path) == "old"


@pytest.mark.parametrize("manager", [atomic_file, atomic_dir])
def test_a_file_in_the_way_of_the_folders(manager: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(PrlhfError, match=r"cannot write .*/file/x: "), manager(tmp_path / "file/x"):  # type: ignore[operator]
        raise AssertionError("the body is not to run")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PrlhfError, match="Permission denied"), atomic_file(tmp_path / "x") as beside:
        beside.write_text("new")


def test_nested(tmp_path: Path) -> None:
    """In a folder whose files are written one by one, an inner error is reported once, with the inner path."""
    with (  # noqa: PT012
        pytest.raises(PrlhfError, match=r"cannot write .*/inner: Is a directory"),
        atomic_dir(tmp_path / "outer") as outer,
    ):
        (outer / "inner").mkdir()
        with atomic_file(outer / "inner") as beside:
            beside.write_text("new")
    assert names(tmp_path) == []


def test_the_old_folder_comes_back_where_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write("folder", path, "old")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(files, "_exchange", lambda new, path: False)
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(PrlhfError, match="Input/output error"):
        write("folder", path, "new")
    assert read("folder", path) == "old"
    assert names(tmp_path) == ["x", "x/inside"]


KILLED = """
import os, signal, sys
from pathlib import Path
from prlhf.files import atomic_dir, atomic_file
kind, path = sys.argv[1], Path(sys.argv[2])
with (atomic_file if kind == "file" else atomic_dir)(path) as beside:
    (beside if kind == "file" else beside / "inside").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_before_the_rename(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(kind, path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(kind, path) == "old"
    write(kind, path, "new")  # the leftover of the killed process does not matter
    assert read(kind, path) == "new"


def write(kind: str, path: Path, text: str) -> None:
    with (atomic_file if kind == "file" else atomic_dir)(path) as beside:
        (beside if kind == "file" else beside / "inside").write_text(text)


def read(kind: str, path: Path) -> str:
    return (path if kind == "file" else path / "inside").read_text()
