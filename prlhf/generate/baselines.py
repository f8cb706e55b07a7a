"""What writes in place of a personalized model: each baseline is one object.

none        the run itself: not a baseline
base        the base model, which does not know users
oracle      the base model, told the user's true preference in words ("with preference prompt", paper, section 5.2)
in-context  the base model, shown some of the user's own training comparisons, as prompt and chosen response
chosen      no model: the chosen responses of the held-out data themselves (paper, section 5.3)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from typing_extensions import override

from prlhf.config import GenerateConfig
from prlhf.dataset import Comparison, Prepared, Text, prompt_id
from prlhf.errors import PrlhfError
from prlhf.extensions import BASELINES
from prlhf.generate.readers import Reader

SEPARATOR = "\n\n"  # between examples in plain text

Fits = Callable[[Text], bool]  # whether the model's context has room for a prompt


class Baseline:
    """Who writes, and what it is shown. A subclass has a name by the decorator `baseline`."""

    needs_data: ClassVar[bool] = False
    needs_run: ClassVar[bool] = False  # False: a base model named by `config.model` will do
    needs_model: ClassVar[bool] = True  # False: nothing is written, but copied from the data, which it needs
    as_base: ClassVar[bool] = False  # whether the base writes alone, adapter and user vectors off
    generic_only: ClassVar[bool] = False  # whether it writes for the generic user alone
    own_prompts: ClassVar[bool] = False  # whether each user gets the held-out prompts that they were asked
    cuts_prompts: ClassVar[bool] = True  # whether max_prompt_tokens holds for what it shows
    uses: ClassVar[frozenset[str]] = frozenset()  # keys of GenerateConfig that only some baselines read

    def __init__(self, data: Prepared | None, config: GenerateConfig) -> None:
        """Take the prepared data set, if any. Raises PrlhfError if it lacks what the baseline shows."""
        self.data, self.config = data, config

    def show(self, prompt: Text, reader: Reader, fits: Fits) -> tuple[Text, str]:
        """What the model is shown for `prompt`, and a text that ends its response ("": none)."""
        raise NotImplementedError(f"baseline = {self.config.baseline} has no model")

    def responses(self, pairs: Sequence[tuple[Text, Reader]]) -> list[str | None]:
        """Without a model: a response for each (prompt, reader), None where there is none."""
        raise NotImplementedError(f"baseline = {self.config.baseline} has a model that writes")

    def settings(self) -> dict[str, Any]:
        """What its responses depend on besides the settings that all responses depend on."""
        return {}

    def notes(self) -> list[str]:
        """What to tell the user after everything was shown."""
        return []


B = TypeVar("B", bound=type[Baseline])


def baseline(name: str) -> Callable[[B], B]:
    """Register the decorated class as the baseline `name`."""
    return BASELINES.decorator(name)


@baseline("none")
class NoBaseline(Baseline):
    """The run itself, shown the prompt as it is."""

    needs_run = True

    @override
    def show(self, prompt: Text, reader: Reader, fits: Fits) -> tuple[Text, str]:
        return prompt, ""


@baseline("base")
class BaseAlone(NoBaseline):
    """The base model, for nobody in particular."""

    needs_run = False
    as_base = generic_only = True


@baseline("oracle")
class ToldPreference(Baseline):
    """The base model, told the user's true preference in words."""

    needs_data = as_base = True
    cuts_prompts = False

    @override
    def __init__(self, data: Prepared | None, config: GenerateConfig) -> None:
        super().__init__(data, config)
        if data and not any(user.preference for user in data.users):
            raise PrlhfError(
                f"baseline = oracle, and data set '{data.manifest.get('dataset')}' has no user's preference in words",
                "use psoups or a demo with profiles, or --baseline base",
            )

    @override
    def show(self, prompt: Text, reader: Reader, fits: Fits) -> tuple[Text, str]:
        return with_preference(prompt, reader.preference), ""

    @override
    def settings(self) -> dict[str, Any]:
        return {"data": self.data.manifest["content_hash"]} if self.data else {}


@baseline("in-context")
class ShownExamples(Baseline):
    """The base model, shown some of the user's own choices: from training, or from `choices.jsonl` if unseen."""

    needs_data = as_base = True
    cuts_prompts = False
    uses = frozenset(("examples",))

    @override
    def __init__(self, data: Prepared | None, config: GenerateConfig) -> None:
        super().__init__(data, config)
        self.dropped = 0
        self._choices = OwnChoices(data, config.examples, config.seed) if data else None

    @override
    def show(self, prompt: Text, reader: Reader, fits: Fits) -> tuple[Text, str]:
        """Shows as many of the reader's own choices as fit; those furthest from the prompt are dropped first."""
        examples = self._choices.of(reader.id, prompt) if self._choices else []
        while examples and not fits(with_examples(prompt, examples)):
            examples = examples[1:]
            self.dropped += 1
        if not examples:
            return prompt, ""
        # in plain text the base would go on to another example
        return with_examples(prompt, examples), SEPARATOR if isinstance(prompt, str) else ""

    @override
    def settings(self) -> dict[str, Any]:
        return ({"data": self.data.manifest["content_hash"]} if self.data else {}) | {"examples": self.config.examples}

    @override
    def notes(self) -> list[str]:
        return [f"{self.dropped} examples were dropped: no room for them in the context"] if self.dropped else []


@baseline("chosen")
class ChosenResponses(Baseline):
    """The chosen responses of the held-out data."""

    needs_data = own_prompts = True
    needs_model = False

    @override
    def responses(self, pairs: Sequence[tuple[Text, Reader]]) -> list[str | None]:
        """The chosen response of each pair's first held-out comparison; None where the user was never asked."""
        known: dict[tuple[str, str], Text] = {}
        for row in self.data.eval if self.data else []:
            known.setdefault((row.prompt_id, row.user_id), row.chosen)
        return [_plain(known.get((prompt_id(prompt), reader.id))) for prompt, reader in pairs]


def baseline_of(config: GenerateConfig, data: Prepared | None = None) -> Baseline:
    """The baseline that `config` names."""
    kind: type[Baseline] = BASELINES[config.baseline]
    return kind(data, config)


# ---- what is shown ----


class OwnChoices:
    """Each user's known choices, in an order drawn once for each user: the first `count` serve as examples.

    They are the training comparisons of a seen user, and the rows of `choices.jsonl` of an unseen one.
    """

    def __init__(self, data: Prepared, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._rows = defaultdict[str, dict[str, Comparison]](dict)  # user -> prompt id -> first row
        for row in [*data.train, *data.choices]:
            self._rows[row.user_id].setdefault(row.prompt_id, row)

    def of(self, user_id: str, prompt: Text) -> list[Comparison]:
        """`count` of the user's comparisons, of distinct prompts other than `prompt`; none if no choice is known."""
        rows = list(self._rows.get(user_id, {}).values())
        random.Random(f"{self.seed}\0{user_id}\0examples").shuffle(rows)
        asked = prompt_id(prompt)
        return [row for row in rows if row.prompt_id != asked][: self.count]


def with_preference(prompt: Text, preference: str) -> Text:
    """`prompt` with the user's preference in words.

    It stands at the end of the last user message, as in P-SOUPS, or in a line before a plain prompt. A user without
    one gets the prompt alone.

    Raises:
        PrlhfError: the conversation has no message of the user.
    """
    if not preference:
        return prompt
    if isinstance(prompt, str):
        return f"{preference}\n{prompt}"
    asked = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not asked:
        raise PrlhfError(
            "a prompt without a user message has no place for a preference", "add a user message, or remove the prompt"
        )
    last = prompt[asked[-1]]
    return [*prompt[: asked[-1]], last | {"content": f"{last['content']} {preference}"}, *prompt[asked[-1] + 1 :]]


def with_examples(prompt: Text, examples: Sequence[Comparison]) -> Text:
    """`prompt` after `examples`, each answered by its chosen response.

    Plain text has an empty line between them; in a conversation they are earlier turns. Of the system messages only the
    prompt's own is kept, in front.
    """
    if isinstance(prompt, str):
        return "".join(f"{row.prompt}{row.chosen}{SEPARATOR}" for row in examples) + prompt
    turns = [m for row in examples for part in (row.prompt, row.chosen) for m in part if isinstance(m, dict)]
    system = [m for m in prompt if m["role"] == "system"]
    return [*system, *(m for m in [*turns, *prompt] if m["role"] != "system")]


def _plain(text: Text | None) -> str | None:
    """A response as text: the words of its messages."""
    return text if text is None or isinstance(text, str) else "".join(message["content"] for message in text)
