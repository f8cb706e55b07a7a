"""For whom a response is written, and to which prompt: the (prompt, reader) pairs of `prlhf generate`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Prepared, Text, prompt_id
from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.generate.prompts import read_prompts

GROUPS = ("all", "seen", "unseen")


@dataclass(frozen=True)
class Reader:
    """Someone a response is written for."""

    id: str
    user_index: int  # 0: generic, or unseen in training
    text: str  # about the user; may be ""
    preference: str = ""  # what the user truly prefers, in words: for the oracle alone


Pair = tuple[Text, Reader]


def own_prompts(config: GenerateConfig) -> bool:
    """Whether a user gets prompts of their own, and not every prompt. The data's chosen responses are their users'."""
    return config.prompts in ("own", "judging") or (config.prompts == "eval" and config.baseline == "chosen")


def known_readers(seen: Mapping[str, int], texts: Mapping[str, str], data: Prepared | None) -> dict[str, Reader]:
    """Everyone a response can be written for.

    The generic user, the `seen` users with their indices, and the data's other users, of index 0 but perhaps with a
    text.
    """
    preferences = {user.id: user.preference for user in data.users} if data else {}
    known = {GENERIC: Reader(GENERIC, 0, "")}
    for user, user_index in seen.items():
        known[user] = Reader(user, user_index, texts.get(user, ""), preferences.get(user, ""))
    for other in data.users if data else []:
        known.setdefault(other.id, Reader(other.id, 0, other.text, other.preference))
    return known


def choose_readers(known: Mapping[str, Reader], config: GenerateConfig) -> list[Reader]:
    """The users asked for; ids nobody knows are refused, or served as the generic user where allowed.

    `all` is the seen users and the generic one; with prompts of one's own, the seen and the unseen users.
    """
    if config.baseline == "base":
        return [known[GENERIC]]
    people = [reader for reader in known.values() if reader.id != GENERIC]
    seen = [reader for reader in people if reader.user_index > 0]
    groups = {
        "all": people if own_prompts(config) else [*seen, known[GENERIC]],
        "seen": seen,
        "unseen": [reader for reader in people if reader.user_index == 0],
    }
    chosen: dict[str, Reader] = {}
    for name in _names(config):
        if name not in groups and name not in known and not config.unknown_as_generic:
            hint = nearest(name, [*known, *GROUPS])
            if any("," in user for user in known):
                hint += " (an id with a comma stands in double quotes)"
            raise PrlhfError(f"user '{name}' is unknown to this model", f"{hint} or --unknown-as-generic")
        chosen |= {reader.id: reader for reader in groups.get(name, [known.get(name, Reader(name, 0, ""))])}
    if not chosen:
        raise PrlhfError(
            f"users = '{config.users}' names no user", "use all, seen, unseen, generic, or ids separated by commas"
        )
    return list(chosen.values())


def named_users(config: GenerateConfig) -> set[str] | None:
    """The ids among `config.users`, as far as only they are asked for; None where a group is."""
    names = set(_names(config))
    return None if names & set(GROUPS) else names - {GENERIC}


def _names(config: GenerateConfig) -> list[str]:
    """The names in `config.users`, as a line of CSV: an id that holds a comma stands in double quotes."""
    try:
        parts = next(csv.reader([config.users], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise PrlhfError(
            f"users = '{config.users}' cannot be read: {one_line(error)}",
            "separate ids by commas; write an id with a comma or a quote as in '\"Lee, Ann\",bob'",
        ) from error
    return [name for part in parts if (name := part.strip())]


def choose_pairs(data: Prepared | None, readers: Sequence[Reader], config: GenerateConfig) -> list[Pair]:
    """Every pair to write, by prompt in the order of their source, then by user.

    With prompts of one's own `max_prompts` holds for each user, and the generic user answers all that are left.
    """
    if not own_prompts(config):
        return [(prompt, reader) for prompt in shared_prompts(data, config) for reader in readers]
    by_id = {reader.id: reader for reader in readers}
    users_of: dict[str, tuple[Text, list[str]]] = {}
    for prompt, user in _of_ones_own(data, config):
        users_of.setdefault(prompt_id(prompt), (prompt, []))[1].append(user)
    pairs = [(prompt, by_id[u]) for prompt, users in users_of.values() for u in [*users, GENERIC] if u in by_id]
    if not pairs:
        raise PrlhfError(
            f"prompts = {config.prompts} holds no prompt for users = {config.users}", "ask for other users or prompts"
        )
    return pairs


def shared_prompts(data: Prepared | None, config: GenerateConfig) -> list[Text]:
    """Distinct prompts for everyone, in the order of their source."""
    if config.prompts == "eval":
        found = [row.prompt for row in data.eval] if data else []
    else:
        found = read_prompts(Path(config.prompts), config.prompt_column)
    distinct = list({prompt_id(prompt): prompt for prompt in found}.values())
    if not distinct:
        raise PrlhfError(f"prompts = {config.prompts} holds no prompt", "give a file with prompts")
    return distinct[: config.max_prompts]


def _of_ones_own(data: Prepared | None, config: GenerateConfig) -> list[tuple[Text, str]]:
    """Distinct (prompt, user id), at most `max_prompts` a user."""
    rows: Iterable[tuple[Text, str]] = ((row.prompt, row.user_id) for row in data.eval) if data else []
    if config.prompts == "judging":
        rows = [(row["prompt"], row["user_id"]) for row in data.judging] if data else []
        if not rows:
            raise PrlhfError(
                "prompts = judging, and the data set has no judging.jsonl", "use --prompts own, or eval, or a file"
            )
    kept, taken = [], Counter[str]()
    for prompt, user in {(prompt_id(prompt), user): (prompt, user) for prompt, user in rows}.values():
        if config.max_prompts is None or taken[user] < config.max_prompts:
            taken[user] += 1
            kept.append((prompt, user))
    return kept
