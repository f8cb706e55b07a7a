"""What the model is shown: each (prompt, reader) pair as the token ids it is to continue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from prlhf.config import GenerateConfig
from prlhf.dataset import Comparison, Prepared, Text, prompt_id
from prlhf.generate.baselines import SEPARATOR, OwnChoices, with_examples, with_preference
from prlhf.generate.decoding import Job
from prlhf.generate.pairs import Pair, Reader
from prlhf.model.checkpoint import Policy
from prlhf.model.encoding import Encoder
from prlhf.model.fitting import Fitting
from prlhf.progress import SILENT, Progress


def plan(
    policy: Policy, pairs: Sequence[Pair], data: Prepared | None, config: GenerateConfig, progress: Progress = SILENT
) -> list[Job]:
    """One job per pair, in their order. A job keeps the prompt as it was asked, whatever a baseline makes of it.

    Raises PrlhfError with all the prompts that do not fit, unless `config.skip_long` leaves them out.
    """
    planner, fitting = Planner(policy, data, config), Fitting(config.skip_long)
    jobs = [job for _, job in fitting.part("(prompt, user) pairs", pairs, lambda pair: planner.job(*pair))]
    fitting.check(advice="shorten them, or set a smaller --max-new-tokens")
    (skipped,) = fitting.skipped.values()
    if skipped:
        progress.note(f"{skipped:,} (prompt, user) pairs do not fit and were left out (skip_long)")
    if planner.dropped:
        progress.note(f"{planner.dropped} examples were dropped: no room for them in the context")
    planner.encoder.note_cut(progress)
    return jobs


class Planner:
    """Tokenises each prompt once per room it has, and counts the examples there was no room for."""

    def __init__(self, policy: Policy, data: Prepared | None, config: GenerateConfig) -> None:
        self.config, self.encoder = config, encoder_for(policy, data, config)
        self.dropped = 0
        self._choices = None
        if data and config.baseline == "in-context":
            self._choices = OwnChoices(data, config.examples, config.seed)
        self._texts: dict[str, list[int]] = {}
        self._prompts: dict[tuple[str, int], list[int]] = {}

    def job(self, prompt: Text, reader: Reader) -> Job:
        """What the model is given for `prompt` and `reader`: examples, preference and text are cut to fit."""
        if reader.text not in self._texts:
            self._texts[reader.text] = self.encoder.text(reader.text)
        text, asked = self._texts[reader.text], prompt
        prompt = self.encoder.asked(asked, prompt_id(asked))
        room = self.encoder.limit - self.encoder.user_tokens - len(text) - self.config.max_new_tokens
        examples = self._examples(prompt, reader, room)
        shown = with_examples(prompt, examples) if examples else prompt
        if self.config.baseline == "oracle":
            shown = with_preference(prompt, reader.preference)
        key = prompt_id(shown), room
        if key not in self._prompts:
            self._prompts[key] = self.encoder.prompt(shown, room, prompt_id(asked), len(text))
        text, ids = self.encoder.before(text, self._prompts[key])
        stop = SEPARATOR if examples and isinstance(prompt, str) else ""  # the base would go on to a next example
        return Job(prompt_id(asked), asked, text + ids, reader.id, reader.user_index, stop)

    def _examples(self, prompt: Text, reader: Reader, room: int) -> list[Comparison]:
        """As many of the reader's own choices as fit; those furthest from the prompt go first."""
        examples = self._choices.of(reader.id, prompt) if self._choices else []
        while examples and len(self.encoder.prompt(with_examples(prompt, examples), sys.maxsize, "")) > room:
            examples = examples[1:]
            self.dropped += 1
        return examples


def encoder_for(policy: Policy, data: Prepared | None, config: GenerateConfig) -> Encoder:
    """Bound by the model's context: training's budget of tokens does not bind here.

    A baseline knows no user, and what it shows before the prompt must not be cut off with a long prompt's beginning.
    Where the run does not say whether it was trained on conversations, or there is none, `data` that are make plain
    prompts a user's message for a model with a chat template.
    """
    conversational = policy.conversational
    if conversational is None and data and data.conversational and policy.tokenizer.chat_template:
        conversational = True
    options = policy.config.template_options | config.template_options
    encoder = replace(
        policy.encoder(), limit=policy.base.context, conversational=conversational, template_options=options
    )
    if config.baseline == "none":
        return encoder
    whole = config.baseline in ("oracle", "in-context")
    prompt_limit = None if whole else encoder.prompt_limit
    return replace(encoder, user_tokens=0, use_text=False, prompt_limit=prompt_limit)
