"""The users of a run as they are on disk at this moment, found one by one; those asked for last stay in memory.

Users may be learned and forgotten while a run is served (`prlhf adapt`): the next request finds them as they are then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from prlhf.adapt.known import read_users_of
from prlhf.adapt.versions import LearnedVersion, read_versions
from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError
from prlhf.files import sha256
from prlhf.generate.readers import Reader
from prlhf.model.checkpoint import ABOUT, Policy, model_folder, read_about
from prlhf.model.later_users import changes_of, read_later_rows
from prlhf.model.user_models import user_model_of
from prlhf.model.user_store import RowSelection, changed, read_rows, read_users
from prlhf.model.weights import BLOCK_SUMS, USER_MODEL, USER_PRIOR

KEPT = 1024  # users in memory
TRIES = 5  # of reading a folder that is replaced meanwhile

Version = tuple[int, int, str | None]  # of prlhf.json, and of what came after training
UNREAD: Version = (0, 0, None)
Identity = tuple[Version, int, int | None]


@dataclass(frozen=True)
class ServedUser:
    """Somebody who is served, with `rows` [1, width] of the user model's tables; none for the generic user.

    `former`: the number of a former version of this person; None: as they are now.
    """

    reader: Reader
    version: Version = UNREAD
    former: int | None = field(default=None, kw_only=True)
    rows: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def who(self) -> Identity:
        """What tells this person's rows from all others."""
        return self.version, self.reader.user_index, self.former

    @cached_property
    def digest(self) -> bytes:
        """Of the numbers in `rows`: people with the same ones are read alike, whoever they are."""
        found = blake2b()
        for row in self.rows.values():
            found.update(row.contiguous().view(torch.uint8).numpy().tobytes())
        return found.digest()


def generic(user: str = GENERIC) -> ServedUser:
    """The generic user, in the place of a `user` whom the run does not know."""
    return ServedUser(Reader(user, 0, ""))


class Roster:
    """Finds the users of `run`, of which `policy` was loaded. Its methods may be called in any thread."""

    def __init__(self, run: Path, policy: Policy) -> None:
        self._folder = model_folder(run)
        tables = policy.model.users.row_tables()
        self._first = {name: table.first for name, table in tables.items()}
        self._widths = [table.embedding_dim for table in tables.values()]
        self._personal = user_model_of(policy.config).personal
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[str, int | None], ServedUser | None] = OrderedDict()
        self._about: dict[str, Any] = read_about(self._folder)
        self._version = UNREAD

    def find(self, user: str, former: int | None = None) -> ServedUser | None:
        """The person whom the run knows as `user`, or a `former` version; None if it knows nobody by this id, or none.

        Raises:
            PrlhfError: a file is damaged, or the run was replaced by another one.
        """
        with self._lock:
            for last in (False,) * (TRIES - 1) + (True,):
                try:
                    before = self._renew()
                    who = user, former
                    if who in self._found:
                        self._found.move_to_end(who)
                        return self._found[who]
                    person = self._read(user) if former is None else self._read_former(user, former)
                    if before == self._now():
                        return self._keep(who, person)
                except (PrlhfError, OSError):
                    if last:
                        raise
        raise PrlhfError(f"{self._folder} is being changed", "try again")

    def names(self, most: int) -> list[str] | None:
        """The ids of all users, or None if there are more than `most`."""
        with self._lock:
            if read_users(self._folder, ()).count > most:
                return None
            return read_users(self._folder).ids

    def versions(self, person: ServedUser) -> list[LearnedVersion]:
        """The versions of somebody who was found here, the present one last; none if they were not adapted."""
        return read_versions(self._folder, person.reader.user_index)

    def _now(self) -> Version:
        seen = (self._folder / ABOUT).stat()
        return seen.st_ino, seen.st_mtime_ns, changes_of(self._folder)

    def _renew(self) -> Version:
        """Look whether anything has changed, and forget what was read before that."""
        version = self._now()
        if version[:2] != self._version[:2]:
            about = read_about(self._folder)
            if _shared(about) != _shared(self._about):
                raise PrlhfError(f"{self._folder} holds another model than the one that is served", "start again")
            if BLOCK_SUMS not in about["sha256"] and sha256(self._folder / USER_MODEL) != about["sha256"][USER_MODEL]:
                raise changed(self._folder / USER_MODEL)
            self._about = about
        if version != self._version:
            self._found.clear()
            self._version = version
        return version

    def _read(self, user: str) -> ServedUser | None:
        users = read_users(self._folder, [user])
        at = users.index_of().get(user)
        if at is None:
            return None
        reader = Reader(user, at, users.texts.get(user, ""))
        if not self._personal:
            return ServedUser(reader)
        later = next(iter(read_later_rows(self._folder, [at])), None)
        if later is not None:
            return ServedUser(reader, self._version, self._split(later.numbers))
        return ServedUser(reader, self._version, self._rows(at, users.trained))

    def _read_former(self, user: str, number: int) -> ServedUser | None:
        present = self._read(user)
        versions = read_versions(self._folder, present.reader.user_index) if present else []
        if present is None or not versions or number == versions[-1].number:
            return present if versions else None
        if number == 0:
            at = present.reader.user_index
            start = read_users_of(self._folder, [at])[at].start
            # who was not trained was answered as the generic user before
            return replace(present, former=0, rows=self._split(start.float())) if len(start) else generic(user)
        found = next((each for each in versions if each.number == number and each.numbers), None)
        if found is None or found.numbers is None:
            return None
        return replace(present, former=number, rows=self._split(found.numbers[0]))

    def _split(self, row: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._first, row[None].split(self._widths, 1), strict=True))

    def _rows(self, at: int, count: int) -> dict[str, Tensor]:
        """The rows that training wrote, of which there are `count`."""
        path = self._folder / USER_MODEL
        if BLOCK_SUMS in self._about["sha256"]:
            sums = (self._folder / BLOCK_SUMS).read_text().split()
            some = {name: RowSelection([at - first], count + 1 - first) for name, first in self._first.items()}
            found = read_rows(path, sums, some)
            return {name: found[name] for name in self._first}
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name)[at - first : at - first + 1] for name, first in self._first.items()}

    def _keep(self, who: tuple[str, int | None], person: ServedUser | None) -> ServedUser | None:
        self._found[who] = person
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
        return person


def _shared(about: Mapping[str, Any]) -> dict[str, str]:
    """The checksums of what all users share."""
    of_users = (USER_MODEL, BLOCK_SUMS, USER_PRIOR)
    return {name: value for name, value in about["sha256"].items() if name not in of_users}
