"""PRISM (section 5.3): `HannahRoseKirk/prism-alignment`, its survey and its conversations, split as in the paper.

A share of the users is unseen: all their dialogues are held out. For every other user, a share of the dialogues is held
out. The only dialogue of a user is held out, so that this user is unseen, too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.prism.conversations import NO_SURVEY, Conversation, count_turns, read_conversation
from prlhf.data.prism.survey import Participant, read_participant
from prlhf.data.rows import REPEAT, DropCounts, LoadedData, Row, RowReader, check_left
from prlhf.data.splits import draw_unseen
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.folders import folder_rows
from prlhf.source.hub import hub_splits
from prlhf.source.raw import RawRows

HUB = "HannahRoseKirk/prism-alignment"
PARTS = ("survey", "conversations")  # the files, and the hub's configs
INSTEAD = "run: prlhf prep prism --source FOLDER --out data/prism (FOLDER holds survey.jsonl and conversations.jsonl)"
OPTIONS = {"prefs", "unseen_fraction", "eval_fraction", "judging_users", "bad_rows"}
UNUSABLE = "conversation without a comparison"

People = Mapping[str, Participant]


@data_set("prism", uses="bad_rows eval_fraction unseen_fraction prefs judging_users")
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Read PRISM's conversations and survey, and split the users into seen and unseen ones.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or no comparison is left.
    """
    source, raw = _open(config.source)
    drops = DropCounts(REPEAT, NO_SURVEY, UNUSABLE)
    reader = RowReader(config.bad_rows, drops, progress)
    survey = reader.read("survey", raw["survey"], lambda value, _: read_participant(value, config.prefs), "participant")
    people = {person.id: person for person in survey}
    talks = reader.read(
        "conversations", raw["conversations"], lambda v, _: read_conversation(v, people), "conversation"
    )
    usable = [talk for talk in talks if talk.choices]
    drops.drop("conversations", UNUSABLE, len(talks) - len(usable))

    drawn = draw_unseen(users_of(usable), config.unseen_fraction, f"{config.seed}-prism-unseen")
    train, held_out = split_dialogues(usable, drawn, config.eval_fraction, config.seed)
    check_left(train, drops, source)
    seen = users_of(train)
    judged = select_judged(users_of(held_out), seen, config.judging_users, config.seed)
    return LoadedData(
        train=_rows(train, people),
        eval=_rows(held_out, people),
        order=seen,
        source=source,
        options=config.model_dump(include=OPTIONS),
        counts=drops.report(),
        notes={
            "participants": {"read": len(people), "without conversations": len(people) - len(users_of(talks))},
            "turns": count_turns(talks),
            "dialogues": {"train": len(train), "eval": len(held_out)},
            "unseen": {"drawn": len(drawn), "with a single dialogue": len(users_of(usable)) - len(drawn) - len(seen)},
            "judging": {"seen": len(judged & set(seen)), "unseen": len(judged - set(seen))},
        },
        judging=[row for talk in held_out if talk.user_id in judged for row in _judging(talk, people, seen)],
    )


def users_of(talks: Iterable[Conversation]) -> list[str]:
    """Return the users of conversations, each once, in order of first appearance."""
    return list(dict.fromkeys(talk.user_id for talk in talks))


def split_dialogues(
    talks: list[Conversation], unseen: Collection[str], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Return (train, eval). All dialogues of `unseen` users are in eval, and `held_out_count` of every other user."""
    rng, in_eval = random.Random(f"{seed}-prism-dialogues"), set[str]()
    by_user: dict[str, list[str]] = {}
    for talk in talks:
        by_user.setdefault(talk.user_id, []).append(talk.id)
    for user, ids in by_user.items():
        in_eval.update(ids if user in unseen else rng.sample(ids, held_out_count(len(ids), fraction)))
    return [talk for talk in talks if talk.id not in in_eval], [talk for talk in talks if talk.id in in_eval]


def held_out_count(dialogues: int, fraction: float) -> int:
    """Return the number of a user's dialogues to hold out: `fraction`, rounded up, but one of several is kept.

    A single dialogue is held out, so its user is unseen. The paper's 162 unseen users of 1,396 are a tenth of the users
    and those without a training dialogue.
    """
    return min(math.ceil(round(fraction * dialogues, 9)), max(dialogues - 1, 1))  # 0.1 * 30 is above 3


def select_judged(users: list[str], seen: Collection[str], count: int, seed: int) -> set[str]:
    """Draw `count` seen and `count` unseen users, or as many as there are."""
    rng = random.Random(f"{seed}-prism-judging")
    kinds = [[user for user in users if user in seen], [user for user in users if user not in seen]]
    return {user for kind in kinds for user in rng.sample(kind, min(count, len(kind)))}


def _rows(talks: list[Conversation], people: People) -> list[Row]:
    return [row for talk in talks for row in talk.rows(people[talk.user_id].text)]


def _judging(talk: Conversation, people: People, seen: Collection[str]) -> list[dict[str, Any]]:
    """One row per choice. Its material has the other choices of the conversation, but not the choice itself."""
    return [
        {
            "prompt": choice.prompt,
            "user_id": talk.user_id,
            "seen": talk.user_id in seen,
            "conversation_id": talk.id,
            "turn": choice.turn,
            "chosen": choice.chosen,
            "material": {
                **people[talk.user_id].material,
                **talk.feedback,
                "examples": [other.example for other in talk.choices if other is not choice],
            },
        }
        for choice in talk.choices
    ]


def _open(source: str | None) -> tuple[str, dict[str, RawRows]]:
    """The source for the manifest, and the rows of each part."""
    if source is None:
        return HUB, {part: _hub_rows(part) for part in PARTS}
    return source, folder_rows(source, {part: part for part in PARTS})


def _hub_rows(part: str) -> RawRows:
    splits = hub_splits(HUB, INSTEAD, part)
    if "train" not in splits:
        raise PrlhfError(f"{HUB}, config {part}, has the splits {', '.join(splits)} and no 'train'", INSTEAD)
    return splits["train"]
