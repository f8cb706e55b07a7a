"""API keys: a file of their hashes, each with the users that it may speak as. The keys themselves are stored nowhere.

# sha256 of the key                                                users, or * for everyone
9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  ann,bob
"""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError, one_line

HASH = re.compile(r"[0-9a-f]{64}")
EVERYONE = "*"
FORM = "write on each line the SHA-256 of a key, a space, and user ids with commas between, or *"


@dataclass(frozen=True)
class Caller:
    """Who sends a request: the users that it may speak as, None for everyone."""

    users: frozenset[str] | None = None

    def may_speak_as(self, user: str) -> bool:
        """Whether a request for `user` is allowed."""
        return self.users is None or user in self.users

    @property
    def only(self) -> str | None:
        """The user of a caller who has one."""
        return next(iter(self.users)) if self.users is not None and len(self.users) == 1 else None


def read_keys(path: Path) -> dict[str, Caller]:
    """The callers by the hash of their key.

    Raises:
        PrlhfError: the file cannot be read, or a line is not a hash with users.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PrlhfError(f"cannot read the keys {path}: {one_line(error)}", "give a text file") from error
    found: dict[str, Caller] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        hashed, _, users = line.strip().partition(" ")
        if not HASH.fullmatch(hashed.lower()) or not users.strip() or hashed.lower() in found:
            raise PrlhfError(f"line {number} of the keys {path} is not a hash with users, or its hash is twice", FORM)
        found[hashed.lower()] = Caller(None if users.strip() == EVERYONE else frozenset(_ids(users, path, number)))
    if not found:
        raise PrlhfError(f"the keys {path} hold no key", FORM)
    return found


def _ids(users: str, path: Path, number: int) -> list[str]:
    """Ids, read as a line of CSV: one that holds a comma stands in double quotes."""
    try:
        row = next(csv.reader([users.strip()], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise PrlhfError(f"line {number} of the keys {path}: {one_line(error)}", FORM) from error
    return [user.strip() for user in row if user.strip()]


def caller_of(authorization: str | None, keys: Mapping[str, Caller] | None) -> Caller | None:
    """The caller of a request with this `Authorization` header; None: it has no valid key. Without keys: anyone."""
    if keys is None:
        return Caller()
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return keys.get(hashlib.sha256(key.strip().encode()).hexdigest())


def is_loopback(host: str) -> bool:
    """Whether an address, or the name `localhost`, is one that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(config: ServeConfig) -> None:
    """Refuse to serve others without keys. Raises PrlhfError."""
    if config.keys is None and not is_loopback(config.host):
        raise PrlhfError(
            f"host = {config.host} lets other machines speak as any user",
            "give --keys FILE, or listen on 127.0.0.1 alone",
        )
