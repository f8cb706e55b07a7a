"""Where users start in a user model, from the codes that their choices give them (user_codes.py).

A code is a point in a space of few directions of taste, and a code of 0 is the generic user. A place where users act
has many more numbers, so codes are turned into it at random: users who choose alike start alike, whatever the place.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

SOFT = 0.1  # of a user's shares that all clusters have alike: a weight of nothing would have no gradient
NARROW = 1e-3  # least variance inside clusters, by that of all codes: there may be as many clusters as users


def directions_for(codes: Tensor, numbers: int, scale: float, seed: int) -> Tensor:
    """[c, numbers] for rows = codes @ directions: `codes` [m, c], turned at random and stretched.

    Rows of users whose code is not 0 have the root mean square `scale` per number. Distances between users keep their
    ratios, as long as a row has at least c numbers.
    """
    drawn = torch.randn(codes.shape[1], numbers, generator=torch.Generator().manual_seed(seed))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    rows = codes[codes.any(1)] @ (left @ right).to(codes)
    found: Tensor = (left @ right).to(codes) * (scale / rows.square().mean().sqrt())
    return found


def clusters_of(codes: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centers [count, c] of `codes` [m, c], and the shares [m + 1, count] of users in them, the generic user's first.

    Centers are those of k-means over the users whose code is not 0. Shares are the responsibilities of Gaussians of one
    width around them. Then the centers are moved together, so that the generic user's mixture is 0.
    """
    from scipy.cluster.vq import kmeans2  # a slow import, which few runs need

    known = codes[codes.any(1)].double()
    centers = torch.zeros(count, codes.shape[1]).double()
    found = min(count, len(known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters, which stay where they were
        centers[:found] = torch.from_numpy(kmeans2(known.cpu().numpy(), found, minit="++", rng=seed)[0])
    everyone = torch.cat([torch.zeros(1, codes.shape[1]).to(codes), codes])
    variance = _squares(known.cpu(), centers).amin(1).mean().clamp(min=NARROW * known.square().sum(1).mean().cpu())
    near = (-_squares(everyone.double().cpu(), centers) * codes.shape[1] / (2 * variance)).softmax(1)
    shares = ((1 - SOFT) * near + SOFT / count).to(codes)
    moved = centers.to(codes)
    return moved - shares[0] @ moved, shares


def _squares(points: Tensor, centers: Tensor) -> Tensor:
    """Squared distances [n, K] of `points` [n, c] from `centers` [K, c]."""
    return torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
