"""The closed form: users' choices predicted from the frozen base and a code per user, without any training.

Hidden states of the responses (response_states.py), what users have in common, and a code for each (user_codes.py). A
baseline for everything that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prlhf.errors import NotFinite
from prlhf.model import workers
from prlhf.model.encoding import Encoded
from prlhf.model.response_states import ResponseStates
from prlhf.model.user_codes import Tastes, drawn, find_tastes, whitening

SAMPLE = 2**13  # comparisons from which the features are found
AT_ONCE = 2**12  # comparisons whose hidden states are in memory at a time, beside those that `states` keeps


@dataclass(frozen=True)
class ClosedForm:
    """Weights [q, p] from differences of hidden states to features, what users have in common, and codes [m, c]."""

    weights: Tensor
    tastes: Tastes
    codes: Tensor

    def margins(self, states: ResponseStates, data: Sequence[Encoded], user_indices: Sequence[int]) -> Tensor:
        """Log-odds [n] with which the users `user_indices` prefer the chosen responses; 0 is the generic user."""
        codes = torch.cat([torch.zeros_like(self.codes[:1]), self.codes])
        return self.tastes.margins(features_of(states, data, self.weights), codes[torch.tensor(list(user_indices))])


def closed_form(states: ResponseStates, data: Sequence[Encoded], users: int, seed: int) -> ClosedForm:
    """Find the codes of `users` seen users from their comparisons in `data`; on all workers those of the first.

    Raises:
        NotFinite: the base's hidden states of a response are nan or infinite.
    """
    sample = [data[i] for i in drawn(len(data), SAMPLE, seed).tolist()]
    weights = whitening(_finite(states.differences(sample)))
    features = _finite(features_of(states, data, weights))
    owners = torch.tensor([comparison.user_index - 1 for comparison in data])
    tastes = find_tastes(features, owners, users, seed)
    return workers.from_first(ClosedForm(weights, tastes, tastes.codes(features, owners, users)))


def features_of(states: ResponseStates, data: Sequence[Encoded], weights: Tensor) -> Tensor:
    """Features [n, p] of comparisons, in float32."""
    parts = [data[start : start + AT_ONCE] for start in range(0, len(data), AT_ONCE)]
    return torch.cat([states.differences(part) @ weights.float() for part in parts])


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise NotFinite(
            "the base's hidden states of some responses are not finite", "load the base with precision = fp32"
        )
    return values
