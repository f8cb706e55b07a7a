"""What was found in the files of an experiment, as one table of numbers; what was not run is not in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_text.experiments import Arm, Experiment
from benchmarks.real_text.measures import read_measures
from benchmarks.real_text.ranking import difference, ranking
from benchmarks.real_text.scores import read_scores
from benchmarks.real_text.style import plain
from benchmarks.real_text.tasks import PEOPLE, TASTES
from benchmarks.real_text.tastes import taste_correlation
from benchmarks.real_text.writing import base_curve, pole_difference, win_share, written
from prlhf.dataset import GENERIC, read_prepared
from prlhf.responses import read_responses

Row = dict[str, Any]
Numbers = dict[str, Any]
EXAMPLES, EXAMPLE_LENGTH = 10, 400  # prompts, and letters of a response
WHOLE = ("examples", "rules")  # not by arm: as found now, or as found earlier where the files are not here


def gather(experiment: Experiment, work: Path) -> Numbers:
    """The numbers of an experiment, by what they say and then by arm."""
    root = work / experiment.name
    arms = {arm.name: arm for arm in experiment.arms}
    scores = {name: _rows(root, experiment, name, "scores.jsonl", read_scores) for name in arms}
    texts = {name: _rows(root, experiment, name, "measures.jsonl", read_measures) for name in arms}
    scores, texts = ({name: rows for name, rows in found.items() if rows} for found in (scores, texts))
    rules = rules_of(experiment, root)
    curve = base_curve([row["nll"] for row in texts.get("base", [])])
    return {
        "name": experiment.name,
        "arms": {name: _about(root, experiment, arm) for name, arm in arms.items()},
        "ranking": {name: ranking(rows) for name, rows in scores.items()},
        "differences": {name: differences(scores, name, arms[name].vanilla) for name in scores},
        "written": {name: by_user(rows, curve) for name, rows in texts.items()},
        "poles": {name: poles(experiment, rows) for name, rows in texts.items()},
        "wins": {name: winning(rules, texts, name, arms[name].vanilla) for name in texts},
        "correlations": correlations(texts, root / TASTES),
        "newcomers": newcomers(experiment, root),
        "rules": rules,
        "examples": examples(experiment, root),
    }


def with_earlier(earlier: Numbers, found: Numbers) -> Numbers:
    """The numbers found now, and those found earlier of the arms whose files are not here; an arm is never mixed.

    An arm that was measured earlier with a seed that is not here stands beside it, as `ARM/SEEDS`.
    """
    measured = {name for name, about in found["arms"].items() if about["seeds"]}
    places = {name: place for place, name in enumerate(found["arms"])}
    whole = dict(found)
    for table, rows in _apart(earlier, found).items():
        both = found.get(table, {}) | {name: row for name, row in rows.items() if name not in measured}
        known = [name for name in both if arm_of(name) in places]
        whole[table] = {name: both[name] for name in sorted(known, key=lambda one: places[arm_of(one)])}
    return whole | {table: found[table] or earlier.get(table) for table in WHOLE}


def arm_of(name: str) -> str:
    """The arm of a row, which is called `ARM` or `ARM/SEEDS`."""
    return name.partition("/")[0]


def label(arms: Numbers, name: str) -> str:
    """What an arm is called in tables: with its seeds if other seeds have a row of their own."""
    about = str(arms[name]["about"])
    alone = sum(arm_of(other) == arm_of(name) for other in arms) == 1
    return about if alone else f"{about}, seed {', '.join(arms[name]['seeds'])}"


def _apart(earlier: Numbers, found: Numbers) -> Numbers:
    """The tables of `earlier` by arm, in which arms with a seed that was not measured again have names of their own."""
    names = {}
    for name, about in earlier["arms"].items():
        again = found["arms"].get(name, about)["seeds"] or about["seeds"]
        names[name] = f"{name}/{','.join(about['seeds'])}" if set(about["seeds"]) - set(again) else name
    tables = {table: rows for table, rows in earlier.items() if isinstance(rows, dict) and table not in WHOLE}
    return {table: {names.get(name, name): row for name, row in rows.items()} for table, rows in tables.items()}


def differences(scores: Mapping[str, Sequence[Row]], name: str, vanilla: str = "vanilla") -> Numbers:
    """Accuracy of an arm as oneself less that as the generic user, as another, and less that of the other arms.

    `-vanilla` and `generic-vanilla`: of the arm, and of its generic user, less that of the arm `vanilla`.
    """
    own = scores[name]
    found = {as_who: difference(own, "own", own, as_who) for as_who in ("generic", "other")}
    found |= {f"-{other}": difference(own, "own", rows, "own") for other, rows in scores.items() if other != name}
    if vanilla in scores and vanilla != name:
        found["-vanilla"] = difference(own, "own", scores[vanilla], "own")
        found["generic-vanilla"] = difference(own, "generic", scores[vanilla], "own")
    return {what: value for what, value in found.items() if value}


def by_user(rows: Sequence[Row], curve: Sequence[float]) -> Numbers:
    users = dict.fromkeys(row["user_id"] for row in rows)
    return {user: written([row for row in rows if row["user_id"] == user], curve) for user in users}


def poles(experiment: Experiment, rows: Sequence[Row]) -> Numbers:
    """For each dimension how far its two users are apart, where both were written for."""
    found = {
        measure: pole_difference(rows, measure, less, more)
        for measure, (_, less, more) in experiment.dimensions.items()
    }
    return {measure: value for measure, value in found.items() if value}


def winning(
    rules: Mapping[str, tuple[str, int]], texts: Mapping[str, Sequence[Row]], name: str, vanilla: str = "vanilla"
) -> Numbers:
    """How often each user's text wins by their own rule against that of the generic user, of this and other arms."""
    against = {"generic": name, "vanilla": vanilla, "base": "base"}
    found: Numbers = {}
    for user, rule in rules.items():
        shares = {
            what: win_share(texts[name], user, texts.get(arm, []), GENERIC, rule) for what, arm in against.items()
        }
        if any(shares.values()):
            found[user] = shares
    return found


def correlations(texts: Mapping[str, Sequence[Row]], tastes: Path) -> Numbers:
    """For each arm how far what is written moves along the users' tastes, if these are known."""
    if not tastes.exists():
        return {}
    found = {name: taste_correlation(rows, tastes) for name, rows in texts.items()}
    return {name: value for name, value in found.items() if value}


def newcomers(experiment: Experiment, root: Path) -> Numbers:
    """Of each arm and seed how well people who were in no training are ranked, by the number of their choices."""
    found: Numbers = {}
    for arm in experiment.arms:
        for seed in experiment.seeds:
            path = root / arm.name / str(seed) / PEOPLE / "results.json"
            if path.exists():
                result = json.loads(path.read_text(encoding="utf-8"))
                rows = [
                    {"choices": at["choices"]}
                    | {who: {"mean": rate.pop("rate")} | rate for who, rate in at["readings"].items()}
                    for at in result["by_choices"]
                ]
                found.setdefault(arm.name, {})[str(seed)] = {"people": result["users"], "by_choices": rows}
    return found


def rules_of(experiment: Experiment, root: Path) -> Mapping[str, tuple[str, int]]:
    """Each user's rule: that of the experiment, or for simulated choices by length that of the prepared data."""
    if experiment.rules or not (root / "data" / "manifest.json").exists():
        return experiment.rules
    data = read_prepared(root / "data")
    simulated = data.manifest.get("simulated") or {}
    if simulated.get("by") != "length":
        return {}
    return {user: ("words", -1 if user in simulated["minority"] else 1) for user in data.user_ids}


def examples(experiment: Experiment, root: Path) -> Numbers | None:
    """Responses of the first arm of `shown` that has written, to some of its prompts; None if none has."""
    for name in experiment.shown:
        for seed in experiment.seeds:
            path = root / name / str(seed) / "responses.jsonl"
            if path.exists():
                rows = read_responses(path)
                prompts = list(dict.fromkeys(row.prompt_id for row in rows))
                chosen = prompts[:: max(1, len(prompts) // EXAMPLES)][:EXAMPLES]
                texts = [{"prompt": plain(row.prompt), "user": row.user_id, "text": _short(row.response),
                          "ended": row.finish_reason == "stop"} for row in rows if row.prompt_id in chosen]  # fmt: skip
                return {"arm": name, "seed": seed, "texts": texts}
    return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXAMPLE_LENGTH else line[:EXAMPLE_LENGTH] + " …"


def _about(root: Path, experiment: Experiment, arm: Arm) -> Numbers:
    """What an arm is, and which of its files are there, by seed."""
    seeds = {}
    for seed in experiment.seeds:
        here = root / arm.name / str(seed)
        names = ("run/results.json", "scores.jsonl", "measures.jsonl")
        if there := [name for name in names if (here / name).exists()]:
            seeds[str(seed)] = there
    return {"about": arm.about, "options": arm.train, "seeds": seeds}


def _rows(root: Path, experiment: Experiment, arm: str, file: str, read: Any) -> list[Row]:
    """The rows of an arm's files of all seeds, each with its seed."""
    found = []
    for seed in experiment.seeds:
        path = root / arm / str(seed) / file
        if path.exists():
            found += [row | {"seed": seed} for row in read(path)]
    return found
