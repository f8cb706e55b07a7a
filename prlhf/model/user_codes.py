"""Where users' choices put them before any training: a code of few numbers per user, from the frozen base alone.

A comparison has as features the difference of what the base makes of its two responses (response_states.py). What
users have in common are few directions in these features: a logistic regression per user, then the singular vectors of
all users' weights, as far as they stand out from those of users with shuffled choices (parallel analysis). In their
span every user is fitted again, under a prior of most evidence (user_fits.py). The low rank over users is that of
LoRe (arXiv 2504.14439), in closed form; prediction from codes is a baseline for everything that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prlhf.model.user_fits import Choices, fit_prior, fit_users

COMPONENTS = 40
USERS = 2**11  # users from whom the directions and the prior are found
FOLDS = 4  # parts of each user's comparisons, each of which is held out once
TRIES = 3  # how many more directions are tried, since one alone may not show where choices are few
WIDE = 10.0  # standard deviation of a temperature, which is as good as free


def whitening(differences: Tensor, components: int = COMPONENTS) -> Tensor:
    """[q, p] that turns differences [n, q] of features into p <= `components` with mean square 1, uncorrelated.

    They are the principal components of the differences, each scaled to the same size first. Nothing is centered: which
    response comes first means nothing.
    """
    import scipy.linalg  # a slow import, which few runs need

    scale = differences.double().square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.inf)  # what never differs has no weight
    scaled = differences.double() / scale
    width = scaled.shape[1]
    first = max(0, width - components)
    found = scipy.linalg.eigh((scaled.T @ scaled / len(scaled)).numpy(), subset_by_index=[first, width - 1])
    sizes, directions = (torch.from_numpy(values).flip(-1) for values in found)
    real = sizes > 1e-9 * sizes[0].clamp(min=1)
    return directions[:, real] / sizes[real].sqrt() / scale.unsqueeze(1)


@dataclass(frozen=True)
class Tastes:
    """What is known of all users, in p features: `common` weights [p], and loadings [p, c] of their deviations.

    `strengths` [p] are the singular values of the users' own weights. `held_out` is the mean log-likelihood of a
    held-out choice with 0, 1, … of the directions, of which c are used.
    """

    common: Tensor
    loadings: Tensor
    strengths: Tensor
    held_out: list[float]

    def codes(self, features: Tensor, users: Tensor, count: int) -> Tensor:
        """Codes [count, c] of users by their comparisons: features [n, p], and whose they are [n], from 0.

        In units of log-odds per unit of a feature: the prior's standard deviations are `spread`. The generic user is 0,
        and a user without comparisons is too.
        """
        choices = Choices(users, features, features.double() @ self.common, count)
        return fit_users(choices.along(self.loadings)).modes * self.spread

    def margins(self, features: Tensor, codes: Tensor) -> Tensor:
        """Log-odds [n] with which users with `codes` [n, c] prefer the chosen responses."""
        own = codes.double() @ (self.loadings / self.spread).T
        margins: Tensor = (features * (self.common + own)).sum(1)
        return margins

    @property
    def spread(self) -> Tensor:
        """The standard deviations [c] of codes over users, the largest first."""
        lengths: Tensor = self.loadings.norm(dim=0)
        return lengths


def find_tastes(features: Tensor, users: Tensor, count: int, seed: int) -> Tastes:
    """Find what users have in common from whitened features [n, p] and their users [n], 0 to count - 1."""
    choices = Choices(users, features, torch.zeros(len(features)), count)
    with_choices = torch.bincount(users, minlength=count).nonzero().squeeze(1)
    choices = choices.of_users(with_choices[drawn(len(with_choices), USERS, seed)])
    same = torch.eye(features.shape[1]).double()
    everyone = choices._replace(users=torch.zeros_like(choices.users), total=1)
    scaled = fit_prior(everyone, same, alike=True)
    common = fit_users(everyone.along(scaled)).modes[0] @ scaled.T
    choices = choices._replace(margins=choices.gradients.double() @ common)
    scaled = fit_prior(choices, same, alike=True)
    strengths, directions = _directions(choices, scaled)
    number, held_out = _held_out(choices, scaled, seed)
    return Tastes(common, fit_prior(choices, directions[:, :number]), strengths, held_out)


def _directions(choices: Choices, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """The singular values [p] and vectors [r, p] of all users' weights under the prior with loadings `scaled`."""
    weights = fit_users(choices.along(scaled)).modes @ scaled.T
    _, strengths, directions = torch.linalg.svd(weights, full_matrices=False)
    return strengths, directions.T


def _held_out(choices: Choices, scaled: Tensor, seed: int) -> tuple[int, list[float]]:
    """How many directions predict held-out choices, and the mean log-likelihood of such a choice with 0, 1, … of them.

    More directions are used if they predict better than those so far by more than a standard error over users. Those so
    far are taken at their best temperature: what a prior has shrunk for all users alike does not count.
    """
    fold = _folds(choices.users, seed)
    known, tested = ([choices.those((fold == k) == held) for k in range(FOLDS)] for held in (False, True))
    directions = [_directions(part, scaled)[1] for part in known]
    number, found = 0, [choices.margins]
    while len(found) <= min(number + TRIES, directions[0].shape[1]):
        found.append(torch.empty_like(choices.margins))
        for k, (part, test, ways) in enumerate(zip(known, tested, directions, strict=True)):
            loadings = fit_prior(part, ways[:, : len(found) - 1])
            found[-1][fold == k] = test.logits(fit_users(part.along(loadings)).modes @ loadings.T)
        if _surpass(found[-1], _tempered(found[number]), choices):
            number = len(found) - 1
    return number, [F.logsigmoid(logits).mean().item() for logits in found]


def _surpass(logits: Tensor, others: Tensor, choices: Choices) -> bool:
    """Whether `logits` [n] predict choices better than `others`, by more than a standard error clustered by user."""
    gains = F.logsigmoid(logits) - F.logsigmoid(others)
    each = torch.zeros(choices.total).double().index_add(0, choices.users, gains)
    return len(each) > 1 and bool(each.mean() > each.std() / len(each) ** 0.5)


def _tempered(logits: Tensor) -> Tensor:
    """`logits` [n] of choices, times the one number that predicts these choices best."""
    everyone = torch.zeros(len(logits), dtype=torch.long)
    scaled = Choices(everyone, WIDE * logits.unsqueeze(1), torch.zeros_like(logits), 1)
    return logits * (WIDE * fit_users(scaled).modes[0, 0])


def _folds(users: Tensor, seed: int) -> Tensor:
    """A fold for each comparison, at random; the sizes of a user's folds differ by at most 1."""
    shuffled = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
    order = shuffled[torch.argsort(users[shuffled], stable=True)]
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order)) % FOLDS)


def drawn(count: int, most: int, seed: int) -> Tensor:
    """The numbers 0 to count - 1, or `most` of them, drawn at random."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
