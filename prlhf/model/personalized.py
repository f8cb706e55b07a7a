"""A causal LM behind a user model: a policy with the log-probs of responses, or a reward model with a scalar head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.kernels.onednn import times_weight
from prlhf.kernels.tree_attention import tree_inputs, way_of
from prlhf.model.gates import Gates
from prlhf.model.prefix_tree import Pack
from prlhf.model.readings import Rows
from prlhf.model.user_models import UserModel

CHUNK = 2**23  # logits in memory at a time


class Personalized(nn.Module):
    """A language model `lm` (a PeftModel or a plain causal LM) behind the user model `users`."""

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__()
        self.lm = lm
        self.users = users
        self.gates = Gates(lm, decoder_layers(lm)) if users.gates else None
        self.to_save: dict[str, Tensor] | None = None  # the lm's weights if they are in shards; see sharding.py
        self.attention = way_of(unwrapped(lm))  # how attention reads packs

    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """All parameters except for the language model's, in groups with a learning rate each."""
        gates = self.users.gates.rates(config) if self.users.gates else []
        return self.users.rates(config) + gates

    def act_as(self, user_indices: Tensor | None, columns: Tensor | None = None) -> None:
        """Set the gates of the next forward pass: those of the users [N] of its rows, or of the trees of a pack.

        `columns` [T]: to which tree each column of the pack belongs. `None`: all rows are read as the generic user.
        """
        if self.gates and self.users.gates:
            self.gates.set(None if user_indices is None else 1 + self.users.gates(user_indices), columns)

    def as_users(self, rows: Rows | Pack) -> Tensor:
        """Let the users of `rows` act: set their gates and return the embeddings with their vectors, as `embed`."""
        self.act_as(rows.user_indices, rows.trees if isinstance(rows, Pack) else None)
        return self.embed(rows)

    def embed(self, rows: Rows | Pack) -> Tensor:
        """Input embeddings [N, L, d] (of a pack [1, T, d]) with the user's vectors in the rows' slots (section 4.3)."""
        embeds = self._embeddings()(rows.ids)
        if self.users.tokens == 0:
            return embeds  # type: ignore[no-any-return]
        prefix = self.users(rows.user_indices).to(embeds.dtype)
        return embeds.masked_scatter(rows.slots.unsqueeze(-1), prefix)  # type: ignore[no-any-return]

    def inputs(self, embeds: Tensor, rows: Rows | Pack) -> dict[str, Any]:
        """What the language model's forward takes. Positions count real tokens only, so padding changes nothing."""
        if isinstance(rows, Pack):
            return {"inputs_embeds": embeds, **tree_inputs(rows.segments, rows.positions, self.attention, embeds.dtype)}
        positions = (rows.mask.cumsum(1) - 1).clamp(min=0)
        return {"inputs_embeds": embeds, "attention_mask": rows.mask, "position_ids": positions, "use_cache": False}

    def hidden(self, embeds: Tensor, rows: Rows | Pack) -> Tensor:
        """Hidden states [N, L, d] of `embeds`, before any head."""
        return trunk_of(self.lm)(**self.inputs(embeds, rows)).last_hidden_state  # type: ignore[no-any-return]

    def base_layers(self, rows: Rows | Pack) -> Sequence[Tensor]:
        """Hidden states [N, L, d] after the embeddings and after each layer, under the base alone, without users."""
        with torch.no_grad(), self.as_base():
            embeds = self._embeddings()(rows.ids)
            return trunk_of(self.lm)(**self.inputs(embeds, rows), output_hidden_states=True).hidden_states  # type: ignore[no-any-return]

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Turn off adapter and dropout while the context lasts: what is left is the reference, in the same memory."""
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

    def _embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()  # type: ignore[no-any-return]


class PersonalizedLM(Personalized):
    """pi_P(y | x, u): a personalized policy."""

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__(lm, users)
        self._keeps_logits = "logits_to_keep" in inspect.signature(unwrapped(lm).forward).parameters

    @override
    def forward(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N] of the responses, summed over their tokens (nats); for a pack in the order of its readings."""
        return self.response_log_probs(self.as_users(rows), rows)

    def reference(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N] of the responses under the base alone; `rows` have no user slots."""
        with torch.no_grad(), self.as_base():
            return self.response_log_probs(self._embeddings()(rows.ids), rows)

    def by_token(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N, W] of the responses' tokens in nats, W the most of them, 0 after the last one of a response."""
        return self._by_token(self.as_users(rows), rows)

    def reference_by_token(self, rows: Rows | Pack) -> Tensor:
        """Log-probs [N, W] of the responses' tokens under the base alone, as `by_token`; `rows` have no user slots."""
        with torch.no_grad(), self.as_base():
            return self._by_token(self._embeddings()(rows.ids), rows)

    def _by_token(self, embeds: Tensor, rows: Rows | Pack) -> Tensor:
        if not isinstance(rows, Pack):
            return self._of_rows(embeds, rows)
        lengths = rows.owners.bincount(minlength=rows.readings)
        place = torch.arange(len(rows.owners), device=lengths.device) - (lengths.cumsum(0) - lengths)[rows.owners]
        found = self._of_pack(embeds, rows)
        return found.new_zeros(rows.readings, int(lengths.max())).index_put((rows.owners, place), found)

    def response_log_probs(self, embeds: Tensor, rows: Rows | Pack) -> Tensor:
        """Summed log-probs [N] of the responses in nats, one for each row or reading of `rows`."""
        if not isinstance(rows, Pack):
            return self._of_rows(embeds, rows).sum(1)
        log_probs = self._of_pack(embeds, rows)
        return log_probs.new_zeros(rows.readings).index_add(0, rows.owners, log_probs)

    def _of_pack(self, embeds: Tensor, rows: Pack) -> Tensor:
        """Log-probs [S] of the scored tokens of a pack."""
        scored = self.hidden(embeds, rows)[0, rows.columns]
        return token_log_probs(self.lm.get_output_embeddings(), scored, rows.targets)

    def _of_rows(self, embeds: Tensor, rows: Rows) -> Tensor:
        """Log-probs [N, R] of the tokens from column `start` on, 0 where there is padding."""
        columns = rows.ids.shape[1] - rows.start
        options = {"logits_to_keep": columns + 1} if self._keeps_logits else {}
        output = self.lm(**self.inputs(embeds, rows), **options)
        logits: Tensor = output.logits[:, -columns - 1 : -1].float()
        picked = logits.gather(2, rows.ids[:, rows.start :].unsqueeze(2)).squeeze(2)
        log_probs = picked - logits.logsumexp(2)
        return log_probs * rows.mask[:, rows.start :]


class RewardModel(Personalized):
    """r(x, y, u): a personalized reward model (P-RM, version 1 of the paper).

    The trunk of a causal LM has a scalar head in place of the vocabulary's, in fp32 whatever the trunk's precision. It
    reads the hidden state of the last real token of the response: its end-of-text token, or its last token if it was
    cut. transformers' sequence classification takes the last column when it is given embeddings, which is padding in
    all rows but the longest, so the position comes from the mask here.

    The head starts from a normal distribution with variance 1 / (d + 1), the same for every seed. Starting from zero
    slows the layers below: after 60 steps of the demo the worst user's accuracy was 0 % instead of 77 %.
    """

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__(lm, users)
        trunk_of(lm)
        vocabulary = unwrapped(lm).get_output_embeddings().weight
        if vocabulary is not self._embeddings().weight:
            vocabulary.requires_grad_(False)  # in full fine-tuning: nothing reads it
        width = vocabulary.shape[1]
        start = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * (width + 1) ** -0.5
        self.head = nn.Linear(width, 1, bias=False, device=vocabulary.device, dtype=torch.float32)
        self.head.weight.data.copy_(start)

    @override
    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """The head is new, as the user model is, and gets the same learning rate."""
        return [*super().rates(config), (list(self.head.parameters()), config.user_lr)]

    @override
    def forward(self, rows: Rows | Pack) -> Tensor:
        """Rewards [N] of the responses, in units of log-odds (Bradley-Terry). No logits are computed."""
        hidden = self.hidden(self.as_users(rows), rows)
        if isinstance(rows, Pack):
            last = hidden[0, rows.lasts]
        else:
            last = hidden[torch.arange(len(hidden), device=hidden.device), last_real(rows.mask)]
        return self.head(last.float()).squeeze(1)  # type: ignore[no-any-return]


def last_real(mask: Tensor) -> Tensor:
    """The column [N] of the last 1 in each row of a mask [N, L], on whichever side the padding is."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


# ---- parts of a language model ----


def unwrapped(lm: Any) -> Any:
    """The causal LM inside a PeftModel."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def trunk_of(lm: Any) -> nn.Module:
    """The part of a causal LM, adapter layers included, that ends in hidden states."""
    causal = unwrapped(lm)
    trunk: nn.Module = causal.base_model
    if trunk is causal:
        raise PrlhfError(
            f"{type(causal).__name__} does not separate its trunk from its vocabulary head",
            "choose another base for a reward model",
        )
    return trunk


def decoder_layers(lm: Any) -> list[nn.Module]:
    """The list of modules, as long as the model is deep, that has most parameters; empty if there is none."""
    depth = unwrapped(lm).config.get_text_config().num_hidden_layers
    found = [module for module in lm.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    return list(max(found, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=()))


# ---- log-probs without all logits in memory ----


def token_log_probs(head: nn.Module, hidden: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log-probs [S] in nats (fp32) of `targets` [S], whose logits `head` computes from `hidden` [S, d].

    Logits [tokens, vocabulary] are never in memory all at once. With a frozen linear head the gradient is computed in
    the forward pass, where the probabilities are known, at no more cost than in a backward pass; other heads compute
    each chunk again in the backward pass.
    """
    rows = max(1, chunk // _vocabulary(head))
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_log_probs(head, h, t) for h, t in pieces])
    if isinstance(head, nn.Linear) and not head.weight.requires_grad:
        return torch.cat([FrozenHead.apply(head, h, t) for h, t in pieces])  # type: ignore[no-untyped-call]
    return torch.cat([checkpoint(_log_probs, head, h, t, use_reentrant=False) for h, t in pieces])


def _vocabulary(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _log_probs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden).float()
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)  # type: ignore[no-any-return]


class FrozenHead(torch.autograd.Function):
    """Keeps d log p_y / d hidden = W_y - p W, [S, d], for the backward pass, and not the logits [S, V]."""

    @staticmethod
    @override
    def forward(ctx: Any, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        weight, logits = head.weight, head(hidden).float()
        chosen: Tensor = logits.gather(1, targets.unsqueeze(1))
        total = logits.logsumexp(1, keepdim=True)
        probabilities = logits.sub_(total).exp_().to(weight.dtype)
        ctx.save_for_backward(weight[targets] - times_weight(probabilities, head))
        found: Tensor = (chosen - total).squeeze(1)
        return found

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return None, (slope * grad.unsqueeze(1)).to(slope.dtype), None
