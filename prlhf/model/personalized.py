"""A causal LM with a user model in front: embeds, and as a policy forward and response log-probs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.kernels.tree_attention import tree_inputs, way_of
from prlhf.model.encoding import Rows
from prlhf.model.log_probs import token_log_probs
from prlhf.model.prefix_tree import Pack
from prlhf.model.users import UserModel


class Personalized(nn.Module):
    """A language model `lm` (a PeftModel or a plain causal LM) behind the user model `users`."""

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__()
        self.lm = lm
        self.users = users
        self.to_save: dict[str, Tensor] | None = None  # the lm's weights where they are in shards; see sharding.py
        self.attention = way_of(unwrapped(lm))  # how packs are attended over

    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters beside the language model's, in groups with a learning rate each."""
        return self.users.rates(config)

    def embed(self, rows: Rows | Pack) -> Tensor:
        """Input embeddings [N, L, d] (of a pack [1, T, d]) with the user's vectors in the rows' slots (section 4.3)."""
        embeds = self._embeddings()(rows.ids)
        if self.users.tokens == 0:
            return embeds  # type: ignore[no-any-return]
        prefix = self.users(rows.user_indices).to(embeds.dtype)
        return embeds.masked_scatter(rows.slots.unsqueeze(-1), prefix)  # type: ignore[no-any-return]

    def inputs(self, embeds: Tensor, rows: Rows | Pack) -> dict[str, Any]:
        """What the language model's forward takes; positions count real tokens, so padding moves nothing."""
        if isinstance(rows, Pack):
            return {"inputs_embeds": embeds, **tree_inputs(rows.segments, rows.positions, self.attention, embeds.dtype)}
        positions = (rows.mask.cumsum(1) - 1).clamp(min=0)
        return {"inputs_embeds": embeds, "attention_mask": rows.mask, "position_ids": positions, "use_cache": False}

    def hidden(self, embeds: Tensor, rows: Rows | Pack) -> Tensor:
        """What the trunk makes of `embeds`, [N, L, d], before any head."""
        return trunk_of(self.lm)(**self.inputs(embeds, rows)).last_hidden_state  # type: ignore[no-any-return]

    def _embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()  # type: ignore[no-any-return]


class PersonalizedLM(Personalized):
    """pi_P(y | x, u): a personalized policy."""

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__(lm, users)
        self._keeps_logits = "logits_to_keep" in inspect.signature(unwrapped(lm).forward).parameters

    @override
    def forward(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N] of the responses, summed over their tokens (nats); of a pack in its readings' order."""
        return self.response_log_probs(self.embed(rows), rows)

    def reference(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N] of the responses under the base alone; `rows` have no user slots."""
        with torch.no_grad(), self.as_base():
            return self.response_log_probs(self._embeddings()(rows.ids), rows)

    def response_log_probs(self, embeds: Tensor, rows: Rows | Pack) -> Tensor:
        """Sums of the responses' log-probs in nats [N], one for each row or reading of `rows`."""
        if isinstance(rows, Pack):
            scored = self.hidden(embeds, rows)[0, rows.columns]
            log_probs = token_log_probs(self.lm.get_output_embeddings(), scored, rows.targets)
            return log_probs.new_zeros(rows.readings).index_add(0, rows.owners, log_probs)
        columns = rows.ids.shape[1] - rows.start
        options = {"logits_to_keep": columns + 1} if self._keeps_logits else {}
        output = self.lm(**self.inputs(embeds, rows), **options)
        logits: Tensor = output.logits[:, -columns - 1 : -1].float()
        picked = logits.gather(2, rows.ids[:, rows.start :].unsqueeze(2)).squeeze(2)
        log_probs = picked - logits.logsumexp(2)
        return (log_probs * rows.mask[:, rows.start :]).sum(1)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The adapter off and dropout off: the reference, in the same memory."""
        training = self.lm.training
        self.lm.eval()
        try:
            if hasattr(self.lm, "disable_adapter"):
                with self.lm.disable_adapter():
                    yield
            else:
                yield
        finally:
            self.lm.train(training)


def unwrapped(lm: Any) -> Any:
    """The causal LM inside a PeftModel."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def trunk_of(lm: Any) -> nn.Module:
    """The part of a causal LM, adapter layers included, that ends in hidden states."""
    causal = unwrapped(lm)
    trunk: nn.Module = causal.base_model
    if trunk is causal:
        raise PrlhfError(
            f"{type(causal).__name__} does not tell its trunk from its vocabulary head",
            "choose another base for a reward model",
        )
    return trunk
