"""Best of N: several responses per (prompt, user), of which the one with the highest reward is kept.

The reward is that of a trained run: a reward model, or the implicit reward of a policy. Responses are read as the user
they are for, so a personalized reward model makes the choice personal for any policy; unknown ids are the generic user.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig
from prlhf.errors import PrlhfError
from prlhf.generate.decoding import Written, write
from prlhf.generate.requests import WriteRequest
from prlhf.model.checkpoint import Policy, digest, model_folder, read_about
from prlhf.model.rewards import ResponseReader, Rewards, load_rewards, score


def reward_settings(config: GenerateConfig) -> dict[str, Any]:
    """What rows say about the reward by which they were chosen; only `best_of` if there was no choice."""
    if config.reward is None:
        return {"best_of": 1, "reward": None}
    return {"best_of": config.best_of, "reward": str(config.reward), "reward_weights": digest([config.reward])}


class BestOf:
    """Writes `config.best_of` candidates for each request, as `write` does, and keeps the best."""

    def __init__(self, reward: Path, reader: ResponseReader, rewards: Rewards) -> None:
        self.reward, self._reader, self._rewards = reward, reader, rewards

    def __call__(
        self, policy: Policy, requests: Sequence[WriteRequest], config: GenerateConfig, base: bool = False
    ) -> Iterator[list[Written]]:
        """Yield the best response to each request as soon as the last of its candidates has ended."""
        for whole in self.scored(policy, requests, config, base):
            yield [max(candidates, key=lambda one: one.reward or 0.0) for candidates in whole]  # the first, if equal

    def scored(
        self, policy: Policy, requests: Sequence[WriteRequest], config: GenerateConfig, base: bool = False
    ) -> Iterator[list[list[Written]]]:
        """Yield the candidates for each request, in their order and with rewards, as soon as the last one has ended."""
        candidates = [replace(request, candidate=i) for request in requests for i in range(config.best_of)]
        found = defaultdict[tuple[str, str], list[Written]](list)
        for ended in write(policy, candidates, config, base):
            for one in ended:
                found[one.request.prompt_id, one.request.user_id].append(one)
            whole = [key for key, some in found.items() if len(some) == config.best_of]
            if whole:
                yield [
                    self._with_rewards(sorted(found.pop(key), key=lambda one: one.request.candidate)) for key in whole
                ]

    def _with_rewards(self, candidates: Sequence[Written]) -> list[Written]:
        rewards = self.rewards_of(candidates, candidates[0].request.user_id)
        return [replace(one, reward=reward) for one, reward in zip(candidates, rewards, strict=True)]

    def rewards_of(self, candidates: Sequence[Written], user_id: str) -> list[float]:
        """The rewards of one request's candidates as `user_id` gives them, scored apart from all others.

        In a batch with other requests' candidates, rounding would make a reward depend on who else is served. Rewards
        are computed in pairs; the last of an odd number is paired with itself.
        """
        request, texts = candidates[0].request, [written.text for written in candidates]
        pairs = zip(texts[::2], [*texts[1::2], texts[-1]], strict=False)
        encoded = [self._reader.encode(request.prompt, user_id, a, b, request.prompt_id) for a, b in pairs]
        scored = score(self._rewards, encoded, [e.user_index for e in encoded], batch_size=len(encoded))
        rewards = [reward for s in scored for reward in (s.chosen, s.rejected)][: len(texts)]
        if any(math.isnan(reward) for reward in rewards):
            raise PrlhfError(
                f"{self.reward} returned NaN as the reward of a response to '{request.prompt_id}' for '{user_id}'",
                "see in its metrics.jsonl where its training went wrong",
            )
        return rewards


def load_best_of(reward: Path, config: GenerateConfig, fingerprint: str) -> BestOf:
    """Best of N with the reward of the run `reward`.

    `fingerprint` is that of the writing model's base. If the reward has the same base, `config.model` is where it is.
    """
    same = read_about(model_folder(reward))["base_fingerprint"] == fingerprint
    where, precision = config.model if same else None, config.precision
    trained, rewards = load_rewards(reward, config.device, where, config.trust_remote_code, precision=precision)
    return BestOf(reward, ResponseReader(trained), rewards)
