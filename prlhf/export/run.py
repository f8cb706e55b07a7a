"""`prlhf export` as a function: people of a run as adapters, a folder each."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import jinja2

from prlhf.errors import PrlhfError
from prlhf.export.person import Person, people
from prlhf.files import full_disk_named
from prlhf.folders import claim, replacing
from prlhf.progress import Progress
from prlhf.train.final_model import is_public, public_name

FORMATS = ("peft", "gguf")  # a module here for each, which needs the package of the same name
PLAIN = re.compile(r"\w[\w.-]{0,63}", re.ASCII)


def export(
    run: Path,
    users: Sequence[str],
    format: str,
    out: Path,
    base: str | None,
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Write each of `users` as an adapter: one into `out` itself, several into a folder each in it.

    Raises:
        PrlhfError: a user cannot be exported from `run`, or a folder may not be written.
    """
    write = _writer(format)
    wanted = list(dict.fromkeys(users))
    if not wanted:
        raise PrlhfError("no user is named", "give --user ann, or --user generic; it can be repeated")
    names = folder_names(wanted)
    folders = {user: out if len(wanted) == 1 else out / names[user] for user in wanted}
    for folder in folders.values():
        claim(folder, "adapter", inputs=[run])
    progress.start("export", len(wanted))
    for person in people(run, wanted, base, trust_remote_code):
        with full_disk_named(folders[person.user]), replacing(folders[person.user], "adapter") as folder:
            write(person, folder)
            (folder / "README.md").write_text(_card(person, format), encoding="utf-8")
        progress.advance()
    progress.finish()
    adapters = [{"user": user, "folder": str(folder)} for user, folder in folders.items()]
    return {"run": str(run), "format": format, "out": str(out), "adapters": adapters}


def folder_names(users: Sequence[str]) -> dict[str, str]:
    """A name for a folder of each user: the id, or if that is not safe, what is left of it with a digest."""
    alike = Counter(user.casefold() for user in users)  # some file systems take them for one

    def name(user: str) -> str:
        if PLAIN.fullmatch(user) and alike[user.casefold()] == 1:
            return user
        digest = hashlib.sha256(user.encode()).hexdigest()[:8]
        return "-".join(filter(None, [re.sub(r"[^A-Za-z0-9]+", "-", user).strip("-")[:40], digest]))

    return {user: name(user) for user in users}


def _writer(format: str) -> Callable[[Person, Path], None]:
    if format not in FORMATS:
        raise PrlhfError(f"format '{format}' is not known", f"use {' or '.join(FORMATS)}")
    if importlib.util.find_spec(format) is None:
        raise PrlhfError(f"writing {format} needs the package {format}", f"pip install 'prlhf[{format}]'")
    write: Callable[[Person, Path], None] = getattr(import_module(f"prlhf.export.{format}"), f"write_{format}")
    return write


def _card(person: Person, format: str) -> str:
    template = resources.files("prlhf.export").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card: str = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        person=person,
        format=format,
        run=person.run.name,
        base=public_name(person.base.name),
        base_is_public=is_public(person.base.name),
    )
    return card
