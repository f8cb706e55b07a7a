"""The comparison at the end of an export: log-probs of held-out responses, by the run and by what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from prlhf.dataset import Comparison, Text, is_prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Policy
from prlhf.model.fitting import TooLong
from prlhf.model.per_user import trained_on
from prlhf.model.personalized import unwrapped
from prlhf.model.readings import Reading, padded

ROWS = 8  # held-out responses in all, but at least one for each user
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # nats per token, by the precision of what was written
WITHOUT_DATA = ("Explain tides.", "The moon pulls the water of the oceans.")  # if the run's data are gone


@dataclass(frozen=True)
class Sample:
    """A response as the run reads it for a user."""

    user: str
    prompt: Text
    before: list[int]  # text about the user + prompt, without the user's vectors
    response: list[int]
    log_prob: float  # nats, summed over the response


@dataclass(frozen=True)
class Compared:
    """How far an export is from its run."""

    rows: int
    difference: float  # the largest of all rows, nats per token

    def __or__(self, other: Compared) -> Compared:
        return Compared(self.rows + other.rows, max(self.difference, other.difference))


NOTHING = Compared(0, 0.0)


@torch.no_grad()
def samples(policy: Policy, run: Path, users: Mapping[str, int]) -> list[Sample]:
    """Held-out responses with the log-probs that `policy` gives them as each of `users` (id -> user index)."""
    encoder = replace(policy.encoder(), limit=policy.base.context, prompt_limit=None)
    rows, found = cycle(held_out(policy, run)), []
    for user, user_index in users.items():
        for _ in range(max(1, ROWS // len(users))):
            row = replace(next(rows), user_index=user_index, user_text=policy.user_texts.get(user, ""))
            try:
                ids = encoder.comparison(row)
            except TooLong:  # training left it out too
                continue
            reading = Reading(user_index, tuple(ids.text + ids.prompt), tuple(ids.chosen))
            value = policy.model(padded([reading], policy.model.users.tokens, policy.tokenizer.pad_token_id))
            found.append(Sample(user, encoder.asked(row.prompt, row.id), [*reading.before], ids.chosen, float(value)))
    return found


def held_out(policy: Policy, run: Path) -> list[Comparison]:
    """The held-out comparisons of the run's data; one of our own if the data are gone or hold none."""
    data = Path(trained_on(run))
    rows = read_prepared(data).eval if is_prepared(data) else []
    prompt: Text
    prompt, chosen = WITHOUT_DATA
    if policy.conversational:
        prompt, answer = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": chosen}]
        return rows or [Comparison("own", prompt, answer, answer, "", 0, "", "", False)]
    return rows or [Comparison("own", prompt, f" {chosen}", f" {chosen}", "", 0, "", "", False)]


@torch.no_grad()
def log_prob(
    lm: Any,
    before: Sequence[int],
    response: Sequence[int],
    vectors: torch.Tensor | None = None,
    without: Sequence[int] = (),
) -> float:
    """The log-prob (nats) of `response` after `before` under a plain causal LM.

    `vectors` [n, d] stand in front of both. The tokens `without` are not to be written.
    """
    ids = torch.tensor([[*before, *response]])
    if vectors is None:
        logits = lm(input_ids=ids).logits[0]
    else:
        words = unwrapped(lm).get_input_embeddings()(ids)
        logits = lm(inputs_embeds=torch.cat([vectors[None].to(words.dtype), words], 1)).logits[0]
    scores = logits[-len(response) - 1 : -1].float()
    scores[:, list(without)] = -torch.inf
    chances = scores.log_softmax(-1)
    return float(chances.gather(1, torch.tensor(response)[:, None]).sum())


def compare(rows: Sequence[Sample], theirs: Callable[[Sample], float], dtype: torch.dtype, what: str) -> Compared:
    """Compare what the run says of `rows` with `theirs`, the log-probs by what was written.

    Raises:
        PrlhfError: a difference is over the tolerance of `dtype`, so what was written must not be used.
    """
    limit, largest = TOLERANCE[dtype], 0.0
    for row in rows:
        difference = abs(theirs(row) - row.log_prob) / len(row.response)
        if not difference <= limit:  # also if it is not a number
            raise PrlhfError(
                f"{what} differs from the run by {difference:.2g} nats per token for '{row.user}' (allowed: {limit:g})",
                "nothing was kept; this kind of base cannot be written in this format",
            )
        largest = max(largest, difference)
    return Compared(len(rows), largest)
