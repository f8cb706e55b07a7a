"""Comparisons of several turns, and those whose responses repeat the prompt, as one answer after one prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from prlhf.dataset import Comparison, Message, Text
from prlhf.errors import PrlhfError


def one_answer(row: Comparison, told: Counter[str]) -> Comparison:
    """`row` with responses of one assistant message each, so that no word of the user is trained as a response.

    A prompt that both responses repeat is taken off, and turns that both begin with go to the prompt; `told` counts
    both. Raises PrlhfError where that leaves other turns than one answer.
    """
    prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
    if _repeated(prompt, chosen) and _repeated(prompt, rejected):
        told["repeats"] += 1
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return row if chosen is row.chosen else replace(row, chosen=chosen, rejected=rejected)
    shared = _shared(chosen, rejected)
    if shared:
        told["turns moved"] += 1
        prompt, chosen, rejected = [*prompt, *chosen[:shared]], chosen[shared:], rejected[shared:]
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        roles = [message["role"] for message in response]
        if roles != ["assistant"]:
            raise PrlhfError(
                f"the {name} response of '{row.id}' is not one message of the assistant but {', '.join(roles)}",
                "put the turns before the last answer into the prompt, and give responses the role 'assistant'",
            )
    return replace(row, prompt=prompt, chosen=chosen, rejected=rejected)


def _repeated(prompt: Text, response: Text) -> bool:
    """Whether a response begins with the whole prompt and goes on; a plain prompt may not end within a word."""
    if isinstance(prompt, str) and isinstance(response, str):
        after = response[len(prompt) : len(prompt) + 1]
        return bool(prompt.strip() and after) and response.startswith(prompt) and not (prompt[-1:] + after).isalnum()
    if isinstance(prompt, str) or isinstance(response, str):
        return False
    return len(response) > len(prompt) and response[: len(prompt)] == prompt


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with, the last of either left out."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1)
