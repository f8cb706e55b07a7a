"""The numbers of docs/RESULTS.md from what the experiments have written, a function for each experiment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.real_text import experiments as real_texts
from benchmarks.real_text import gather as real_text_files
from benchmarks.shares import Numbers, interval, mean_of, over, wilson
from benchmarks.steps import (
    ABLATIONS,
    CROWD_MODELS,
    CROWD_SEEDS,
    DEMO_SEEDS,
    EXPERIMENTS,
    FEW,
    FEW_MODELS,
    NOISE,
    OPPONENTS,
    PAPER_MODELS,
    REWARDED,
    ablation,
    crowd_folder,
    few_folder,
)
from prlhf.dataset import GENERIC, read_prepared
from prlhf.forum import posts
from prlhf.judge.statistics import OUTCOMES, rate_with_interval, resampled_shares, shares
from prlhf.responses import Response, read_responses, words


def written(rows: Iterable[Response]) -> Numbers:
    """Measure words, form and style of responses."""
    rows = list(rows)
    verdicts = [posts.grade_summary(str(r.prompt), r.response, r.finish_reason == "stop") for r in rows]
    whole = [v for v in verdicts if v.well_formed]
    return {
        "words": mean_of([words(r.response) for r in rows]),
        "empty": sum(not r.response.strip() for r in rows),
        "well_formed": wilson(len(whole), len(rows)),
        "faithful": wilson(sum(v.faithful for v in verdicts), len(rows)),
        "facts": float(np.mean([v.facts for v in whole])) if whole else None,
        "order": float(np.mean([v.order for v in whole])) if whole else None,
        "tone": float(np.mean([v.tone for v in whole])) if whole else None,
    }


def by_user(path: Path) -> dict[str, list[Response]]:
    found: defaultdict[str, list[Response]] = defaultdict(list)
    for row in read_responses(path):
        found[row.user_id].append(row)
    return found


def win_rates(judged: Path) -> Numbers:
    """Return the overall win-rate, and each user's (a tie is half a win) with an interval over prompts."""
    result = json.loads((judged / "results.json").read_text())
    outcomes: defaultdict[str, list[int]] = defaultdict(list)
    for line in (judged / "verdicts.jsonl").read_text().splitlines():
        row = json.loads(line)
        outcomes[row["user_id"]].append(OUTCOMES[row["verdict"]])
    users = {}
    for user, found in outcomes.items():
        codes = np.zeros(len(found), dtype=np.int64)
        votes = np.array(found)
        resampled, _ = resampled_shares(votes, codes, 2000, 0)
        users[user] = rate_with_interval(shares(votes), resampled, "tie_half") | {"ties": int((votes == 0).sum())}
    keep = ("per_sample", "per_user", "over_users", "by_kind", "n_samples", "wins", "ties", "losses")
    return {key: result[key] for key in keep} | {"users": users}


def without_users(judged: Path) -> Numbers:
    """Return a judgement without its users, if they are too many to list."""
    return {key: value for key, value in win_rates(judged).items() if key != "users"}


def accuracy(folder: Path) -> Numbers:
    result = json.loads((folder / "results.json").read_text())
    return {**result["readings"], "by_user": result["accuracy_by_user"] if len(result["accuracy_by_user"]) < 20 else {}}


def figure3(work: Path) -> Numbers:
    runs = [json.loads((work / f"demo-{seed}" / "results.json").read_text()) for seed in DEMO_SEEDS]
    rows = []
    for same in zip(*(run["rows"] for run in runs), strict=True):
        count = 50 * len(same)
        rows.append(
            {
                "label": same[0]["label"],
                "kind": same[0]["kind"],
                "words": {
                    "mean": float(np.mean([r["words"] for r in same])),
                    "standard_error": float(np.sqrt(sum(r["standard_error"] ** 2 for r in same)) / len(same)),
                },
                "empty": sum(r["empty"] for r in same),
                "well_formed": wilson(round(sum(50 * r["well_formed"] for r in same)), count),
                "faithful": wilson(round(sum(50 * r["faithful"] for r in same)), count),
                "accuracy": _mean([r["accuracy"] for r in same]),
                "vanilla_accuracy": _mean([r["vanilla_accuracy"] for r in same]),
            }
        )
    checks = [
        {
            "name": same[0]["name"],
            "target": same[0]["target"],
            "values": [c["value"] for c in same],
            "met": all(c["met"] for c in same),
        }
        for same in zip(*(run["checks"] for run in runs), strict=True)
    ]
    return {"seeds": list(DEMO_SEEDS), "rows": rows, "checks": checks}


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def table1(work: Path) -> Numbers:
    folder = work / "profiles"
    rates = {other: win_rates(folder / "judged" / other) for other in OPPONENTS}
    texts = {
        system: {user: written(rows) for user, rows in by_user(folder / f"{system}.jsonl").items()}
        for system in ("p-dpo", *OPPONENTS)
    }
    found = accuracy(folder / "accuracy" / "p-dpo")
    against = {user: rate for user, rate in rates["vanilla"]["users"].items() if user != GENERIC}
    beaten = [user for user, rate in against.items() if rate["low"] > 0.5]
    whole = pooled([w for user, w in texts["p-dpo"].items() if user != GENERIC])
    expected = [
        row(
            "P-DPO beats vanilla DPO, interval above 50 %, for both poles of every dimension",
            f"{len(beaten)} of {len(against)} profiles",
            len(beaten) == len(against),
        ),
        shuffled(found),
        well_formed("P-DPO", whole),
    ]
    return {"win_rates": rates, "written": texts, "accuracy": found, "expected": expected}


def row(name: str, measured: str, met: bool) -> Numbers:
    """Return one of the expected results and its measured value."""
    return {"name": name, "measured": measured, "met": bool(met)}


def well_formed(name: str, whole: Numbers) -> Numbers:
    return row(f"{name}: at least 95 % well-formed", f"{interval(whole)} % of {whole['of']}", whole["share"] >= 0.95)


def shuffled(found: Numbers) -> Numbers:
    """With another user's id, accuracy must not exceed that of the generic user (its interval may contain it)."""
    measured = f"{interval(found['shuffled'])} % against {interval(found['generic'])} %"
    met = found["shuffled"]["rate"] <= found["generic"]["high"]
    return row("shuffled user ids fall to the generic level (accuracy)", measured, met)


def pooled(parts: list[Numbers]) -> Numbers:
    """Return the share of well-formed responses over several results of `written`."""
    of = sum(part["well_formed"]["of"] for part in parts)
    return wilson(round(sum(part["well_formed"]["share"] * part["well_formed"]["of"] for part in parts)), of)


def table2(work: Path) -> Numbers:
    """Return the seeds that were run."""
    steps = EXPERIMENTS["table2"].steps
    folders = {
        str(seed): work / crowd_folder(seed)
        for seed in CROWD_SEEDS
        if all((work / step.done).exists() for step in steps if step.done.startswith(f"{crowd_folder(seed)}/"))
    }
    return {seed: crowd(folder, CROWD_MODELS) for seed, folder in folders.items()}


def table2_paper(work: Path) -> Numbers:
    return {"0": crowd(work / "crowd-paper", PAPER_MODELS)}


def crowd(folder: Path, models: Iterable[str]) -> Numbers:
    """Return what was found on a crowd with these models."""
    pairs = [f"{name}-{other}" for other in ("vanilla", "chosen") for name in models]
    rates = {pair: without_users(folder / "judged" / pair) for pair in pairs if pair != "vanilla-vanilla"}
    texts = {
        name: written(r for r in read_responses(folder / f"{name}.jsonl") if r.user_id != GENERIC)
        for name in [*models, "chosen"]
    }
    readings = {name: accuracy(folder / "accuracy" / name) for name in models}
    expected = [line for name in models if name != "vanilla" for line in crowd_lines(name, rates, readings, texts)]
    users = len(read_prepared(folder / "data").users)
    return {"win_rates": rates, "accuracy": readings, "written": texts, "users": users, "expected": expected}


def crowd_lines(name: str, rates: Numbers, readings: Numbers, texts: Numbers) -> list[Numbers]:
    """Return the expected results for one user model on the crowd."""
    seen, unseen = (rates[f"{name}-vanilla"]["by_kind"][kind]["per_sample"]["tie_half"] for kind in ("seen", "unseen"))
    beats = f"{name} beats vanilla DPO with text for seen users, interval above 50 %"
    return [
        row(beats, f"{interval(seen)} %", seen["low"] > 0.5),
        row(
            f"{name} is not worse for unseen users: interval reaches 50 %",
            f"{interval(unseen)} %",
            unseen["high"] >= 0.5,
        ),
        shuffled(readings[name]) | {"name": f"{name}: shuffled user ids fall to the generic level (accuracy)"},
        well_formed(name, texts[name]["well_formed"]),
    ]


def rewards(work: Path) -> Numbers:
    folders = {"profiles": "profiles", "crowd": "crowd-paper"}
    return {
        "accuracy": {
            family: {name: accuracy(work / folder / "accuracy" / name) for name in ("rm", "p-rm")}
            for family, folder in folders.items()
        },
        "best_of_8": win_rates(work / "profiles" / "judged" / "best-of-8"),
    }


def against_reward(work: Path) -> Numbers:
    """Return what was optimized against P-RM beside P-DPO, by data set: what was run of it."""
    found = {}
    for family, (*_, names) in REWARDED.items():
        folder = work / "rounds" / family
        run = [name for name in names if (folder / f"judged/{name}-p-rm/results.json").exists()]
        if run:
            found[family] = {
                "accuracy": accuracy(folder / "accuracy" / "p-rm"),
                "well_formed": _form(folder / "p-dpo.jsonl"),
                "rows": {name: _rewarded(folder, name) for name in run},
            }
    return found


def _rewarded(folder: Path, name: str) -> Numbers:
    """Return one system's win-rates against P-DPO, the form of its responses, and the numbers of its rounds."""
    judged = {judge: win_rates(folder / "judged" / f"{name}-{judge}") for judge in ("oracle", "p-rm")}
    few = len(judged["oracle"]["users"]) < 20
    log = folder / name / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rounds = [line["candidates"] for line in lines if "candidates" in line]
    return {
        "win_rates": {judge: found["per_sample"]["tie_half"] for judge, found in judged.items()},
        "users": judged["oracle"]["users"] if few else {},
        "well_formed": _form(folder / f"{name}.jsonl"),
        "written": sum(one["written"] for one in rounds),
        "rounds": [
            {key: one[key] for key in ("reward", "kl", "entropy", "tokens")}
            | {"oracle_agrees": float(np.mean(list(one["oracle_agrees_by_user"].values())))}
            for one in rounds
        ],
    }


def _form(path: Path) -> Numbers:
    found: Numbers = written(read_responses(path))["well_formed"]
    return found


def ablations(work: Path) -> Numbers:
    """Return the settings that were run, without keys for which only the default was run."""
    there = {
        key: [v for v in values if (work / "ablations" / f"{ablation(key, v)}.jsonl").exists()]
        for key, values in ABLATIONS.items()
    }
    return {key: {v: _ablation(work, key, v) for v in values} for key, values in there.items() if len(values) > 1}


def _ablation(work: Path, key: str, value: str) -> Numbers:
    run = work / "ablations" / ablation(key, value)
    data = work / "ablations" / ("data-40" if ABLATIONS[key][value] == "40" else "data")
    minority = set(json.loads((data / "manifest.json").read_text())["simulated"]["minority"])
    scores = json.loads((run / "results.json").read_text())["eval"]
    by = scores["accuracy_by_user"]
    rows = by_user(run.with_name(f"{run.name}.jsonl"))
    kinds = {
        "minority": [r for u, rs in rows.items() if u in minority for r in rs],
        "majority": [r for u, rs in rows.items() if u not in minority | {GENERIC} for r in rs],
        "generic": rows[GENERIC],
    }
    return {
        "accuracy": over(list(by.values())),
        "minority_accuracy": wilson(round(sum(50 * by[u] for u in minority)), 50 * len(minority)),
        "generic_accuracy": scores["accuracy_generic"],
        **{kind: written(some) for kind, some in kinds.items()},
    }


def few_choices(work: Path) -> Numbers:
    """Return what was run, by noise and by comparisons per user."""
    found: Numbers = {}
    for noise in NOISE:
        for comparisons in FEW:
            if cell := _with_gains(work / few_folder(noise, comparisons)):
                found.setdefault(str(noise), {})[str(comparisons)] = cell
    return found


def _with_gains(folder: Path) -> Numbers:
    """The accuracies of models, and how much better seen users do than under vanilla DPO by the same recipe."""
    folders = {name: folder / f"accuracy-{name}" for name in FEW_MODELS}
    results = {name: json.loads((f / "results.json").read_text()) for name, f in folders.items() if f.exists()}
    opponents = {name: "paper-vanilla" if name.startswith("paper-") else "vanilla" for name in results}
    if not results or not set(opponents.values()) <= set(results):
        return {}
    seen = sorted({row.user_id for row in read_prepared(folder / "data").eval if row.seen})
    by_user = {name: np.array([result["accuracy_by_user"][user] for user in seen]) for name, result in results.items()}
    return {
        name: {reading: result["readings"][reading] for reading in ("seen", "unseen")}
        | {"gain": over(list(by_user[name] - by_user[opponents[name]]))}
        for name, result in results.items()
    }


def sweeps(work: Path) -> Numbers:
    """Return every finished sweep with its trials in order; those on real text are run by hand (see the template)."""
    paths = sorted((work / "sweeps").glob("*/results.parquet"))
    return {path.parent.name: _sweep(path) for path in paths if (path.parent / "best.yaml").exists()}


def _sweep(path: Path) -> Numbers:
    rows = pq.read_table(path).to_pylist()
    key = next(name for name in rows[0] if name.startswith("config/"))
    scores = ("accuracy_macro", "accuracy_worst_tenth", "accuracy_generic")
    trials = [{"value": r[key]} | {s: r[f"result/eval/{s}"] for s in scores} for r in rows]
    shared = json.loads((path.parent / "shared.json").read_text())
    return {
        "key": key.removeprefix("config/"),
        "trials": trials,
        "computed_before": shared["computed"],
        "cached_before": shared["cached"],
        "computed": sum(r["reference_computed"] for r in rows),
        "cached": sum(r["reference_cached"] for r in rows),
    }


def llm_judge(work: Path) -> Numbers:
    """Return Tables 1 and 2 judged by a small language model next to rule and oracle, and the judges' calibration."""
    found = {}
    for path in sorted((work / "llm").glob("*/results.json")):
        results = json.loads(path.read_text())
        judges = {name: _judged(judge) for name, judge in results["judges"].items()}
        kept = {name: results[name] for name in ("calibration", "agreement") if name in results}
        found[path.parent.name] = {"judges": judges, **kept}
    return found


def _judged(results: Numbers) -> Numbers:
    names = ("wins", "ties", "losses", "unparsed", "position_bias", "length_controlled", "significance")
    return {"rate": results["per_sample"]["tie_half"], **{name: results[name] for name in names}}


def real_text(work: Path) -> Numbers:
    """Return the experiments on real text that were begun, each with the arms that were run."""
    folder = work / "real-text"
    begun = {name: each for name, each in real_texts.EXPERIMENTS.items() if (folder / name).is_dir()}
    return {name: real_text_files.gather(experiment, folder) for name, experiment in begun.items()}


# only those that were run are shown
IN_PARTS = ("table2", "against_reward", "ablations", "sweeps", "llm_judge", "few_choices", "real_text")
GATHER: dict[str, Callable[[Path], Numbers]] = {
    "figure3": figure3,
    "table1": table1,
    "table2": table2,
    "table2_paper": table2_paper,
    "rewards": rewards,
    "against_reward": against_reward,
    "ablations": ablations,
    "sweeps": sweeps,
    "llm_judge": llm_judge,
    "few_choices": few_choices,
    "real_text": real_text,
}
