"""What the model is shown: each (prompt, reader) pair as a request, with the token ids that it continues."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prlhf.config import GenerateConfig
from prlhf.dataset import Text, prompt_id
from prlhf.generate.baselines import Baseline
from prlhf.generate.pairs import Pair
from prlhf.generate.readers import Reader
from prlhf.model.checkpoint import Policy
from prlhf.model.encoding import Encoder
from prlhf.model.fitting import Fitting
from prlhf.progress import SILENT, Progress


@dataclass(frozen=True)
class WriteRequest:
    """One response to write."""

    prompt_id: str
    prompt: Text
    ids: list[int]  # text about the user + prompt
    user_id: str
    user_index: int
    stop: str = ""  # text that ends the response too
    candidate: int = 0  # of best-of-N: each has its own random numbers
    about: int = 0  # how many of `ids` are text about the user


def row_seed(seed: int, request: WriteRequest) -> int:
    """A request's own seed, 63 bits of a hash, so that a response does not depend on what is written beside it."""
    candidate = f"\0{request.candidate}" if request.candidate else ""
    digest = hashlib.sha256(f"{seed}\0{request.prompt_id}\0{request.user_id}{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def plan_requests(
    policy: Policy, pairs: Sequence[Pair], baseline: Baseline, config: GenerateConfig, progress: Progress = SILENT
) -> list[WriteRequest]:
    """One request per pair, in their order. A request keeps the prompt as it was asked, whatever a baseline shows.

    Raises:
        PrlhfError: some prompts do not fit, and `config.skip_long` does not leave them out; it names them all.
    """
    planner, fitting = Planner(policy, baseline, config), Fitting(config.skip_long)
    found = fitting.part("(prompt, user) pairs", pairs, lambda pair: planner.request(*pair))
    fitting.check(advice="shorten them, or set a smaller --max-new-tokens")
    (skipped,) = fitting.skipped.values()
    if skipped:
        progress.note(f"{skipped:,} (prompt, user) pairs do not fit and were left out (skip_long)")
    for line in baseline.notes():
        progress.note(line)
    planner.encoder.note_cut(progress)
    return [request for _, request in found]


class Planner:
    """Makes requests; tokenizes each prompt once per room that it has."""

    def __init__(self, policy: Policy, baseline: Baseline, config: GenerateConfig) -> None:
        self.baseline, self.config = baseline, config
        self.encoder = encoder_for(policy, baseline, config)
        self._texts: dict[str, list[int]] = {}
        self._prompts: dict[tuple[str, int], list[int]] = {}

    def request(self, prompt: Text, reader: Reader) -> WriteRequest:
        """What the model is given for `prompt` and `reader`, within its context. Raises TooLong."""
        if reader.text not in self._texts:
            self._texts[reader.text] = self.encoder.text(reader.text)
        text, asked = self._texts[reader.text], prompt
        name = prompt_id(asked)
        room = self.encoder.limit - self.encoder.user_tokens - len(text) - self.config.max_new_tokens

        def fits(prompt: Text) -> bool:
            return len(self.encoder.prompt(prompt, sys.maxsize, "")) <= room

        shown, stop = self.baseline.show(self.encoder.asked(asked, name), reader, fits)
        key = prompt_id(shown), room
        if key not in self._prompts:
            self._prompts[key] = self.encoder.prompt(shown, room, name, len(text))
        text, ids = self.encoder.before(text, self._prompts[key])
        return WriteRequest(name, asked, text + ids, reader.id, reader.user_index, stop, about=len(text))


def encoder_for(policy: Policy, baseline: Baseline, config: GenerateConfig) -> Encoder:
    """An encoder bound by the model's context: training's budget of tokens does not hold here.

    A baseline does not know users, and what it shows before the prompt must not be cut off with the prompt's beginning.
    Where the run does not say whether it was trained on conversations, or there is no run, conversational data make
    plain prompts a user's message if the model has a chat template.
    """
    conversational = policy.conversational
    if conversational is None and baseline.data and baseline.data.conversational and policy.tokenizer.chat_template:
        conversational = True
    options = policy.config.template_options | config.template_options
    encoder = replace(
        policy.encoder(), limit=policy.base.context, conversational=conversational, template_options=options
    )
    if not baseline.as_base:
        return encoder
    prompt_limit = encoder.prompt_limit if baseline.cuts_prompts else None
    return replace(encoder, user_tokens=0, use_text=False, prompt_limit=prompt_limit)
