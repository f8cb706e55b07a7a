"""TL;DR (section 5.1): `openai/summarize_from_feedback`, config `comparisons`, filtered as in the paper.

Pairs are kept if their summaries differ, both by supervised policies, and the worker is one of the most active.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.identifiers import user_identifier
from prlhf.data.rows import EQUAL, Convert, DropCounts, Dropped, LoadedData, Row, RowReader, check_left
from prlhf.progress import Progress
from prlhf.responses import words
from prlhf.source.folders import folder_rows
from prlhf.source.hub import hub_parts
from prlhf.source.raw import RawRows
from prlhf.source.values import Malformed, any_text, column, mapping, text

HUB, HUB_CONFIG = "openai/summarize_from_feedback", "comparisons"
HUB_REVISION = "refs/convert/parquet"  # the repository itself is a script, which `datasets` no longer runs
SPLITS = {"train": "train", "eval": "validation"}  # our name -> the hub's
INSTEAD = "run: prlhf prep tldr --source FOLDER --out data/tldr (FOLDER holds train.jsonl and validation.jsonl)"

POLICY, TOP, TIE = "other policies", "less active workers", "equally long"


@data_set("tldr", uses="top_users simulate minority bad_rows")
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Read the TL;DR comparisons; the users are the workers who made them.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or no comparison is left.
    """
    simulated = config.simulate == "length"
    source, raw = _open(config.source)
    drops = DropCounts(POLICY, EQUAL, TOP, TIE)
    reader = RowReader(config.bad_rows, drops, progress)
    parts = {part: reader.read(part, rows, _converter(part)) for part, rows in raw.items()}
    check_left(parts["train"], drops, source)

    workers = most_active(parts["train"], config.top_users)
    parts = {part: _by_workers(part, rows, workers, drops) for part, rows in parts.items()}
    notes: dict[str, Any] = {}
    if simulated:
        minority = choose_minority(workers, config.minority, config.seed)
        notes["simulated"] = {"by": "length", "minority": minority}
        parts = {part: _by_length(part, rows, minority, drops) for part, rows in parts.items()}
        check_left(parts["train"], drops, source)
        workers = most_active(parts["train"], config.top_users)  # some may have had equally long pairs only
    options: dict[str, Any] = {"top_users": config.top_users, "simulate": config.simulate, "bad_rows": config.bad_rows}
    return LoadedData(
        train=parts["train"],
        eval=parts["eval"],
        order=workers,
        source=source,
        options=options | ({"minority": config.minority} if simulated else {}),
        counts=drops.report(),
        notes=notes,
    )


def most_active(rows: list[Row], top: int) -> list[str]:
    """Return the `top` workers with the most comparisons, most active first, and then by name."""
    counts = Counter(row.user_id for row in rows)
    return sorted(counts, key=lambda worker: (-counts[worker], worker))[:top]


def prompt_of(info: Mapping[str, Any]) -> str:
    """Return the paper's prompt. News items have an article instead of a post; null titles and subreddits become blank.

    Raises:
        Malformed: a value is missing or is not text.
    """
    body = column(info, "post")
    if body is None:
        body = info.get("article")
        if body is None:
            raise Malformed("'info.post' and 'info.article' are both null")
    line = {key: column(info, key) for key in ("subreddit", "title")}
    line = {key: "" if value is None else any_text(value, f"info.{key}") for key, value in line.items()}
    return f"SUBREDDIT: r/{line['subreddit']}\nTITLE: {line['title']}\nPOST: {text(body, 'info.post')}\nTL;DR: "


def _open(source: str | None) -> tuple[str, dict[str, RawRows]]:
    """The source for the manifest, and the rows of each part."""
    if source is None:
        parts = hub_parts(HUB, SPLITS, INSTEAD, HUB_CONFIG, HUB_REVISION)
        return f"{HUB}:{HUB_CONFIG}@{HUB_REVISION}", parts
    return source, folder_rows(source, SPLITS)


def _converter(part: str) -> Convert:
    """Raw rows have no id, so it is made of the part and the number of the row."""

    def convert(value: Any, number: int) -> Row:
        row = mapping(value)
        info = mapping(column(row, "info"), "'info'")
        summaries = _summaries(column(row, "summaries"))
        choice = column(row, "choice")
        if not isinstance(choice, int) or isinstance(choice, bool) or choice not in (0, 1):
            raise Malformed(f"'choice' is {choice!r}, not 0 or 1")
        worker = user_identifier(column(row, "worker"), "worker")
        _check_policies(summaries)
        # Stripped because the prompt ends in a space: base models have rarely seen the token of two spaces.
        texts = [text(column(summary, "text"), "summaries.text").strip() for summary in summaries]
        prompt = prompt_of(info)
        if texts[0] == texts[1]:
            raise Dropped(EQUAL)
        return Row(f"{part}-{number}", prompt, texts[choice], texts[1 - choice], worker)

    return convert


def _summaries(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or len(value) != 2:
        raise Malformed("'summaries' is not a list of two")
    return [mapping(summary, "an item of 'summaries'") for summary in value]


def _check_policies(summaries: list[Mapping[str, Any]]) -> None:
    """The paper's filter: both are by supervised policies, and neither by reinforcement learning or from the news."""
    policies = [text(column(summary, "policy"), "summaries.policy") for summary in summaries]
    if not all("sup" in policy and "ppo" not in policy and "cnn" not in policy for policy in policies):
        raise Dropped(POLICY)


def _by_workers(part: str, rows: list[Row], workers: list[str], drops: DropCounts) -> list[Row]:
    wanted = set(workers)
    kept = [row for row in rows if row.user_id in wanted]
    drops.drop(part, TOP, len(rows) - len(kept))
    return kept


def _by_length(part: str, rows: list[Row], minority: list[str], drops: DropCounts) -> list[Row]:
    """The same pairs, with the choice made by length instead of by the worker."""
    kept = []
    for row in rows:
        preferred = prefer_by_length(str(row.chosen), str(row.rejected), shorter=row.user_id in minority)
        if preferred:
            kept.append(Row(row.id, row.prompt, *preferred, user_id=row.user_id))
    drops.drop(part, TIE, len(rows) - len(kept))
    return kept


# ---- simulated users, who choose by length (section 5.1) ----


def minority_size(users: int, share: float) -> int:
    """Return `share` of `users`, rounded, but at least 1 if `share` is above 0."""
    return max(1, round(share * users)) if share > 0 and users else 0


def choose_minority(users: Sequence[str], share: float, seed: int) -> list[str]:
    """Draw the users who prefer the shorter text with `seed`; returns them in the order of `users`."""
    drawn = set(random.Random(f"{seed}-minority").sample(users, minority_size(len(users), share)))
    return [user for user in users if user in drawn]


def prefer_by_length(one: str, other: str, shorter: bool) -> tuple[str, str] | None:
    """Return (chosen, rejected) by the number of words, then of characters; None if the texts are equally long."""
    a, b = _length(one), _length(other)
    if a == b:
        return None
    return (one, other) if (a < b) == shorter else (other, one)


def _length(text: str) -> tuple[int, int]:
    return words(text), len(text)
