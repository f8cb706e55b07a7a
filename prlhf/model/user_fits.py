"""How users choose: a logistic regression for each of many users at once, under one Gaussian prior for all of them.

User u prefers the chosen response of comparison n with probability

    sigmoid(margin_n + gradient_n . w_u),    w_u = L z_u,    z_u ~ N(0, I),

where the margin is what everyone has in common and the gradient what can differ: the difference of two responses'
features, or the slope of a policy's margin by the numbers of a user. L L' is the prior's covariance over users. The
mode of z_u is 0 for a user without comparisons, and stays near 0 where these are few or contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 2**22  # numbers of padded gradients, or of precisions, in memory at a time
NEWTON_STEPS, HALVINGS, CLOSE = 50, 30, 1e-6  # at most; and no number moves by more in the last step
ROUNDS, GAIN = 60, 1e-4  # of expectation-maximization at most; it ends below so many nats a user


class Choices(NamedTuple):
    """n comparisons of `total` users: whose they are [n] (0 to total - 1), gradients [n, r], and margins [n]."""

    users: Tensor
    gradients: Tensor
    margins: Tensor
    total: int

    def along(self, loadings: Tensor) -> Choices:
        """The same comparisons by the coordinates z [c] of w = L z, for `loadings` L [r, c]."""
        return self._replace(gradients=self.gradients @ loadings.to(self.gradients.dtype))

    def scaled(self, by: float) -> Choices:
        """The same comparisons by coordinates of which 1 stands for `by`."""
        return self._replace(gradients=self.gradients * by)

    def of_users(self, wanted: Tensor) -> Choices:
        """The comparisons of the users `wanted` [k], who are users 0 to k - 1 of the result."""
        place = torch.full((self.total,), -1).scatter(0, wanted, torch.arange(len(wanted)))
        kept = self.those(place[self.users] >= 0)
        return kept._replace(users=place[kept.users], total=len(wanted))

    def those(self, kept: Tensor) -> Choices:
        """The comparisons where `kept` [n] is true, of the same users."""
        return self._replace(users=self.users[kept], gradients=self.gradients[kept], margins=self.margins[kept])

    def logits(self, weights: Tensor) -> Tensor:
        """The log-odds [n] of the choices, for users with weights [total, r]."""
        return self.margins + (self.gradients * weights[self.users]).sum(1)


@dataclass(frozen=True)
class Fits:
    """What the comparisons say of each user: modes of z [m, c], and log evidence [m] in nats (Laplace).

    `moments` [c, c]: the mean of E[z z'] over the users who have comparisons. It is I where the prior describes them.
    """

    modes: Tensor
    evidence: Tensor
    moments: Tensor


def fit_users(choices: Choices) -> Fits:
    """The posterior mode of every user under N(0, I), in float64, by Newton's method for many users side by side.

    Users with similar numbers of comparisons are fitted together, so that time and memory grow with the comparisons
    and not with the user who has most of them.
    """
    width = choices.gradients.shape[1]
    modes, evidence = torch.zeros(choices.total, width).double(), torch.zeros(choices.total).double()
    moments, fitted = torch.zeros(width, width).double(), 0
    for users, padded in _batches(choices):
        modes[users], precision = _newton(padded)
        root = torch.linalg.cholesky(precision)
        evidence[users] = _log_joint(padded, modes[users]) - root.diagonal(dim1=1, dim2=2).log().sum(1)
        moments += modes[users].T @ modes[users] + torch.cholesky_inverse(root).sum(0)
        fitted += len(users)
    return Fits(modes, evidence, moments / max(fitted, 1))


def fit_prior(choices: Choices, loadings: Tensor, alike: bool = False) -> Tensor:
    """The loadings [r, c] of most evidence in the span of `loadings`, by expectation-maximization from there.

    Start wide: a prior shrinks in few rounds and grows in many. The columns of the result are orthogonal, the longest
    first: their lengths are the standard deviations of w over users (a seventh too small at 1.2 and 30 comparisons, by
    Laplace's approximation). `alike`: all columns keep their ratios, and the
    prior has one scale.
    """
    evidence = -torch.inf
    for _ in range(ROUNDS):
        fits = fit_users(choices.along(loadings))
        gained, evidence = fits.evidence.sum().item() - evidence, fits.evidence.sum().item()
        if gained < GAIN * choices.total:
            break
        if alike:
            loadings = loadings * fits.moments.diagonal().mean().sqrt()
        else:
            directions, lengths, _ = torch.linalg.svd(loadings @ _root(fits.moments), full_matrices=False)
            loadings = directions * lengths
    return loadings


def _root(covariance: Tensor) -> Tensor:
    values, directions = torch.linalg.eigh(covariance)
    root: Tensor = directions * values.clamp(min=0).sqrt()
    return root


class _Padded(NamedTuple):
    """Comparisons of b users, k each: gradients [b, k, r], margins [b, k], and which are real [b, k]."""

    gradients: Tensor
    margins: Tensor
    real: Tensor


def _batches(choices: Choices) -> Iterator[tuple[Tensor, _Padded]]:
    """Users [b] with comparisons, those with fewest first, and their comparisons in float64."""
    each = torch.bincount(choices.users, minlength=choices.total)
    rows, starts = torch.argsort(choices.users, stable=True), each.cumsum(0) - each
    order = torch.argsort(each, stable=True)[int((each == 0).sum()) :]
    width = max(choices.gradients.shape[1], 1)
    while len(order):
        numbers = each[order].clamp(min=width) * width * torch.arange(1, len(order) + 1)
        some = max(1, int((numbers <= AT_ONCE).sum()))
        users, order = order[:some], order[some:]
        place = torch.arange(int(each[users[-1]]))
        real = place < each[users].unsqueeze(1)
        at = rows[(starts[users].unsqueeze(1) + place).where(real, starts[users].unsqueeze(1))]
        yield users, _Padded(choices.gradients[at].double() * real.unsqueeze(2), choices.margins[at].double(), real)


def _newton(of: _Padded) -> tuple[Tensor, Tensor]:
    """Modes [b, r], and the precision [b, r, r] there. A step is halved for those whom it would make worse."""
    modes = torch.zeros(len(of.real), of.gradients.shape[2]).double()
    value = _log_joint(of, modes)
    for _ in range(NEWTON_STEPS):
        slope, precision = _derivatives(of, modes)
        step = torch.linalg.solve(precision, slope.unsqueeze(2)).squeeze(2)
        for _ in range(HALVINGS):
            tried = _log_joint(of, modes + step)
            worse = tried < value - CLOSE
            if not worse.any():
                break
            step = torch.where(worse.unsqueeze(1), step / 2, step)
        modes, value = modes + step, tried
        if not step.numel() or step.abs().max() < CLOSE:
            break
    return modes, _derivatives(of, modes)[1]


def _logits(of: _Padded, modes: Tensor) -> Tensor:
    return of.margins + torch.einsum("bkr,br->bk", of.gradients, modes)


def _log_joint(of: _Padded, modes: Tensor) -> Tensor:
    """Log p(choices | z) + log N(z; 0, I) [b], without the constant that the evidence does not have."""
    return (F.logsigmoid(_logits(of, modes)) * of.real).sum(1) - modes.square().sum(1) / 2


def _derivatives(of: _Padded, modes: Tensor) -> tuple[Tensor, Tensor]:
    """The slope [b, r] of `_log_joint` and its negative curvature [b, r, r]."""
    chosen = torch.sigmoid(_logits(of, modes))
    slope = torch.einsum("bkr,bk->br", of.gradients, (1 - chosen) * of.real) - modes
    weighted = of.gradients * (chosen * (1 - chosen) * of.real).unsqueeze(2)
    return slope, of.gradients.transpose(1, 2) @ weighted + torch.eye(modes.shape[1]).double()
