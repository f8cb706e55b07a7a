"""report.html: a judgement on one page, without other files and without a network."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prlhf.dataset import conversation
from prlhf.html import BARS, BLUE, GREY, ORANGE, bars_by_user, canvas, label, percent, plain, svg, write_page
from prlhf.judge.statistics import CONVENTION_NAMES
from prlhf.judge.verdicts import Decision, Pair

EXAMPLES = 30


def write_judge_report(
    path: Path, results: Mapping[str, Any], judged: tuple[Sequence[Pair], Mapping[str, list[Decision]]], command: str
) -> None:
    """Write tables, bars of win-rates, the calibration, and examples with both responses and every verdict."""
    pairs, decided = judged
    judges = results.get("judges") or ({results["judge"]: results} if "per_sample" in results else {})
    write_page(
        path,
        "prlhf.judge",
        "report.html.jinja",
        results=results,
        judges=judges,
        command=command,
        conventions=CONVENTION_NAMES,
        bars=Markup(rate_bars(judges)) if judges else "",
        users=Markup(_user_bars(next(iter(judges.values()))["users"])) if judges else "",
        shown_users=BARS,
        calibration=results.get("calibration", {}),
        examples=_examples(pairs, decided, results.get("seed", 0)),
        percent=percent,
        interval=interval,
    )


def interval(rate: Mapping[str, float] | None) -> str:
    """A rate with its interval: `61.8 % [52.0, 71.1]`."""
    return "–" if rate is None else f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def rate_bars(judges: Mapping[str, Any]) -> str:
    """Each judge's win-rate of A (a tie is half a win) with its interval: per sample, per user, at equal length."""
    figure, axes = canvas(8.0, 0.9 + 0.95 * len(judges))
    names = []
    for row, (name, found) in enumerate(judges.items()):
        kinds = (found["per_sample"]["tie_half"], found["per_user"]["tie_half"], found["length_controlled"])
        for shift, rate, color in zip((-0.26, 0.0, 0.26), kinds, (BLUE, ORANGE, GREY), strict=True):
            error = [[rate["rate"] - rate["low"]], [rate["high"] - rate["rate"]]]
            axes.barh(row + shift, rate["rate"], 0.24, color=color, xerr=_positive(error), capsize=3)
        names.append(name)
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_xlim(0, 1)
    axes.axvline(0.5, color="#222222", lw=1, ls="--")
    axes.invert_yaxis()
    axes.set_xlabel("win-rate of A, ties half: per sample (blue), per user (orange), at equal length (grey)")
    plain(axes)
    return svg(figure)


def _user_bars(users: Sequence[Mapping[str, Any]]) -> str:
    return bars_by_user({user["user_id"]: user["rates"]["tie_half"] for user in users}, "win-rate of A, ties half")


def _positive(error: list[list[float]]) -> list[list[float]]:
    return [[max(0.0, value) for value in side] for side in error]


def _examples(pairs: Sequence[Pair], decided: Mapping[str, list[Decision]], seed: int) -> list[dict[str, Any]]:
    """Some pairs, drawn by the seed, with the decision of every judge."""
    drawn = sorted(random.Random(f"{seed}-examples").sample(range(len(pairs)), min(EXAMPLES, len(pairs))))
    return [
        {
            "user": pairs[number].user_id,
            "prompt": conversation(pairs[number].prompt),
            "a": pairs[number].a.response,
            "b": pairs[number].b.response,
            "verdict": next(islice(decided.values(), 1))[number].verdict,
            "judges": {name: decisions[number] for name, decisions in decided.items()},
        }
        for number in drawn
    ]
