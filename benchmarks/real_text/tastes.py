"""Does what is written move along the users' tastes? For users whose taste is a direction, known to the judge alone.

python -m benchmarks.real_text.tastes FROM TO    # keep the tastes beside the results
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_text.intervals import RESAMPLES
from prlhf.judge.statistics import CONFIDENCE

Row = dict[str, Any]
CUT = 3.0  # in units of the scale


def features(row: Row, middle_and_scale: Sequence[Sequence[float]]) -> list[float] | None:
    """Log words, letters per word and the root of warm words [3], scaled; None for a response without words."""
    if not row["words"] or row["letters"] is None:
        return None
    raw = [math.log(row["words"]), row["letters"], math.sqrt(row["warm"])]
    scaled = [(value - middle) / scale for value, (middle, scale) in zip(raw, middle_and_scale, strict=True)]
    return [max(-CUT, min(CUT, value)) for value in scaled]


def taste_correlation(rows: Sequence[Row], tastes: Path, seed: int = 0) -> dict[str, float] | None:
    """The correlation of mean features and directions over users and dimensions, with an interval over users.

    Of each dimension the mean over users is taken off: what is the same for all is not a taste.

    Args:
        rows: measured responses.
        tastes: a JSON file with `middle_and_scale` [3, 2] and `tastes`, a direction [3] for each user id.
        seed: of the bootstrap.
    """
    about = json.loads(tastes.read_text())
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        known = features(row, about["middle_and_scale"])
        if known and row["user_id"] in about["tastes"]:
            found.setdefault(row["user_id"], []).append(known)
    if len(found) < 2:
        return None
    written = np.array([np.mean(each, axis=0) for each in found.values()])
    wanted = np.array([about["tastes"][user] for user in found])
    drawn = np.random.default_rng(seed).integers(0, len(found), (RESAMPLES, len(found)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile([_correlation(written[some], wanted[some]) for some in drawn], [tail, 1 - tail])
    return {"mean": _correlation(written, wanted), "low": float(low), "high": float(high), "of": len(found)}


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of two tables [U, D], each less the means of its columns."""
    left, right = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.linalg.norm(left) * np.linalg.norm(right)
    return float((left * right).sum() / size) if size else math.nan


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(Path(sys.argv[1]).read_bytes())
