"""Names of users in paths and in tokens."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

PLAIN = re.compile(r"\w[\w.-]{0,63}", re.ASCII)


def folder_names(users: Sequence[str]) -> dict[str, str]:
    """A name for a folder of each user: the id, or if that is not safe, what is left of it with a digest."""
    alike = Counter(user.casefold() for user in users)  # some file systems take them for one

    def name(user: str) -> str:
        if PLAIN.fullmatch(user) and alike[user.casefold()] == 1:
            return user
        digest = hashlib.sha256(user.encode()).hexdigest()[:8]
        return "-".join(filter(None, [re.sub(r"[^A-Za-z0-9]+", "-", user).strip("-")[:40], digest]))

    return {user: name(user) for user in users}
