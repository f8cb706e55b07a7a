"""Choose the next token of all rows at once.

A token is drawn by the Gumbel-max trick in two rounds: V tokens are divided into blocks of about sqrt(V); first a block
is drawn by its total probability, then a token of that block. The token is a sample from the softmax, as with one round
over all tokens, since P(token) = P(block) P(token | block), with 2 sqrt(V) random numbers instead of V. Unlike sampling
by the inverse of the cumulative distribution, this is not sensitive to rounding: the token changes only if two scores
are equal up to rounding, while each of the V boundaries of a cumulative distribution moves with every sum before it.

Random numbers are a function of (the row's seed, the step, their number), so a row gets the same numbers in any batch
and slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRIDE = 2**32  # random numbers for one step
FEW = 256  # number of tokens among which a nucleus is searched first


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a row are chosen."""

    temperature: float = 1.0
    top_p: float = 1.0


def choose_each(logits: Tensor, seeds: Sequence[int], steps: Sequence[int], ways: Sequence[Sampling]) -> Tensor:
    """The next token [N] of rows of `logits` [N, V] that are sampled in `ways` of their own; see `choose`."""
    if len(set(ways)) == 1:
        return choose(logits, seeds, steps, ways[0].temperature, ways[0].top_p)
    tokens = torch.empty(len(ways), dtype=torch.long, device=logits.device)
    for way in set(ways):
        rows = [row for row, its in enumerate(ways) if its == way]
        some = [seeds[row] for row in rows], [steps[row] for row in rows]
        tokens[rows] = choose(logits[rows], *some, way.temperature, way.top_p)
    return tokens


def choose(
    logits: Tensor, seeds: Sequence[int], steps: Sequence[int], temperature: float = 1.0, top_p: float = 1.0
) -> Tensor:
    """The next token [N] of each row of `logits` [N, V].

    `seeds`, `steps`: of each row, non-negative, below 2**64 and 2**32. Temperature 0 is arg-max, whatever the seeds.
    """
    if temperature == 0:
        return logits.argmax(1)
    scores = logits.float() / temperature
    return race(scores if top_p == 1 else nucleus(scores, top_p), seeds, steps)


@dataclass(frozen=True)
class TokenScore:
    """A token's log-prob in nats before temperature, and the most probable tokens in its place with theirs."""

    log_prob: float
    top: list[tuple[int, float]]


def token_score(logits: Tensor, token: Tensor, top: int) -> TokenScore:
    """The log-prob of `token` under `logits` [V], and those of the `top` most probable tokens."""
    log_probs = logits.float().log_softmax(0)
    best = log_probs.topk(top)
    return TokenScore(log_probs[token].item(), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def race(scores: Tensor, seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """A sample [N] from the softmax of each row of `scores` [N, V]; -inf excludes a token."""
    rows, vocabulary = scores.shape
    width = 1 << math.ceil(math.log2(vocabulary) / 2)
    blocks = math.ceil(vocabulary / width)
    noise = torch.from_numpy(gumbel(seeds, steps, blocks + width)).to(scores.device)
    laid_out = torch.nn.functional.pad(scores, (0, blocks * width - vocabulary), value=-math.inf)
    laid_out = laid_out.view(rows, blocks, width)
    block = (laid_out.logsumexp(2) + noise[:, :blocks]).argmax(1)
    finalists = laid_out[torch.arange(rows, device=scores.device), block]
    return block * width + (finalists + noise[:, blocks:]).argmax(1)


def gumbel(seeds: Sequence[int], steps: Sequence[int], count: int) -> NDArray[np.float32]:
    """Standard Gumbel numbers [N, count]: -log(-log(u))."""
    return (-np.log(-np.log(uniform(seeds, steps, count)))).astype(np.float32)


def uniform(seeds: Sequence[int], steps: Sequence[int], count: int) -> NDArray[np.float64]:
    """Numbers [N, count] between 0 and 1, both excluded.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) from each row's seed, entered at its step.
    """
    numbers: NDArray[np.uint64] = np.arange(1, count + 1).astype(np.uint64)
    counter = np.array(steps, dtype=np.uint64)[:, None] * np.uint64(STRIDE) + numbers
    z: NDArray[np.uint64] = np.array(seeds, dtype=np.uint64)[:, None] + counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    found: NDArray[np.float64] = ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return found


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """`scores` [N, V] with -inf for all but the fewest most probable tokens that hold `top_p` of the probability."""
    probabilities = scores.softmax(1)
    top = probabilities.topk(min(FEW, scores.shape[1])).values
    least = _least(top, top_p)
    wide = top.sum(1) < top_p
    if wide.any():
        least[wide] = _least(probabilities[wide].sort(descending=True).values, top_p)
    return scores.masked_fill(probabilities < least, -math.inf)


def _least(falling: Tensor, top_p: float) -> Tensor:
    """The smallest probability [N, 1] in the nucleus; `falling`: [N, k], the largest first."""
    within = falling.cumsum(1) - falling < top_p  # the tokens before it have less than top_p
    return falling.gather(1, within.sum(1, keepdim=True) - 1)
