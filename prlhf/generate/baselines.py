"""What the baselines show the base model instead of a user's embedding, and the one that needs no model.

oracle      the user's true preference in words (the paper's "with preference prompt", section 5.2)
in-context  some of the user's own training comparisons, as prompt and chosen response
chosen      nothing: the chosen responses of the held-out data themselves (section 5.3)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from prlhf.dataset import Comparison, Prepared, Text, prompt_id
from prlhf.errors import PrlhfError
from prlhf.generate.pairs import Pair

SEPARATOR = "\n\n"  # between examples in plain text


def with_preference(prompt: Text, preference: str) -> Text:
    """`prompt` with the user's preference in words.

    It stands at the end of the last user message, as P-SOUPS has it, or in a line before a plain prompt. A user without
    one gets the prompt alone.
    """
    if not preference:
        return prompt
    if isinstance(prompt, str):
        return f"{preference}\n{prompt}"
    asked = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not asked:
        raise PrlhfError("a prompt without a user message has no place for a preference", "mend the prompt")
    last = prompt[asked[-1]]
    return [*prompt[: asked[-1]], last | {"content": f"{last['content']} {preference}"}, *prompt[asked[-1] + 1 :]]


def with_examples(prompt: Text, examples: Sequence[Comparison]) -> Text:
    """`prompt` after `examples`, each answered by its chosen response.

    As text with an empty line between, or as earlier turns. Of the system messages only the prompt's own is kept, in
    front.
    """
    if isinstance(prompt, str):
        return "".join(f"{row.prompt}{row.chosen}{SEPARATOR}" for row in examples) + prompt
    turns = [m for row in examples for part in (row.prompt, row.chosen) for m in part if isinstance(m, dict)]
    system = [m for m in prompt if m["role"] == "system"]
    return [*system, *(m for m in [*turns, *prompt] if m["role"] != "system")]


class OwnChoices:
    """Each user's training comparisons in a random order that belongs to the user and `seed`."""

    def __init__(self, data: Prepared, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._rows: defaultdict[str, dict[str, Comparison]] = defaultdict(dict)  # user -> prompt id -> first row
        for row in data.train:
            self._rows[row.user_id].setdefault(row.prompt_id, row)

    def of(self, user_id: str, prompt: Text) -> list[Comparison]:
        """`count` of the user's comparisons, of distinct prompts other than `prompt`; none for the unseen."""
        rows = list(self._rows.get(user_id, {}).values())
        random.Random(f"{self.seed}\0{user_id}\0examples").shuffle(rows)
        asked = prompt_id(prompt)
        return [row for row in rows if row.prompt_id != asked][: self.count]


def check_preferences(data: Prepared) -> None:
    """Raise PrlhfError if the data set tells no user's preference in words, which `oracle` needs."""
    if not any(user.preference for user in data.users):
        raise PrlhfError(
            f"baseline = oracle, and data set '{data.manifest.get('dataset')}' knows no user's preference in words",
            "use psoups or a demo with profiles, or --baseline base",
        )


def chosen_responses(data: Prepared, pairs: Sequence[Pair]) -> list[str | None]:
    """The chosen response of each pair's first held-out comparison; None where the user was never asked."""
    known: dict[tuple[str, str], Text] = {}
    for row in data.eval:
        known.setdefault((row.prompt_id, row.user_id), row.chosen)
    return [_plain(known.get((prompt_id(prompt), reader.id))) for prompt, reader in pairs]


def _plain(text: Text | None) -> str | None:
    """A response as text: the words of its messages."""
    return text if text is None or isinstance(text, str) else "".join(message["content"] for message in text)
