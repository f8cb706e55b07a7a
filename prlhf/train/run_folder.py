"""The folder of a training run, from which it can be resumed; it ends with a model, its results and its card.

recipe.yaml            the resolved settings; `prlhf train --recipe` takes it as is
metrics.jsonl          loss, accuracy and margin per step; accuracy per user per evaluation
samples.jsonl          with sample_every: what the model wrote during the training
candidates/            with online-dpo, grpo and rloo: the responses of each round, with their rewards
checkpoints/           for --resume
model/                 what `prlhf generate` and `prlhf judge` read; it is written last and marks the run as finished
results.json           the summary that --json prints
report.html            a page of the run, see runs/report.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from prlhf.config import TrainConfig
from prlhf.config.keys import unused
from prlhf.dataset import Prepared, gone, is_prepared, read_prepared
from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_dir, atomic_file
from prlhf.folders import mark, read_marker, unmark, what_is
from prlhf.model import workers
from prlhf.parse import json_text, json_value
from prlhf.progress import Progress
from prlhf.recipes import load_recipe
from prlhf.train import metrics
from prlhf.train.checkpoints import remove_checkpoints

_RESULTS = TypeAdapter(dict[str, Any])
MAY_CHANGE_ON_RESUME = {
    "out", "device", "report_to", "save_every", "keep_checkpoints", "eval_every", "eval_limit", "sample_every",
    "sample_users", "sample_prompts", "patience", "reference_cache", "reference_first",
    "dataset",  # whose content is compared
}  # fmt: skip


# ---- the settings of a run ----


def write_recipe(folder: Path, config: TrainConfig, data: Prepared, flags: str = "") -> None:
    """Write the settings that are used, with comments for what is not a setting.

    These are the `flags` that no key stands for, and the content hash of the data they were used on, for --resume.
    """
    values = config.model_dump(mode="json")
    for key in unused(config.declared, config, values):
        del values[key]
    values |= {"dataset": str(Path(config.dataset).resolve())}
    text = f"# prlhf train {flags}--recipe {folder}/recipe.yaml --out NEW\n# data: {data.manifest['content_hash']}\n"
    mark(folder, "run")
    with atomic_file(folder / "recipe.yaml") as beside:
        beside.write_text(text + yaml.safe_dump({"train": values}, sort_keys=False), encoding="utf-8")


def saved_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`. Raises PrlhfError if there is no run."""
    path = folder / "recipe.yaml"
    if not path.exists():
        raise PrlhfError(f"{folder} holds no run to resume", "start it without --resume")
    return TrainConfig.saved(load_recipe(path).get("train", {}) | {"out": str(folder)})


def data_of(config: TrainConfig, resume: bool) -> Prepared:
    """The data of a run. If the data of a resumed run are gone, the error says where they were."""
    folder = Path(config.dataset)
    if resume and not is_prepared(folder) and _same_place(saved_config(config.folder).dataset, config.dataset):
        raise gone(config.folder, config.dataset)
    return read_prepared(folder)


def check_same(config: TrainConfig, saved: TrainConfig, data: Prepared) -> None:
    """Check that a resumed run has the settings and the data of the run in its folder, which are `saved`.

    Raises:
        PrlhfError: a setting differs that must not change, or the data do.
    """
    folder = config.folder
    for key in type(config).model_fields:
        before, now = getattr(saved, key), getattr(config, key)
        if key not in MAY_CHANGE_ON_RESUME and before != now:
            raise PrlhfError(
                f"{folder} was started with {key} = {before}, not {now}", "leave it as it was, or choose another --out"
            )
    moved = not _same_place(saved.dataset, config.dataset)
    if data.manifest["content_hash"] not in (folder / "recipe.yaml").read_text(encoding="utf-8"):
        if moved:
            raise PrlhfError(
                f"{folder} was started with dataset = {saved.dataset}, and {config.dataset} holds other data",
                "leave it as it was, or choose another --out",
            )
        raise PrlhfError(f"the data in {config.dataset} changed since {folder} was started", "choose another --out")
    if moved:
        _note_place(folder / "recipe.yaml", config.dataset)


def _same_place(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _note_place(recipe: Path, dataset: str) -> None:
    """Write the new place of the data into the recipe; everything else stays as it is."""
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    place = yaml.safe_dump({"dataset": str(Path(dataset).resolve())}, width=10**6)
    with atomic_file(recipe) as beside:
        changed = ("  " + place if line.startswith("  dataset: ") else line for line in lines)
        beside.write_text("".join(changed), encoding="utf-8")


# ---- the end of a run ----


def finish(folder: Path, results: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Write the results, then with `write` the model, which marks the run as finished. Only the first worker does."""
    if workers.rank() > 0:
        return
    write_results(folder, results)
    with atomic_dir(folder / "model") as model:
        write(model)
    remove_checkpoints(folder)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write the summary that `--json` prints."""
    with atomic_file(folder / "results.json") as beside:
        beside.write_text(json_text(results, indent=2) + "\n", encoding="utf-8")


def finished(folder: Path, progress: Progress) -> dict[str, Any] | None:
    """The results of a finished run; None if it is not finished."""
    if what_is(folder / "model") != "model" or not (folder / "results.json").is_file():
        return None
    progress.note(f"{folder} is already finished")
    return read_results(folder)


def read_results(folder: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises PrlhfError if it cannot be read."""
    path = folder / "results.json"
    try:
        return _RESULTS.validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        why = f"cannot read {path}: {one_line(error)}"
        raise PrlhfError(why, "its model is there: use it, or train again") from error


def take_back(folder: Path) -> bool:
    """Remove what a start left that ended before the first step, so that the same command can be given again.

    Returns whether the run is gone.
    """
    begun = metrics.read(folder / "metrics.jsonl") or any((folder / "checkpoints").glob("checkpoint-*"))
    if not begun and read_marker(folder).get("kind") == "run":
        unmark(folder, ["recipe.yaml", "metrics.jsonl", "samples.jsonl"])
    return not begun
