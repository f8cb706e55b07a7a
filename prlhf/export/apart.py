"""Users who act in the adapter, and the generic user of a run without users: a folder each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from prlhf.export.card import write_card
from prlhf.export.compare import Compared, compare, log_prob, samples
from prlhf.export.names import folder_names
from prlhf.export.person import Person, people
from prlhf.export.whole import read_whole, write_merged
from prlhf.files import full_disk_named
from prlhf.folders import claim, replacing
from prlhf.model.base import pick_dtype
from prlhf.progress import Progress

APART = ("peft", "gguf", "hf", "ollama")


def write_apart(
    run: Path,
    users: Sequence[str],
    format: str,
    out: Path,
    base: str | None,
    trust_remote_code: bool,
    precision: str,
    progress: Progress,
) -> tuple[dict[str, Path], Compared | None]:
    """Write each of `users` into `out` itself or, if there are several, into a folder each in it.

    Returns the folder of each, and the comparison of all with the run; None for GGUF, which only llama.cpp reads.
    """
    names = folder_names(users)
    folders = {user: out if len(users) == 1 else out / names[user] for user in users}
    kind = "export" if format == "hf" else "adapter"
    for folder in folders.values():
        claim(folder, kind, inputs=[run])
    progress.start("export", len(users))
    compared = None
    for person in _people(run, users, format, base, trust_remote_code):
        with full_disk_named(folders[person.user]), replacing(folders[person.user], kind) as folder:
            found = _write(person, format, precision, folder)
            compared = found if compared is None or found is None else compared | found
            write_card(folder, format, [person.user], person.policy, run, person.text)
        progress.advance()
    progress.finish()
    return folders, compared


def _people(
    run: Path, users: Sequence[str], format: str, base: str | None, trust_remote_code: bool
) -> Iterator[Person]:
    """Each of `users`; for a whole model the run is loaded for each of them, since merging uses it up."""
    if format != "hf":
        yield from people(run, users, base, trust_remote_code)
        return
    for user in users:
        yield from people(run, [user], base, trust_remote_code, "fp32")


def _write(person: Person, format: str, precision: str, folder: Path) -> Compared | None:
    if format == "gguf":
        from prlhf.export.gguf import write_gguf

        write_gguf(person, folder)
        return None
    if format == "ollama":
        from prlhf.export.ollama import write_ollama

        write_ollama(person, folder)
        return None
    rows = samples(person.policy, person.run, {person.user: person.user_index})
    if format == "peft":
        from prlhf.export.peft import compare_peft, write_peft

        write_peft(person, folder)
        return compare_peft(person.policy, rows, folder)
    dtype = pick_dtype(precision, torch.device("cpu"))
    write_merged(person.policy, person.user_index, dtype, folder)
    lm, _ = read_whole(folder, dtype)
    return compare(rows, lambda row: log_prob(lm, row.before, row.response), dtype, "the merged model")
