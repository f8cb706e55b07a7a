"""Baselines that learn new people from the same choices as `adapt`, for scoring only.

in-context    the generic user, who is shown the person's choices in the prompt, as the baseline of the same name writes
closed-form   the frozen base's hidden states and a code per person (model/closed_form.py, as RFM and LoRe)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from prlhf.adapt.newcomers import Evaluation, Read
from prlhf.adapt.slopes import margins_of
from prlhf.dataset import read_prepared
from prlhf.generate.baselines import with_examples
from prlhf.model.closed_form import SAMPLE, closed_form, features_of
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting, TooLong
from prlhf.model.response_states import ResponseStates, open_states
from prlhf.model.rewards import engine_of


def in_context(test: Evaluation) -> Callable[[int], Tensor]:
    """Margins [t] after so many choices. Those that do not fit into the context are left out, the first ones first."""
    encoder = test.trained.encoder()

    def shown(read: Read, examples: list[Read]) -> Encoded:
        for start in range(len(examples)):
            rows = [example.row for example in examples[start:]]
            try:
                return encoder.comparison(replace(read.row, prompt=with_examples(read.row.prompt, rows)))
            except TooLong:
                continue
        return read.tokens

    def margins(count: int) -> Tensor:
        tested = [shown(read, person.known[:count]) for person in test.people for read in person.tested]
        return margins_of(test.rewards, tested, test.prior.center.repeat(len(tested), 1))

    return margins


def in_closed_form(test: Evaluation) -> Callable[[int], Tensor]:
    """Margins [t] after so many choices, with what trained users have in common from at most `SAMPLE` comparisons."""
    states = ResponseStates(engine_of(test.trained), open_states(test.trained.model.lm, test.progress))
    rows = sorted(read_prepared(test.data).train, key=lambda row: row.user_index)[:SAMPLE]
    found = Fitting(True).part("comparisons", rows, test.trained.encoder().comparison)
    form = closed_form(states, [tokens for _, tokens in found], rows[-1].user_index, test.seed)
    features, tested = (features_of(states, some, form.weights) for some in (test.known, test.tested))

    def margins(count: int) -> Tensor:
        kept = test.first(count)
        codes = form.tastes.codes(features[kept], test.learners[kept], len(test.people))
        return form.tastes.margins(tested, codes[test.owners])

    return margins


BESIDE: dict[str, Callable[[Evaluation], Callable[[int], Tensor]]] = {
    "in-context": in_context,
    "closed-form": in_closed_form,
}
