"""What the model writes during its training (`sample_every`): the same few prompts for the same few users each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Comparison, prompt_id
from prlhf.errors import PrlhfError
from prlhf.generate.baselines import baseline_of
from prlhf.generate.decoding import write
from prlhf.generate.readers import Reader
from prlhf.generate.requests import Planner, WriteRequest
from prlhf.model.checkpoint import Policy
from prlhf.model.fitting import TooLong
from prlhf.model.user_models import user_model_of

TOKENS = 64  # of a sample at most; a quarter of a context that is shorter than 256 tokens
FILE = "samples.jsonl"


class Samples:
    """Writes samples of `policy` by greedy decoding, which takes no random numbers from the training."""

    def __init__(self, policy: Policy, rows: Sequence[Comparison]) -> None:
        """Choose the first prompts of `rows` that leave room for a sample. Raises PrlhfError if none does."""
        config = policy.config
        self._policy = policy
        self._config = GenerateConfig(
            max_new_tokens=min(TOKENS, policy.base.context // 4), temperature=0, out=Path(FILE)
        )
        planner = Planner(policy, baseline_of(self._config), self._config)
        readers = readers_of(policy)
        self.requests: list[WriteRequest] = []
        for prompt in {prompt_id(row.prompt): row.prompt for row in rows}.values():
            try:
                self.requests += [planner.request(prompt, reader) for reader in readers]
            except TooLong:
                continue
            if len(self.requests) == config.sample_prompts * len(readers):
                break
        if not self.requests:
            raise PrlhfError(
                f"no prompt of the data has room for a sample of {self._config.max_new_tokens} tokens",
                "leave sample_every out",
            )

    @property
    def user_indices(self) -> set[int]:
        """The users who are written for."""
        return {request.user_index for request in self.requests}

    def write(self, step: int) -> list[dict[str, Any]]:
        """A row of samples.jsonl for each request: what the model writes after optimizer step `step`."""
        self._policy.model.eval()
        found = {
            (one.request.prompt_id, one.request.user_id): one
            for ended in write(self._policy, self.requests, self._config)
            for one in ended
        }
        written = [found[request.prompt_id, request.user_id] for request in self.requests]
        return [
            {
                "step": step,
                "user_id": one.request.user_id,
                "prompt_id": one.request.prompt_id,
                "prompt": one.request.prompt,
                "response": one.text,
                "response_tokens": one.tokens,
                "finish_reason": "stop" if one.finished else "length",
            }
            for one in written
        ]


def readers_of(policy: Policy) -> list[Reader]:
    """The first seen users of the data, and the generic user; this one alone if the model does not tell users apart."""
    config, texts = policy.config, policy.user_texts
    apart = user_model_of(config).personal or (config.user_text and bool(texts))
    users = list(policy.index_of().items())[: config.sample_users] if apart else []
    return [*(Reader(user, index, texts.get(user, "")) for user, index in users), Reader(GENERIC, 0, "")]


def shown(row: dict[str, Any], width: int = 300) -> str:
    """A sample as a line: `step 50, ann: The response …`."""
    text = " ".join(str(row["response"]).split())
    return f"step {row['step']}, {row['user_id']}: {text if len(text) <= width else text[:width] + '…'}"
