"""The three texts of a comparison in one format, with one answer per response and without repeated prompts.

What can only be guessed raises Malformed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prlhf.data.rows import Row
from prlhf.dataset import Message, Text
from prlhf.source.values import Malformed, kind

REPEATED, SHARED = "prompt taken off both responses", "shared turns moved into the prompt"


def one_format(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Return all three as text or all as messages; text next to messages becomes one message.

    Raises:
        Malformed: one response is text and the other is messages.
    """
    responses = (chosen, rejected)
    mixed = isinstance(chosen, str) != isinstance(rejected, str)
    if mixed:
        kinds = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        words = ", ".join(f"'{name}' is {kind(value)}" for name, value in kinds.items())
        raise Malformed(f"plain text and messages are mixed: {words}")
    if all(isinstance(value, str) for value in (prompt, *responses)):
        return prompt, chosen, rejected
    first, second = (_as_messages("assistant", response) for response in responses)
    return _as_messages("user", prompt), first, second


def as_conversation(prompt: Text, chosen: Text, rejected: Text) -> tuple[list[Message], list[Message], list[Message]]:
    """Return all three as messages."""
    return _as_messages("user", prompt), _as_messages("assistant", chosen), _as_messages("assistant", rejected)


def one_answer_each(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message], list[str]]:
    """Reduce each response to one message of the assistant.

    A prompt that both responses repeat is removed from them (REPEATED). Turns that both responses share are moved into
    the prompt (SHARED).

    Returns:
        The prompt, the chosen and the rejected response, and which of REPEATED and SHARED were done.

    Raises:
        Malformed: a response holds more than one message that the other does not have.
    """
    moved = []
    heads = [_head(prompt, response) for response in (chosen, rejected)]
    if all(head is not None for head in heads) and heads[0] == heads[1]:
        prompt, moved = heads[0] or prompt, [REPEATED]
        chosen, rejected = ([*response[_length(prompt, response) :]] for response in (chosen, rejected))
    elif any(head is not None for head in heads):
        one, other = ("chosen", "rejected") if heads[0] is not None else ("rejected", "chosen")
        raise Malformed(f"'{one}' begins with the prompt, and '{other}' does not")
    if shared := _shared(chosen, rejected):
        if chosen[0]["role"] != "assistant":
            raise Malformed(f"the responses begin with a turn of the {chosen[0]['role']} that is not in the prompt")
        prompt, chosen, rejected = [*prompt, *chosen[:shared]], chosen[shared:], rejected[shared:]
        moved.append(SHARED)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        _check_one_answer(name, response)
    return prompt, chosen, rejected, moved


def without_repeated_text(prompt: str, chosen: str, rejected: str) -> tuple[str, str] | None:
    """Return both responses without the prompt; None if they do not both begin with it, or hold nothing else."""
    for start in (prompt, prompt.rstrip()):
        if chosen.startswith(start) and rejected.startswith(start):
            rest = chosen[len(start) :], rejected[len(start) :]
            return rest if all(one.strip() for one in rest) else None
    return None


def _as_messages(role: str, value: Text) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _head(prompt: list[Message], response: list[Message]) -> list[Message] | None:
    """The prompt as `response` begins with it, with or without its system message; None if it does not."""
    length = _length(prompt, response)
    if not length:
        return None
    own = response[:length]
    return own if len(own) >= len(prompt) else prompt


def _length(prompt: list[Message], response: list[Message]) -> int:
    """The number of messages at the start of `response` that are the prompt; 0 if it does not begin with it."""
    bare, own = (_unsystemed(messages) for messages in (prompt, response))
    if not bare or own[: len(bare)] != bare:
        return 0
    systems = [messages[: len(messages) - len(rest)] for messages, rest in ((prompt, bare), (response, own))]
    if all(systems) and systems[0] != systems[1]:
        return 0
    return len(response) - len(own) + len(bare)


def _unsystemed(messages: list[Message]) -> list[Message]:
    return messages[1:] if messages and messages[0]["role"] == "system" else messages


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """The number of turns that both share, up to the last turn of the user that leaves an answer in each."""
    most = min(len(chosen), len(rejected)) - 1
    alike = next((n for n in range(most) if chosen[n] != rejected[n]), most)
    return next((n for n in range(alike, 0, -1) if chosen[n - 1]["role"] == "user"), 0)


def _check_one_answer(name: str, response: list[Message]) -> None:
    if not response:
        raise Malformed(f"'{name}' holds nothing but the prompt")
    if response[0]["role"] != "assistant":
        raise Malformed(f"'{name}' begins with a turn of the {response[0]['role']}, not of the assistant")
    if len(response) > 1:
        raise Malformed(
            f"'{name}' holds {len(response)} turns that are not in both responses, but only one answer is compared",
            "put the turns before the answer into the prompt",
        )


@dataclass
class Changed:
    """The number of changed rows by the kind of change, and warnings."""

    counts: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def take_off_prompts(parts: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], Changed]:
    """Remove the prompt from text responses that both repeat it, if most rows do.

    If only a few rows do, it is a coincidence ("Hello" answered by "Hello!"); they are kept, with a warning.
    """
    changed = Changed()
    found = {part: [_shorter(row) for row in rows] for part, rows in parts.items()}
    total = sum(map(len, found.values()))
    repeated = sum(row is not None for rows in found.values() for row in rows)
    if repeated * 2 <= total:
        if repeated:
            changed.warnings.append(f"{repeated} rows have responses that both begin with the prompt: kept as they are")
        return {part: list(rows) for part, rows in parts.items()}, changed
    changed.counts[REPEATED] = repeated
    return {
        part: [new or old for new, old in zip(found[part], rows, strict=True)] for part, rows in parts.items()
    }, changed


def _shorter(row: Row) -> Row | None:
    if not (isinstance(row.prompt, str) and isinstance(row.chosen, str) and isinstance(row.rejected, str)):
        return None
    rest = without_repeated_text(row.prompt, row.chosen, row.rejected)
    return replace(row, chosen=rest[0], rejected=rest[1]) if rest and rest[0] != rest[1] else None
