"""PRISM's conversations: reading their turns, and the choices along the chosen path.

In every turn, a participant sends one message, gets up to four responses and chooses one, with which the conversation
continues. So nothing after a turn without a chosen response can be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from prlhf.data.identifiers import identifier, user_identifier
from prlhf.data.prism.survey import said, slider_values
from prlhf.data.rows import Dropped, Row
from prlhf.dataset import Message
from prlhf.source.values import Malformed, column, kind, mapping, text

EMPTY = "EMPTY STRING"  # PRISM's mark for an empty message
NO_SURVEY = "conversation without a survey row"


@dataclass(frozen=True)
class Exchange:
    """One message and its responses; "" is a text that PRISM marks as empty, or a missing chosen response."""

    message: str
    chosen: str
    rejected: list[str]


@dataclass(frozen=True)
class TurnChoice:
    """A chosen response and the rejected ones. `prompt`: the conversation up to and including the user's message."""

    turn: int
    prompt: list[Message]
    chosen: str
    rejected: list[str]

    @property
    def example(self) -> dict[str, Any]:
        """An example for a judge, without the history, which may contain the response to judge."""
        return {"prompt": self.prompt[-1]["content"], "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class Conversation:
    """One conversation of PRISM: its user and its turns."""

    id: str
    user_id: str
    turns: list[Exchange]
    feedback: dict[str, Any] = field(default_factory=dict)  # open feedback, and ratings of the first choice

    @property
    def path(self) -> list[Exchange]:
        """The turns up to the first one without a message or a chosen response."""
        return list(takewhile(lambda turn: turn.message and turn.chosen, self.turns))

    @cached_property
    def choices(self) -> list[TurnChoice]:
        """The turns on the path with a rejected response that is not empty and differs from the chosen one."""
        found, history = [], list[Message]()
        for number, turn in enumerate(self.path):
            prompt = [*history, {"role": "user", "content": turn.message}]
            rejected = [response for response in turn.rejected if response and response != turn.chosen]
            if rejected:
                found.append(TurnChoice(number, prompt, turn.chosen, rejected))
            history = [*prompt, {"role": "assistant", "content": turn.chosen}]
        return found

    def rows(self, user_text: str) -> list[Row]:
        """Return one comparison per turn and rejected response."""
        return [
            Row(
                id=f"{self.id}-{choice.turn}-{number}",
                prompt=choice.prompt,
                chosen=_reply(choice.chosen),
                rejected=_reply(response),
                user_id=self.user_id,
                user_text=user_text,
            )
            for choice in self.choices
            for number, response in enumerate(choice.rejected, start=1)
        ]


def read_conversation(value: Any, participants: Container[str]) -> Conversation:
    """Read and check a row of the file of conversations.

    Raises:
        Malformed: a value is missing or of another type.
        Dropped: the user is not one of `participants`.
    """
    row = mapping(value)
    user = user_identifier(column(row, "user_id"), "user_id")
    if user not in participants:
        raise Dropped(NO_SURVEY)
    feedback = {"open_feedback": said(row.get("open_feedback"), "open_feedback")}
    ratings = {name: slider_values(row.get(name), name) for name in ("choice_attributes", "performance_attributes")}
    return Conversation(
        id=identifier(column(row, "conversation_id"), "conversation_id"),
        user_id=user,
        turns=_turns(column(row, "conversation_history")),
        feedback=feedback | ratings,
    )


def count_turns(conversations: Iterable[Conversation]) -> dict[str, int]:
    """Count the turns by their use, and the responses that are in no comparison."""
    counts: Counter[str] = Counter()
    for talk in conversations:
        path, left = talk.path, talk.turns[len(talk.path) :]
        counts["read"] += len(talk.turns)
        counts["without a message or a chosen response"] += bool(left)
        counts["after such a turn"] += len(left[1:])
        counts["without a rejected response"] += len(path) - len(talk.choices)
        counts["with comparisons"] += len(talk.choices)
        counts["responses equal to the chosen one"] += sum(turn.rejected.count(turn.chosen) for turn in path)
        counts["empty responses"] += sum(turn.rejected.count("") for turn in path)
    return dict(counts)


def _turns(history: Any) -> list[Exchange]:
    if not isinstance(history, list) or not history:
        found = "empty" if history == [] else kind(history)
        raise Malformed(f"'conversation_history' is {found}, not a list of messages")
    turns: dict[int, list[Mapping[str, Any]]] = {}
    for item in history:
        message = mapping(item, "a message of 'conversation_history'")
        turns.setdefault(_turn_number(column(message, "turn")), []).append(message)
    for number in range(len(turns)):
        if number not in turns:
            raise Malformed(f"turn {number} is missing, but there is a turn {max(turns)}")
    return [_turn(number, turns[number]) for number in range(len(turns))]


def _turn_number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed(f"'turn' is {value!r}, not a number from 0")
    return value


def _turn(number: int, messages: list[Mapping[str, Any]]) -> Exchange:
    asked, chosen, rejected = list[str](), list[str](), list[str]()
    for message in messages:
        role, content = column(message, "role"), text(column(message, "content"), f"content of turn {number}")
        content = "" if content.strip() == EMPTY else content
        if role == "user":
            asked.append(content)
        elif role == "model":
            (chosen if _is_chosen(message) else rejected).append(content)
        else:
            raise Malformed(f"'role' is {role!r}, neither 'user' nor 'model'")
    if len(asked) != 1:
        raise Malformed(f"turn {number} has {len(asked)} user messages, not one")
    if len(set(chosen)) > 1:  # the same text twice is common: two samples of one model
        raise Malformed(f"turn {number} has {len(set(chosen))} different chosen responses, not one")
    return Exchange(asked[0], chosen[0] if chosen else "", rejected)


def _is_chosen(message: Mapping[str, Any]) -> bool:
    value = column(message, "if_chosen")
    if not isinstance(value, bool):
        raise Malformed(f"'if_chosen' is {kind(value)}, not true or false")
    return value


def _reply(response: str) -> list[Message]:
    return [{"role": "assistant", "content": response}]
