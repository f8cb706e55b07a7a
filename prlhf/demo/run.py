"""Section 5.1 of the paper in miniature, without a network: prep, train twice, generate, and Figure 3.

P-DPO (individualized) and vanilla DPO are trained on the bundled tiny base. The synthetic forum's checker then measures
the summaries of 50 held-out posts for every user. A rerun continues after the last finished step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.config import GenerateConfig, PrepConfig, TrainConfig
from prlhf.data import prepare
from prlhf.data.provenance import refuse_other_options
from prlhf.dataset import GENERIC, is_prepared, read_prepared
from prlhf.demo.figure import LengthBar, draw_lengths
from prlhf.files import atomic_file
from prlhf.folders import claim, mark
from prlhf.forum import posts
from prlhf.generate.run import generate
from prlhf.judge.statistics import mean_and_standard_error
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress
from prlhf.recipes import resolve
from prlhf.responses import Response, read_responses, words
from prlhf.results import DemoCheck, DemoFigure, FigureRow, Kind
from prlhf.train.run import train


def run_demo(
    out: Path, recipe: Mapping[str, Mapping[str, Any]], progress: Progress = SILENT, quick: bool = False
) -> DemoFigure:
    """Run the whole demo in `out`, which then holds results.json and figure3.png.

    Args:
        out: a new folder, or one of a demo to continue.
        recipe: sections `prep`, `train` and `generate`.
        progress: receives the steps.
        quick: make no checks, as the recipe trains too little to reproduce the paper's figure.

    Returns:
        The rows of the figure, the checks, and more, as in results.json.

    Raises:
        PrlhfError: `out` is not a demo or was made with other settings, or a step raises it.
    """
    claim(out, "demo")
    prep = resolve(PrepConfig, recipe.get("prep", {}), {"dataset": "demo", "out": out / "data"})
    mark(out, "demo")
    if is_prepared(prep.folder):
        refuse_other_options(prep.folder, prep, "choose another --out")
    else:
        prepare(prep, progress)
    minority = read_prepared(prep.folder).manifest["simulated"]["minority"]
    personalized = _train(out / "personalized", recipe, prep.folder, {}, progress)
    vanilla = _train(out / "vanilla", recipe, prep.folder, {"user_model": "uniform", "user_tokens": 0}, progress)
    written = {
        "personalized": _generate(out, "personalized", recipe, {"users": "all"}, progress),
        "vanilla": _generate(out, "vanilla", recipe, {"users": GENERIC}, progress),
        "base": _generate(out, "personalized", recipe, {"baseline": "base"}, progress),
    }
    rows = measure(written, personalized["eval"], vanilla["eval"], minority)
    checks = [] if quick else expectations(rows)
    figure = out / "figure3.png"
    draw_lengths([LengthBar(r.label, r.kind, r.words, r.standard_error) for r in rows], figure)
    results = DemoFigure(
        figure=str(figure),
        rows=rows,
        quick=quick,
        checks=checks,
        nll=json.loads((out / "personalized" / "model" / "prlhf.json").read_text())["train"]["nll"],
        train_seconds={"personalized": personalized["train_seconds"], "vanilla": vanilla["train_seconds"]},
    )
    with atomic_file(out / "results.json") as beside:
        beside.write_text(json_text(results.summary(), indent=2) + "\n", encoding="utf-8")
    return results


def _train(
    folder: Path, recipe: Mapping[str, Any], data: Path, changes: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    config = resolve(TrainConfig, recipe.get("train", {}), changes, {"dataset": str(data), "out": folder})
    progress.note(f"{'vanilla DPO' if config.user_model == 'uniform' else 'P-DPO'}: {folder}")
    return train(config, resume=(folder / "recipe.yaml").exists(), progress=progress)


def _generate(
    out: Path, run: str, recipe: Mapping[str, Any], changes: dict[str, Any], progress: Progress
) -> list[Response]:
    path = out / "responses" / f"{'base' if changes.get('baseline') else run}.jsonl"
    generate(out / run, resolve(GenerateConfig, recipe.get("generate", {}), changes, {"out": path}), progress)
    return read_responses(path)


def measure(
    written: Mapping[str, list[Response]],
    scores: Mapping[str, Any],
    vanilla_scores: Mapping[str, Any],
    minority: list[str],
) -> list[FigureRow]:
    """Measure the responses; returns rows in the figure's order: users, then generic, vanilla DPO, base."""
    users = list(dict.fromkeys(r.user_id for r in written["personalized"] if r.user_id != GENERIC))

    def of(user: str) -> list[Response]:
        return [r for r in written["personalized"] if r.user_id == user]

    rows = [
        _row(
            user,
            "minority" if user in minority else "user",
            of(user),
            scores["accuracy_by_user"].get(user),
            vanilla_scores["accuracy_by_user"].get(user),
        )
        for user in sorted(users, key=int)
    ]
    return [
        *rows,
        _row("generic", "generic", of(GENERIC), scores["accuracy_generic"], None),
        _row("vanilla", "vanilla", written["vanilla"], None, vanilla_scores["accuracy_macro"]),
        _row("base", "base", written["base"], None, None),
    ]


def _row(label: str, kind: Kind, responses: list[Response], accuracy: float | None, vanilla: float | None) -> FigureRow:
    verdicts = [posts.grade_summary(str(r.prompt), r.response, r.finish_reason == "stop") for r in responses]
    lengths = mean_and_standard_error(np.array([words(r.response) for r in responses], dtype=np.float64))
    return FigureRow(
        label=label,
        kind=kind,
        words=lengths["mean"] or 0.0,
        standard_error=lengths["standard_error"] or 0.0,
        well_formed=sum(v.well_formed for v in verdicts) / len(verdicts),
        faithful=sum(v.faithful for v in verdicts) / len(verdicts),
        empty=sum(not r.response.strip() for r in responses),
        accuracy=accuracy,
        vanilla_accuracy=vanilla,
    )


def expectations(rows: list[FigureRow]) -> list[DemoCheck]:
    """Compare the rows with the results of section 5.1, each for the worst user."""
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in ("user", "minority")}
    one = {row.kind: row for row in rows if row.kind not in by_kind}
    base, generic, vanilla = one["base"].words, one["generic"].words, one["vanilla"].words
    minority, majority = by_kind["minority"], by_kind["user"]
    apart = abs(_share(generic, vanilla) - 1)
    formed = min(row.well_formed for row in [*minority, *majority])
    checks = []
    if minority:
        longest = _share(max(row.words for row in minority), base)
        checks += [DemoCheck("minority users' mean length over the base's", longest, "at most 0.50", longest <= 0.5)]
    if majority:
        shortest = _share(min(row.words for row in majority), base)
        checks += [
            DemoCheck("majority users' mean length over the base's", shortest, "at least 1.15", shortest >= 1.15)
        ]
    checks += [
        DemoCheck("generic user's length apart from vanilla DPO's", apart, "at most 0.15", apart <= 0.15),
        DemoCheck("well-formed responses, worst user", formed, "at least 0.95", formed >= 0.95),
    ]
    if not minority:
        return checks
    accuracy = min(row.accuracy or 0.0 for row in minority)
    vanilla_accuracy = max(row.vanilla_accuracy or 0.0 for row in minority)
    return [
        *checks,
        DemoCheck("minority users' accuracy, worst user", accuracy, "at least 0.95", accuracy >= 0.95),
        DemoCheck(
            "vanilla DPO's accuracy for them, best user", vanilla_accuracy, "at most 0.40", vanilla_accuracy <= 0.4
        ),
    ]


def _share(words: float, of: float) -> float:
    """`words` / `of`; NaN, which meets no check, if a model writes nothing and `of` is 0."""
    return words / of if of else float("nan")
