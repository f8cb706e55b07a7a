"""report.html: a training run on one page, finished or not, without other files and without a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prlhf.dataset import conversation
from prlhf.html import BARS, GREY, ORANGE, bars_by_user, claim_page, number, percent, write_page
from prlhf.model.per_user import read_per_user
from prlhf.results import RunComparison
from prlhf.runs.pictures import Curve, curves, scatter
from prlhf.runs.plane import Plane, planes
from prlhf.runs.read import StoredRun, read_run

PAGE = "report.html"
GENERATOR = "prlhf runs"  # named in the pages, which is how a page of ours is recognized
FILES = ("recipe.yaml", "results.json", "metrics.jsonl", "samples.jsonl", "model/README.md")
PROMPTS, STEPS = 4, 12  # samples on the page: prompts, and steps of each, the first, the last and evenly spaced ones
ABOUT = {
    "offsets.weight": "Vectors in front of the prompt: what each user adds to the generic user.",
    "weights.weight": "Weights of the clusters whose vectors stand in front of the prompt.",
    "gates.offsets.weight": "Gates on the adapter's rank: what each user adds to the generic user's, which are 1.",
    "gates.weights.weight": "Weights of the clusters whose gates multiply the adapter's rank.",
}


def write_run_report(folder: Path, path: Path | None = None) -> Path:
    """Write the page of the run in `folder` to `path`, by default report.html in the folder; returns the path.

    Raises:
        PrlhfError: there is no run, a file of it is damaged, or the page cannot be written.
    """
    run, path = read_run(folder), path or folder / PAGE
    claim_page(path, GENERATOR)
    scores = run.scores
    accuracy: dict[str, float] = scores.get("accuracy_by_user", {})
    summary = run.summary()
    write_page(
        path,
        "prlhf.runs",
        "report.html.jinja",
        generator=GENERATOR,
        run=summary,
        unit="reward" if run.config.objective == "rm" else "implicit reward",
        results=run.results,
        scores=scores,
        best=run.results.get("best"),
        pictures=[Markup(picture) for picture in _curves(run)],  # matplotlib has escaped their texts
        bars=Markup(bars_by_user(accuracy, "accuracy, held out")) if accuracy else "",
        users=[(user, *(scores[f"{name}_by_user"].get(user) for name in ("accuracy", "generic", "margin")))
               for user in list(accuracy)[:BARS]],
        more_users=max(0, len(accuracy) - BARS),
        planes=[(ABOUT.get(one.table, one.table), Markup(scatter(one))) for one in _planes(run)],
        samples=_samples(run.samples),
        settings=run.config.model_dump(mode="json", exclude={"out"}).items(),
        given=run.config.given(),
        used=[name for name, key in run.config.declared.items() if key.unmet(run.config) is None],
        links=_links(run, path),
        percent=percent,
        number=number,
    )  # fmt: skip
    return path


def write_comparison(found: RunComparison, path: Path) -> None:
    """Write the page of runs side by side; each run that has a page of its own is a link to it.

    Raises:
        PrlhfError: the page cannot be written.
    """
    claim_page(path, GENERATOR)
    start = path.resolve().parent
    own = [run.run.resolve() / PAGE for run in found.runs]
    pages = [Path(os.path.relpath(page, start)).as_posix() if page.is_file() else "" for page in own]
    write_page(
        path,
        "prlhf.runs",
        "compare.html.jinja",
        generator=GENERATOR,
        found=found,
        pages=pages,
        percent=percent,
        number=number,
    )


def _curves(run: StoredRun) -> list[str]:
    """A picture of each thing that was logged of more than one step."""
    best = (run.results.get("best") or {}).get("step")

    def of_steps(name: str, title: str, **look: Any) -> list[Curve]:
        rows = [row for row in run.steps if isinstance(row.get(name), float)]
        return [Curve(title, [row["step"] for row in rows], [row[name] for row in rows], **look)] if rows else []

    def held_out(name: str, title: str, color: str = ORANGE) -> list[Curve]:
        rows = [row for row in run.evaluations if isinstance(row["eval"].get(name), float)]
        values = [row["eval"][name] for row in rows]
        return [Curve(title, [row["step"] for row in rows], values, color, dots=True)] if rows else []

    found: dict[str, list[Curve]] = {
        "loss, nats": of_steps("loss", "loss"),
        "accuracy": [
            *of_steps("accuracy", "training"),
            *held_out("accuracy_macro", "held out, mean of users"),
            *held_out("accuracy_generic", "held out, as generic", GREY),
        ],
        "margin of rewards": [*of_steps("margin", "training"), *held_out("margin_mean", "held out")],
        "log-ratio to the reference, nats": [
            *of_steps("log_ratio_chosen", "chosen"),
            *of_steps("log_ratio_rejected", "rejected", color=ORANGE),
        ],
        "KL to the reference, nats per token": of_steps("kl_per_token", "candidates"),
        "held out, nats per token": held_out("nats_per_token", "held out"),
    }
    return [curves(title, lines, best) for title, lines in found.items() if any(len(line.steps) > 1 for line in lines)]


def _planes(run: StoredRun) -> list[Plane]:
    """Users in two dimensions, once there is a model that tells them apart."""
    there = (run.folder / "model" / "user_model.safetensors").is_file()
    return planes(run.folder / "model", run.config) if there and run.config.objective != "sft" else []


def _samples(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples by prompt, user and step; of many prompts the first ones, of many steps evenly spaced ones."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(str(row["prompt_id"]), {"prompt": conversation(row["prompt"]), "users": {}})
        one["users"].setdefault(str(row["user_id"]), []).append((row["step"], row["response"]))
    shown = list(found.values())[:PROMPTS]
    for one in shown:
        one["users"] = {user: _spread(written) for user, written in one["users"].items()}
    return shown


def _spread(items: Sequence[Any]) -> list[Any]:
    if len(items) <= STEPS:
        return list(items)
    return [items[i * (len(items) - 1) // (STEPS - 1)] for i in range(STEPS)]


def _links(run: StoredRun, page: Path) -> list[tuple[str, str]]:
    """(name, address relative to the page) of the files of the run that there are, and of the users' own pages."""
    users = read_per_user(run.folder).users if run.per_user else []
    named = [*((name, name) for name in FILES)]
    named += [(f"users/{index}/{PAGE}", f"{user}: users/{index}/{PAGE}") for index, user in enumerate(users, start=1)]
    start = page.resolve().parent
    return [
        (title, Path(os.path.relpath(run.folder.resolve() / name, start)).as_posix())
        for name, title in named
        if (run.folder / name).is_file()
    ]
