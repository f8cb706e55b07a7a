"""Whether the decode loop can serve a model: found out by a probe, since no model says it of itself."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prlhf.generate.decode_loop import DecodeLoop, Row
from prlhf.generate.masks import known_kinds
from prlhf.model.engine import REFUSALS
from prlhf.model.personalized import PersonalizedLM, unwrapped
from prlhf.model.windows import window_of

LONGEST = 24  # tokens in the probe; a wider window is taken on trust
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def serves(model: PersonalizedLM) -> bool:
    """Whether the loop can decode this model. Asked once of each language model.

    Its next-token logits must be those of whole forwards without a cache, on two rows of unequal lengths, at their
    first and second token.
    """
    lm = unwrapped(model.lm)
    if lm not in _known:
        try:
            _known[lm] = known_kinds(lm.config.get_text_config()) and _agree(model, lm)
        except REFUSALS:
            _known[lm] = False  # it knows no cache of this kind, or no such mask
    return _known[lm]


def _agree(model: PersonalizedLM, lm: Any) -> bool:
    words = lm.get_input_embeddings()
    length = min(LONGEST, 2 + (window_of(lm.config.get_text_config()) or 10))
    rows = [Row([(7 * i + 3 * n) % words.num_embeddings for i in range(n)], None, seed=0) for n in (length, 3)]
    loop = DecodeLoop(model, size=2, room=2, ended=lambda _: False)
    loop.join(rows)
    for _ in range(2):
        found = loop.logits().float()
        whole = torch.stack([_last_logits(lm, [*row.ids, *row.written]) for row in rows]).float()
        if not torch.allclose(found, whole, rtol=0, atol=(0.1 if lm.dtype != torch.float32 else 1e-2) * _spread(whole)):
            return False
        loop.advance(found.argmax(1))
    return True


def _last_logits(lm: Any, ids: list[int]) -> Tensor:
    embeds = lm.get_input_embeddings()(torch.tensor([ids], device=lm.device))
    return lm(inputs_embeds=embeds, use_cache=False).logits[0, -1]  # type: ignore[no-any-return]


def _spread(logits: Tensor) -> float:
    return float(logits.std())
