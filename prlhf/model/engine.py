"""How a model is run over readings: as prefix trees if it can read them, and as padded rows otherwise.

Both give the same values to rounding. Whether a model can read trees is tried out on made-up readings before it is
used: layers that carry a state along the row, attention with additional terms and heads that transform the logits
cannot, and would silently give wrong values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prlhf.errors import one_line
from prlhf.model import workers
from prlhf.model.base import window_of
from prlhf.model.personalized import Personalized, PersonalizedLM, unwrapped
from prlhf.model.prefix_tree import Pack, families, pack
from prlhf.model.readings import Reading, Rows, padded
from prlhf.model.sharding import in_shards, let_go
from prlhf.progress import SILENT, Progress

T = TypeVar("T")

# what different models raise if they cannot take the input of a probe
REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
FLEX_BUCKET = 1024  # FlexAttention is compiled once for each multiple of so many columns
CPU_BUDGET, GPU_BUDGET = 1024, 16384  # tokens in a forward pass, where nothing is set


class Engine:
    """Runs `model` in parts of about `budget` tokens (None: set by the device), as trees if `trees` and it can."""

    def __init__(
        self, model: Personalized, pad: int, budget: int | None = None, trees: bool = True, progress: Progress = SILENT
    ) -> None:
        self.model, self._pad = model, pad
        self.device: torch.device = unwrapped(model.lm).device
        self.budget = budget_on(self.device, budget)
        why = tree_fault(model, pad) if trees else ""
        if why and model.attention == "flex":
            progress.note(f"FlexAttention is not used: {why}")
            model.attention = "segments"
            why = tree_fault(model, pad)
        self.trees = trees and not why
        self.in_step = in_shards(model)  # whether all workers must run it equally often
        self._multiple = FLEX_BUCKET if self.trees and model.attention == "flex" else 1
        if why:
            progress.note(f"prefix trees are off for this model, which is slower: {why}")

    def parts(self, readings: Sequence[Reading], user_tokens: int) -> Iterator[tuple[list[int], Rows | Pack]]:
        """Yield distinct `readings` in parts to run one by one: their numbers, and their layout on the device."""
        for numbers in families(readings, user_tokens, self.budget, self.trees):
            some = [readings[number] for number in numbers]
            layout = (
                pack(some, user_tokens, multiple=self._multiple) if self.trees else padded(some, user_tokens, self._pad)
            )
            yield numbers, layout.to(self.device)

    def values(self, readings: Sequence[Reading]) -> Tensor:
        """The model's output [n] for `readings`, on the CPU: log-probs of responses, or rewards."""
        return self.over(readings, self.model.users.tokens, self.model)

    def reference(self, readings: Sequence[Reading]) -> Tensor:
        """Log-probs [n] under the base alone, on the CPU; the user does not matter."""
        return self.over(readings, 0, cast(PersonalizedLM, self.model).reference)

    def by_token(self, readings: Sequence[Reading], base: bool = False) -> Tensor:
        """Log-probs [n, W] of the tokens of `readings`' responses, on the CPU, 0 after the last one of each.

        `base`: under the base alone, where the user does not matter.
        """
        model, width = cast(PersonalizedLM, self.model), max(len(reading.response) for reading in readings)

        def run(layout: Rows | Pack) -> Tensor:
            found = model.reference_by_token(layout) if base else model.by_token(layout)
            return F.pad(found, (0, width - found.shape[1]))

        return self.over(readings, 0 if base else model.users.tokens, run)

    def kept_in_step(self, parts: list[tuple[list[int], Rows | Pack]]) -> list[tuple[list[int], Rows | Pack]]:
        """`parts`, followed by parts without readings if workers run in step and another one has more parts."""
        missing = workers.most(len(parts)) - len(parts) if self.in_step else 0
        return parts + [([], parts[0][1])] * missing

    def over(self, readings: Sequence[Reading], user_tokens: int, run: Callable[[Rows | Pack], Tensor]) -> Tensor:
        """What `run` returns for each of `readings`, [n] or [n, w], on the CPU; equal readings are run once."""
        distinct = list(dict.fromkeys(readings))
        found: dict[Reading, Tensor] = {}
        for numbers, layout in self.kept_in_step(list(self.parts(distinct, user_tokens))):
            values = run(layout).cpu()
            found |= zip((distinct[number] for number in numbers), values[: len(numbers)], strict=True)
        let_go(self.model)
        return torch.stack([found[reading] for reading in readings])


def in_batches(
    model: nn.Module,
    lengths: Sequence[int],
    batch_size: int,
    read: Callable[[list[int]], Iterable[T]],
    progress: Progress = SILENT,
) -> list[T]:
    """What `read` returns for rows of `lengths` tokens, given the numbers of `batch_size` of them; in the rows' order.

    The shortest rows are read first, so that little is padded; `model` is in evaluation mode, without gradients.
    """
    training = model.training
    model.eval()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found: dict[int, T] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        with torch.no_grad():
            found |= zip(chunk, read(chunk), strict=True)
        progress.advance(len(chunk))
    model.train(training)
    return [found[number] for number in range(len(lengths))]


def budget_on(device: torch.device, budget: int | None = None) -> int:
    """Tokens in a forward pass; the readings of one user and prompt may have more."""
    return budget or (CPU_BUDGET if device.type == "cpu" else GPU_BUDGET)


def tree_fault(model: Personalized, pad: int) -> str:
    """Why `model` cannot read trees, "" if it can; takes two small forward passes."""
    readings = made_up(model)
    tokens = model.users.tokens
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = unwrapped(model.lm).device
            expected = model(padded(readings, tokens, pad).to(device))
            found = model(pack(readings, tokens, min_shared=1).to(device))
    except REFUSALS as error:
        return f"{type(error).__name__}: {one_line(error)}"
    finally:
        model.train(training)
        let_go(model)
    tolerance = 1e-4 if unwrapped(model.lm).dtype == torch.float32 else 0.05
    off = ((found - expected).abs() / (1 + expected.abs())).max().item()
    return "" if off <= tolerance else f"its log-probs differ by {off:.1e} of their size from those of padded rows"


def made_up(model: Personalized) -> list[Reading]:
    """Two prompts with three and two responses, two of which begin alike, longer than the attention window, if any."""
    config = unwrapped(model.lm).config.get_text_config()
    window = window_of(config) or 0
    context = getattr(config, "max_position_embeddings", None) or 2048
    length = max(4, min(window + 8, 8192, context - model.users.tokens - 12))
    words = torch.randint(config.vocab_size, (2 * length + 40,), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = tuple(words[:length]), tuple(words[length : length + 4])
    stem, tails = tuple(words[-40:-36]), [tuple(words[-36 + 4 * i : -32 + 4 * i]) for i in range(4)]
    found = [Reading(0, first, response) for response in (stem + tails[0], stem + tails[1], tails[2])]
    return found + [Reading(0, second, response) for response in tails[2:]]
