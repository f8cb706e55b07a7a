"""One rule for where a command may write: `claim` checks it before anything is loaded; `mark` and `replacing` write.

Every folder that prlhf makes holds the marker `prlhf.json`, {"kind": …, "version": 1}, which is written first. Any kind
may be written to a path that is missing or empty. A folder of the same kind is replaced or continued, depending on the
kind. Everything else is refused and not changed. Folders made by version 0.1 have no marker; their kind is recognized
by the content of their files.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir, atomic_file, sweep_leftovers
from prlhf.legacy_folders import legacy_kind

MARKER, VERSION = "prlhf.json", 1
ELSEWHERE = "choose another --out"


@dataclass(frozen=True)
class Kind:
    """A kind of folder. A kind with `names` is replaced as a whole; any other kind is continued.

    `names`: the files that a folder of this kind may hold.
    `begun`: the file whose presence means that there is something to continue.
    """

    words: str
    names: frozenset[str] = frozenset()
    begun: str = ""
    resumed: bool = False  # continued only with --resume

    @property
    def replaced(self) -> bool:
        """Whether a new folder replaces the old one, which is removed."""
        return bool(self.names)


KINDS = {
    "dataset": Kind(
        "a prepared data set",
        frozenset(
            "manifest.json train.parquet eval.parquet users.parquet prompts.jsonl judging.jsonl choices.jsonl".split()
        ),
    ),
    "judgement": Kind("a judgement", frozenset({"results.json", "verdicts.jsonl", "calibration.jsonl", "report.html"})),
    "run": Kind("a training run", begun="recipe.yaml", resumed=True),
    "sweep": Kind("a sweep", begun="results.jsonl", resumed=True),
    "responses": Kind("a folder of responses", begun="manifest.json"),
    "demo": Kind("a demo", begun="data"),
    "adapter": Kind(
        "an exported adapter",
        frozenset({"adapter_config.json", "adapter_model.safetensors", "adapter.gguf", "Modelfile", "README.md"}),
    ),
    "export": Kind("an exported model", frozenset({"README.md"})),  # its marker lists its files
    "model": Kind("a model"),  # in a run, or a base model; no command writes one to --out
}
MODELS = ("policy", "reward model")  # kinds in the prlhf.json of a model folder


def claim(out: Path, kind: str, resume: bool | None = None, inputs: Iterable[Path] = (), hint: str = ELSEWHERE) -> bool:
    """Check that a folder of `kind` may be written at `out`, without writing.

    Args:
        out: the folder to write.
        kind: a key of `KINDS`.
        resume: whether the user asked to continue, for kinds that are continued only on request; None: do not check.
        inputs: paths that the command reads, which `out` must not replace.
        hint: what the user can do about a refusal.

    Returns:
        Whether there is a folder to continue or to replace.

    Raises:
        PrlhfError: `out` may not be written.
    """
    wanted, real = KINDS[kind], _place(out, hint)
    sweep_claimed(real)
    _check_around(out, real, hint)
    if wanted.replaced:
        _check_inputs(out, real, inputs, hint)
    there = _kind_or_refusal(out, real, wanted, kind, hint)
    if wanted.replaced:
        _check_replaceable(out, real, wanted, there, hint)
        return there
    begun = there and (real / wanted.begun).exists()
    if there and not begun:
        _check_nothing_lost(out, real, wanted, hint)
    if wanted.resumed and resume is not None and resume != begun:
        name = wanted.words.removeprefix("a ").removeprefix("training ")
        if resume:
            raise PrlhfError(f"{out} holds no {name} to resume", "start it without --resume")
        raise PrlhfError(f"{out} already holds a {name}", f"continue with --resume, or {hint}")
    return begun


def claim_file(out: Path, hint: str = ELSEWHERE) -> None:
    """Check that a file may be written at `out`. The caller checks the content of a file that already exists.

    Raises:
        PrlhfError: `out` is not a regular file, lies in a folder that is replaced as a whole, or is not writable.
    """
    real = _real(out, hint)
    _check_parents(out, real, hint)
    if os.path.lexists(real) and not stat.S_ISREG(real.stat().st_mode):
        what = "a folder" if real.is_dir() else "not a regular file"
        raise PrlhfError(f"{out} is {what}", hint)
    _check_around(out, real, hint)


def mark(folder: Path, kind: str) -> None:
    """Write the marker of `kind` into `folder`, which was claimed; it must be the first file there."""
    if read_marker(folder).get("kind") != kind:
        _write_marker(folder, {"kind": kind, "version": VERSION})


def unmark(folder: Path, names: Iterable[str]) -> None:
    """Undo a start that failed: remove the files `names`, the marker, and `folder` if it is then empty."""
    for name in (*names, MARKER):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def replacing(out: Path, kind: str) -> Iterator[Path]:
    """Yield a new folder that replaces `out` at the end. The marker lists the files that were written.

    Raises:
        PrlhfError: `out` may not be written; this is checked again, as `out` may have changed since the command began.
    """
    claim(out, kind)
    with atomic_dir(out) as folder:
        about = {"kind": kind, "version": VERSION}
        _write_marker(folder, about)
        yield folder
        _write_marker(folder, about | {"files": sorted(_files(folder))})


def what_is(folder: Path) -> str | None:
    """Return the kind of `folder`, a key of `KINDS`, or None if prlhf did not make it."""
    kind = read_marker(folder).get("kind")
    if kind is None:
        return legacy_kind(folder)
    return "model" if kind in MODELS else kind


def words_of(folder: Path) -> str:
    """Describe `folder` for a message: `a training run`, `a folder of other files`, …."""
    kind = what_is(folder)
    return KINDS[kind].words if kind else "a file" if folder.is_file() else "a folder of other files"


def read_marker(folder: Path) -> dict[str, Any]:
    """Return the content of the marker in `folder`; empty if it has no valid marker."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    if "base_fingerprint" in found and found.get("kind", "policy") in MODELS:  # a model's, see model/checkpoint.py
        return {"kind": "model"}
    known = isinstance(found.get("kind"), str) and found["kind"] in KINDS and isinstance(found.get("version"), int)
    return found if known else {}


def sweep_claimed(path: Path) -> None:
    """Remove the leftovers of killed commands that wrote to `path`, and restore an old folder that they moved away."""
    with suppress(OSError):  # a path that is not writable is refused later
        sweep_leftovers(path)
        if path.is_dir():
            sweep_leftovers(path / MARKER)


# ---- the checks ----


def _real(out: Path, hint: str) -> Path:
    """Return `out` without symbolic links; refuses a path that the system cannot look up."""
    try:
        real = Path(os.path.realpath(out))
        os.path.lexists(real) and real.stat()
        if out.is_symlink() and not out.exists():
            raise PrlhfError(f"{out} is a symbolic link to {os.readlink(out)}, which does not exist", hint)
    except (OSError, ValueError) as error:
        raise PrlhfError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}", hint) from error
    return real


def _place(out: Path, hint: str) -> Path:
    real = _real(out, hint)
    if os.path.lexists(real) and not real.is_dir():
        raise PrlhfError(f"{out} is a file, not a folder", hint)
    _check_parents(out, real, hint)
    return real


def _check_parents(out: Path, real: Path, hint: str) -> None:
    """Check that the parent of `out`, or the nearest one that exists, is a folder and writable."""
    try:
        there = next(folder for folder in (real, *real.parents) if os.path.lexists(folder) and folder != real)
    except StopIteration:  # the root itself
        return
    except OSError as error:
        raise PrlhfError(f"cannot write {out}: {error.strerror}", hint) from error
    if not there.is_dir():
        raise PrlhfError(f"cannot write {out}: {there} is a file, not a folder", hint)
    where = real if real.is_dir() else there
    if not os.access(where, os.W_OK | os.X_OK):
        raise PrlhfError(f"cannot write {out}: no permission to write into {where}", hint)


def _check_around(out: Path, real: Path, hint: str) -> None:
    """Refuse a path inside a folder that is later replaced or removed as a whole."""
    for folder in real.parents:
        if folder.name == "checkpoints" and what_is(folder.parent) == "run":
            raise PrlhfError(f"{out} lies in the checkpoints of {folder.parent}, which its run removes", hint)
        kind = what_is(folder)
        if kind == "model" or (kind and KINDS[kind].replaced):
            raise PrlhfError(f"{out} lies in {folder}, {KINDS[kind].words}", hint)


def _kind_or_refusal(out: Path, real: Path, wanted: Kind, kind: str, hint: str) -> bool:
    """Return whether `out` is a folder of `kind`; refuses one of another kind, or one that prlhf did not make."""
    first = _first(real)
    if first is None:
        return False
    found = what_is(real)
    if found is None:
        raise PrlhfError(f"{out} exists and is not {wanted.words}: it holds {first}", hint)
    if found != kind:
        raise PrlhfError(f"{out} is {KINDS[found].words}, not {wanted.words}", hint)
    if int(read_marker(real).get("version", VERSION)) > VERSION:
        raise PrlhfError(f"{out} was made by a later version of prlhf", f"upgrade prlhf, or {hint}")
    return True


def _first(folder: Path) -> str | None:
    """Return the first name in `folder`, or None if it is missing or empty."""
    try:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise PrlhfError(f"cannot look into {folder}: {error.strerror}", ELSEWHERE) from error
    return names[0] if names else None


def _check_inputs(out: Path, real: Path, inputs: Iterable[Path], hint: str) -> None:
    for read in inputs:
        source = Path(os.path.realpath(read))
        if source.exists() and (source == real or real in source.parents):
            where = "is" if source == real else "lies in"
            raise PrlhfError(f"{read} is read, and {where} {out}, which would be replaced", hint)


def _check_replaceable(out: Path, real: Path, wanted: Kind, there: bool, hint: str) -> None:
    """Check that the old folder can be removed: all files in it are ours, and it is not in use."""
    if there and (stranger := _stranger(real, wanted)):
        raise PrlhfError(
            f"{out} is {wanted.words} with {stranger} in it, which prlhf did not write and would remove",
            f"move it away, or {hint}",
        )
    here = Path(os.path.realpath(os.curdir))
    if real.exists() and (real == here or real in here.parents):
        raise PrlhfError(f"{out} is the working folder or holds it, and would be replaced", "name a folder in it")
    if os.path.ismount(real):
        raise PrlhfError(f"{out} is a mount point, which cannot be replaced", "name a folder in it")


def _stranger(folder: Path, kind: Kind) -> str | None:
    """Return the name of a file that prlhf did not write there, by the marker's list, or by name for version 0.1."""
    listed = read_marker(folder).get("files")
    names = set(map(str, listed)) if isinstance(listed, list) else {*kind.names, MARKER}
    return min((name for name in _files(folder) if name not in names or not _is_plain(folder / name)), default=None)


def _files(folder: Path) -> list[str]:
    """All that is in `folder` and the folders in it, relative to it: files, and folders that are empty."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _check_nothing_lost(out: Path, real: Path, wanted: Kind, hint: str) -> None:
    """Check that a folder with a marker but no start holds only the marker and the data set of a run."""
    for entry in sorted(real.iterdir()):
        if entry.name != MARKER and what_is(entry) != "dataset":
            raise PrlhfError(f"{out} is {wanted.words} that has not begun, and holds {entry.name}", hint)


def _write_marker(folder: Path, about: dict[str, Any]) -> None:
    with atomic_file(folder / MARKER) as beside:
        beside.write_text(json.dumps(about) + "\n", encoding="utf-8")
