"""What supervised fine-tuning imitates: the chosen responses to the prompts, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prlhf.dataset import Comparison, prompt_id


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response to imitate, in token ids; the response ends where its turn does unless it was cut."""

    prompt: list[int]
    response: list[int]


def distinct(rows: Sequence[Comparison]) -> list[Comparison]:
    """The first comparison of each (prompt, chosen) pair: several users may have chosen the same."""
    first: dict[tuple[str, str], Comparison] = {}
    for row in rows:
        first.setdefault((prompt_id(row.prompt), prompt_id(row.chosen)), row)
    return list(first.values())
