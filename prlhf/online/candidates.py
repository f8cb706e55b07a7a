"""Candidates: the responses of a round with their rewards, as rows of a parquet file, and the comparisons they make.

RUN/candidates/round-1.parquet   what the policy wrote before the first step; the file appears when it is whole
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.dataset import Text, read_table
from prlhf.files import atomic_file, link_or_copy
from prlhf.model.encoding import Encoded
from prlhf.model.rewards import ResponseReader

FOLDER = "candidates"
SCHEMA = pa.schema(
    [
        ("policy_step", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("user_id", pa.string()),
        ("user_index", pa.int32()),
        ("candidate", pa.int32()),
        ("response", pa.string()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("reward", pa.float64()),
        ("shuffled_reward", pa.float64()),
        ("log_prob", pa.float64()),
        ("reference_log_prob", pa.float64()),
        ("sampled", pa.list_(pa.int32())),
        ("token_log_probs", pa.list_(pa.float32())),
        ("token_references", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Candidate:
    """One response to a prompt for a user, and what was measured of it."""

    policy_step: int  # the version of the policy: the optimizer steps that it had made
    prompt_id: str
    prompt: Text  # in the file: as JSON
    user_id: str
    user_index: int
    candidate: int  # its number among those of the same prompt and user, from 0
    response: str
    tokens: int  # without the token that ended it
    finished: bool  # whether the policy ended it; False: it was cut at max_new_tokens
    reward: float  # as the user gives it
    shuffled_reward: float = math.nan  # as another user gives it; this and what follows: nan if not measured
    log_prob: float = math.nan  # in nats, of the policy that wrote it, read as the user
    reference_log_prob: float = math.nan  # in nats, of the starting policy
    sampled: list[int] = field(default_factory=list)  # all token ids that the policy chose, the end's too
    token_log_probs: list[float] = field(default_factory=list)  # those of `log_prob`; this and the next: may be empty
    token_references: list[float] = field(default_factory=list)  # those of `reference_log_prob`

    @property
    def group(self) -> tuple[str, str]:
        """Candidates of one group compete: they answer the same prompt for the same user."""
        return self.prompt_id, self.user_id


class Ranked(NamedTuple):
    """The best and the worst candidate of a group."""

    chosen: Candidate
    rejected: Candidate

    @property
    def name(self) -> str:
        """What an error calls the comparison."""
        return f"step-{self.chosen.policy_step}/{self.chosen.prompt_id}/{self.chosen.user_id}"


def path_of(run: Path, number: int) -> Path:
    """The file of round `number` (from 1) of a run."""
    return run / FOLDER / f"round-{number}.parquet"


def write_candidates(path: Path, rows: Sequence[Candidate]) -> None:
    """Write the file of a round, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    values = [asdict(row) | {"prompt": json.dumps(row.prompt, ensure_ascii=False)} for row in rows]
    with atomic_file(path) as beside:
        pq.write_table(pa.Table.from_pylist(values, SCHEMA), beside)


def read_candidates(path: Path) -> list[Candidate]:
    """The rows of a round. Raises PrlhfError if the file is missing or damaged."""
    rows = read_table(path, SCHEMA, "train again into a new folder")
    return [Candidate(**row | {"prompt": json.loads(row["prompt"])}) for row in rows]


def in_order(rows: Iterable[Candidate]) -> list[Candidate]:
    """`rows` by user, prompt and number: the same order whoever wrote them."""
    return sorted(rows, key=lambda one: (one.user_index, one.prompt_id, one.candidate))


def rounds_of(folder: Path) -> list[Path]:
    """The files of the rounds in a run or in a checkpoint of it."""
    return sorted((folder / FOLDER).glob("round-*.parquet"))


def copy_candidates(source: Path, to: Path) -> None:
    """Copy the rounds that `to` does not have from `source`; one is a run, the other a checkpoint of it."""
    for path in rounds_of(source):
        there = to / FOLDER / path.name
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            with atomic_file(there) as beside:
                link_or_copy(str(path), str(beside))


def move_candidates(source: Path, run: Path) -> None:
    """Put the rounds of `source`, if it has any, in the place of those of `run`; what else is there stays."""
    moved = rounds_of(source)
    for path in rounds_of(run) if moved else []:
        path.unlink()
    for path in moved:
        (run / FOLDER).mkdir(exist_ok=True)
        path.replace(run / FOLDER / path.name)


def forget_candidates(run: Path, user: str) -> None:
    """Remove what was written for `user` from the rounds of a run."""
    for path in rounds_of(run):
        rows = read_candidates(path)
        kept = [row for row in rows if row.user_id != user]
        if len(kept) < len(rows):
            write_candidates(path, kept)


# ---- from candidates to comparisons ----


def groups_of(rows: Iterable[Candidate]) -> dict[tuple[str, str], list[Candidate]]:
    """The candidates that compete, by prompt and user."""
    found: dict[tuple[str, str], list[Candidate]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return found


def ranked(rows: Iterable[Candidate]) -> list[Ranked]:
    """The best against the worst of each group, if their rewards differ.

    A response that was cut loses against one that ended, whatever their rewards: no reward model has seen such texts.
    """
    found = []
    for group in groups_of(rows).values():
        order = sorted(group, key=lambda row: (row.finished, row.reward))
        best, worst = order[-1], order[0]
        if (best.finished, best.reward) > (worst.finished, worst.reward):
            found.append(Ranked(best, worst))
    return found


def encoded(reader: ResponseReader, pair: Ranked) -> Encoded:
    """Two candidates of a group in token ids, as their user reads them; one that was cut has no end to be trained."""
    chosen, rejected = pair
    found = reader.encode(chosen.prompt, chosen.user_id, chosen.response, rejected.response, pair.name)
    return replace(found, chosen=_as_written(found.chosen, chosen), rejected=_as_written(found.rejected, rejected))


def _as_written(ids: list[int], row: Candidate) -> list[int]:
    return ids if row.finished else ids[:-1]
