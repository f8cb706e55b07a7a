"""Write what was learned of users, or that one is forgotten, into a model folder: all files at once or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from prlhf.adapt.folder import rebuilt
from prlhf.adapt.known import FILE, KnownChoice, KnownUser, remove_known, write_known
from prlhf.adapt.tables import rewrite_rows
from prlhf.files import sha256
from prlhf.model.checkpoint import ABOUT, read_about
from prlhf.model.user_prior import UserPrior
from prlhf.model.user_store import INDEXED, PLAIN, edit_users, read_users, write_users
from prlhf.model.weights import BLOCK_SUMS, USER_MODEL, check_weights, sum_weights


@dataclass(frozen=True)
class Change:
    """Rows [d] by user index, new users (index, id, text), what is known of users, and their further choices."""

    rows: Mapping[int, Tensor]
    users: Sequence[tuple[int, str, str]] = ()
    known: Sequence[KnownUser] = ()
    choices: Sequence[tuple[int, KnownChoice]] = ()
    forgotten: Mapping[int, str] = field(default_factory=dict)  # ids by user index


def write_change(folder: Path, first: Mapping[str, int], change: Change, prior: UserPrior | None = None) -> None:
    """Apply `change` to the checkpoint in `folder`, and write a `prior` that it does not have yet.

    `first`: the user index of the first row of each table. Other users' rows and all other weights stay byte by byte;
    checksums follow.

    Raises:
        PrlhfError: a file is damaged, or the system refuses to write.
    """
    about = read_about(folder)
    check_weights(folder, about)  # what is damaged must not get a new checksum
    with rebuilt(folder, {USER_MODEL, BLOCK_SUMS, PLAIN, INDEXED, FILE, ABOUT}) as beside:
        count = _write_users(folder, beside, change)
        rewrite_rows(folder / USER_MODEL, beside / USER_MODEL, first, count, change.rows)
        _write_known(folder, beside, change)
        if prior is not None:
            prior.save(beside)
        about |= {"sha256": _sums(beside, about["sha256"])}
        if (beside / FILE).exists():
            about["adapted"] = sha256(beside / FILE)
        (beside / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def _write_users(folder: Path, beside: Path, change: Change) -> int:
    """Write the users of the new folder; returns the last user index."""
    if (folder / INDEXED).exists():
        shutil.copyfile(folder / INDEXED, beside / INDEXED)
        added = [(at, user, text or None) for at, user, text in change.users]
        edit_users(beside / INDEXED, added, list(change.forgotten.values()))
        return read_users(beside, ()).count
    before = read_users(folder)
    known = {at: user for user, at in before.index_of().items() if at not in change.forgotten}
    known |= {at: user for at, user, _ in change.users}
    texts = {user: text for user, text in before.texts.items() if user not in change.forgotten.values()}
    texts |= {user: text for _, user, text in change.users if text}
    count = max([before.count, *known])
    write_users(beside, [known.get(at) for at in range(1, count + 1)], texts)
    return count


def _write_known(folder: Path, beside: Path, change: Change) -> None:
    if (folder / FILE).exists():
        shutil.copyfile(folder / FILE, beside / FILE)
        for user_index in change.forgotten:
            remove_known(beside / FILE, user_index)
    if change.known:
        write_known(beside / FILE, change.known, change.choices)


def _sums(beside: Path, before: Mapping[str, str]) -> dict[str, str]:
    """The checksums of the new folder; those of files that stay are not computed again."""
    kept = {name: value for name, value in before.items() if name not in (USER_MODEL, BLOCK_SUMS)}
    return kept | sum_weights(beside, (beside / INDEXED).exists(), but=kept)
