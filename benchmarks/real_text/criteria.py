"""What must come out for a user model on texts that follow its users' rules, and whether it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Numbers = dict[str, Any]
OVERALL, WORST, WINS, PERPLEXITY = 0.92, 0.82, 0.70, 1.3


def criteria(found: Numbers, arm: str, dimensions: Mapping[str, Any]) -> list[Numbers]:
    """The expected results for `arm`: `name`, `measured`, `met`. What was not measured is left out."""
    ranked, apart = found["ranking"].get(arm), found["differences"].get(arm, {})
    rows = list(_accuracy(ranked, apart)) if ranked else []
    written = found["written"].get(arm)
    if written:
        rows += [*_poles(found["poles"][arm], dimensions), *_wins(found["wins"][arm])]
        rows += _sound(written, found["written"].get("base"))
    return [{"name": name, "measured": measured, "met": bool(met)} for name, measured, met in rows]


Line = tuple[str, str, bool]


def _accuracy(ranked: Numbers, apart: Numbers) -> Iterator[Line]:
    whole = ranked["all"]["accuracy"]["own"]
    worst = min(each["accuracy"]["own"]["mean"] for each in ranked["users"].values())
    yield f"accuracy over users at least {OVERALL:.0%}", percent(whole), whole["mean"] >= OVERALL
    yield f"no user below {WORST:.0%}", f"{worst:.1%}", worst >= WORST
    for what, name in (("generic", "the generic user"), ("other", "another user")):
        if what in apart:
            yield f"better as oneself than as {name}, interval above 0", percent(apart[what]), apart[what]["low"] > 0
    for what, name in (("-per-user", "one adapter per user"), ("-vanilla", "vanilla DPO")):
        if what in apart:
            yield f"not below {name}: interval reaches 0", percent(apart[what]), apart[what]["high"] >= 0
    if "generic-vanilla" in apart:
        found = apart["generic-vanilla"]
        yield "the generic user not below vanilla DPO: interval reaches 0", percent(found), found["high"] >= 0


def _poles(poles: Numbers, dimensions: Mapping[str, Any]) -> Iterator[Line]:
    for measure, found in poles.items():
        name, less, more = dimensions[measure]
        measured = f"{found['mean']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
        yield f"{name}: more for {more} than for {less}, interval above 0", measured, found["low"] > 0


def _wins(users: Numbers) -> Iterator[Line]:
    for what, name in (("generic", "the generic user's"), ("vanilla", "vanilla DPO's")):
        shares = [each[what] for each in users.values() if each[what]]
        if shares:
            worst = min(share["mean"] for share in shares)
            above = sum(share["low"] > 0.5 for share in shares)
            measured = f"{worst:.0%} at least, {above} of {len(shares)} above 50 %"
            met = worst >= WINS and above >= len(shares) - 1
            yield f"each text wins against {name} in {WINS:.0%}, all but one with intervals above 50 %", measured, met


def _sound(written: Numbers, base: Numbers | None) -> Iterator[Line]:
    if base:
        most = base["generic"]["repeated"]["high"]
        low = max(each["repeated"]["low"] for each in written.values())
        worst = max(each["repeated"]["mean"] for each in written.values())
        yield "repeated 4-grams not above the base's", f"{worst:.1%} at most, the base up to {most:.1%}", low <= most
    ratios = [each["perplexity"]["mean"] for each in written.values() if each["perplexity"]]
    if ratios:
        measured = f"{max(ratios):.2f} at most"
        yield f"perplexity at most {PERPLEXITY} times the base's", measured, max(ratios) <= PERPLEXITY


def percent(found: Numbers | None, digits: int = 1) -> str:
    """`64.0 [58.1, 70.2]`: percent with the 95 % interval; a dash for what was not measured."""
    if not found:
        return "–"
    mean, low, high = (f"{100 * found[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
