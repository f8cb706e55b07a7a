"""A finished run in memory: its users, its responses for them, and its rewards as they would give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Text
from prlhf.errors import PrlhfError, unknown_user
from prlhf.generate.baselines import baseline_of
from prlhf.generate.decoding import write
from prlhf.generate.readers import Reader
from prlhf.generate.requests import plan_requests
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.rewards import ResponseReader, Rewards, rewards_of


@dataclass(frozen=True)
class Loaded:
    """A policy or a reward model that `prlhf.load` returned."""

    run: Path
    kind: str  # `policy` or `reward model`
    trained: Trained[Any]

    @property
    def users(self) -> list[str]:
        """The ids of its training users, in the order of their indices, without the generic user."""
        return list(self.trained.user_ids)

    def generate(
        self,
        prompt: Text | Sequence[Text],
        user: str = GENERIC,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Write a response to `prompt` for `user`. A list of prompts gives a list of responses, written in batches.

        Args:
            prompt: text, or a conversation as a list of `{"role": …, "content": …}`; or a list of such prompts.
            user: an id that the run knows, or `generic`.
            max_new_tokens: the maximum length of a response, in tokens.
            temperature: of sampling; 0 decodes greedily.
            top_p: sample from the most probable tokens that together have this probability.
            seed: together with the prompt and the user it determines the random numbers, as in `prlhf generate`.

        Raises:
            PrlhfError: the user is unknown, a prompt does not fit into the context, or the run is a reward model.
        """
        if self.kind != "policy":
            raise PrlhfError(f"{self.run} is a reward model, which does not write", "load the run of a policy")
        one = isinstance(prompt, str) or is_conversation(prompt)
        prompts: list[Text] = [prompt] if one else list(prompt)  # type: ignore[list-item,arg-type]
        config = GenerateConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        reader = Reader(user, self._index(user), self.trained.user_texts.get(user, ""))
        requests = plan_requests(self.trained, [(each, reader) for each in prompts], baseline_of(config), config)
        texts = {id(done.request): done.text for ended in write(self.trained, requests, config) for done in ended}
        responses = [texts[id(request)] for request in requests]
        return responses[0] if one else responses

    def reward(self, prompt: Text, responses: Sequence[str], user: str = GENERIC) -> list[float]:
        """Compute the reward of each of `responses` to `prompt` as `user` would give it.

        A policy's reward is its implicit one, beta times the log-ratio to the reference (paper, Eq. 5). Only the
        difference between two responses to the same prompt is meaningful.

        Raises:
            PrlhfError: the user is unknown, or a prompt with a response does not fit into the context.
        """
        self._index(user)
        read = ResponseReader(self.trained)
        pairs = [(a, responses[min(i + 1, len(responses) - 1)]) for i, a in list(enumerate(responses))[::2]]
        encoded: list[Encoded] = [read.encode(prompt, user, a, b, "the prompt") for a, b in pairs]
        if not encoded:
            return []
        with torch.no_grad():
            found = self._rewards(encoded, [each.user_index for each in encoded])  # [2, pairs]
        return [float(value) for value in found.T.flatten()][: len(responses)]

    @cached_property
    def _rewards(self) -> Rewards:
        return rewards_of(self.trained, self.run)

    def _index(self, user: str) -> int:
        """The index of `user`, 0 for the generic user."""
        known = self.trained.index_of()
        if user != GENERIC and user not in known:
            raise unknown_user(user, self.run, [*known, GENERIC])
        return known.get(user, 0)


def is_conversation(prompt: Any) -> bool:
    """Whether `prompt` is one list of messages, and not a list of prompts."""
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(part, dict) for part in prompt)
