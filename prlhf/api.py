"""The front door: what `import prlhf` offers. A command of the terminal is one of these functions with its options.

Settings are the keys of a recipe's section (`prlhf recipes schema`), given as keyword arguments; unknown ones are
refused with the nearest known name. Nothing is printed unless a `progress` is handed in. All raise PrlhfError for input
that the user can fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.config import ClusterConfig, GenerateConfig, JudgeConfig, PrepConfig, SweepConfig, TrainConfig, resolve
from prlhf.errors import PrlhfError
from prlhf.loaded import Loaded, load
from prlhf.progress import SILENT, Progress
from prlhf.results import Accuracy, Judgement, PreparedData, Responses, Run, Trials

__all__ = ["Loaded", "generate", "judge", "judge_checkpoint", "load", "prepare", "sweep", "train"]


def prepare(dataset: str | Path, *, progress: Progress = SILENT, **settings: Any) -> PreparedData:
    """Turn raw data into a prepared data set, as `prlhf prep` does.

    dataset: a known name (`demo`, `tldr`, …), or the path or hub id of data with the columns `prompt`, `chosen`,
    `rejected` and `user_id`. settings: keys of PrepConfig, such as `out` and `columns={"user_id": "annotator"}`.
    """
    from prlhf.data import prepare as run

    config = resolve(PrepConfig, {}, settings | {"dataset": str(dataset)})
    return PreparedData.model_validate(run(config, progress) | {"folder": config.folder})


def train(
    dataset: str | Path | PreparedData | None = None,
    *,
    resume: bool = False,
    per_user: bool = False,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Run:
    """Train user model and adapter on a prepared data set, as `prlhf train` does.

    dataset: what `prepare` returned, its folder, or a known name, which is prepared on first use (default: `demo`).
    resume: go on with the run in `out`. per_user: one adapter for each user, a baseline. cluster: keys of
    ClusterConfig, such as `{"workers": 2}`. settings: keys of TrainConfig, such as `user_model="cluster", k=10`.
    """
    from prlhf.start_training import go_on, start

    if dataset is not None:
        settings["dataset"] = str(dataset.folder if isinstance(dataset, PreparedData) else dataset)
    if resume:
        if settings.get("out") is None:
            raise PrlhfError("resume needs the folder of the run", "give it as out")
        return Run.model_validate(go_on(Path(settings["out"]), [{}, settings], cluster or {}, per_user, None, progress))
    config, at = resolve(TrainConfig, {}, settings), resolve(ClusterConfig, {}, cluster or {})
    return Run.model_validate(start(config, at, per_user, None, progress))


def generate(
    run: str | Path | Run | None,
    *,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Responses:
    """Write responses for many (prompt, user) pairs to disk, as `prlhf generate` does.

    `load(run).generate` writes in memory. run: a finished run, or None for a baseline. settings: keys of
    GenerateConfig, such as `prompts`, `users` and `out`.
    """
    from prlhf.generate.run import generate as write

    at = resolve(ClusterConfig, {}, cluster or {})
    return Responses.model_validate(write(_folder(run), resolve(GenerateConfig, {}, settings), progress, at))


def judge(
    a: str | Path | Responses, b: str | Path | Responses, *, progress: Progress = SILENT, **settings: Any
) -> Judgement:
    """Win-rates of the responses `a` against `b`, as `prlhf judge A B` does.

    settings: keys of JudgeConfig, such as `judge="rule:shorter"` and `out`.
    """
    from prlhf.judge.run import judge_responses

    config = resolve(JudgeConfig, {}, settings)
    first, second = (Path(side.out if isinstance(side, Responses) else side).expanduser() for side in (a, b))
    return Judgement.model_validate(judge_responses(first, second, config, progress) | {"out": config.out})


def judge_checkpoint(
    run: str | Path | Run, dataset: str | Path | PreparedData, *, progress: Progress = SILENT, **settings: Any
) -> Accuracy:
    """How often `run` ranks held-out comparisons as their users did, as `prlhf judge --checkpoint` does."""
    from prlhf.judge.accuracy import judge_checkpoint as check

    where = Path(dataset.folder if isinstance(dataset, PreparedData) else dataset).expanduser()
    return Accuracy.model_validate(check(_some(run), where, resolve(JudgeConfig, {}, settings), progress))


def sweep(
    space: Mapping[str, Any],
    *,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    cluster: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> Trials:
    """Train at many points of a space of settings, as `prlhf sweep` does.

    space: key -> values or a range, such as `{"alpha": [0.2, 0.5], "lr": "1e-5:1e-3:log"}`. sections: what a recipe
    holds besides, `{"train": {…}, "generate": {…}}`. settings: keys of SweepConfig, such as `trials`, `metric`, `out`.
    """
    from prlhf.sweep.run import sweep as run

    config = resolve(SweepConfig, {}, settings | {"space": dict(space)})
    known: dict[str, dict[str, Any]] = {name: dict(values) for name, values in (sections or {}).items()}
    return Trials.model_validate(run(config, known, resolve(ClusterConfig, {}, cluster or {}), resume, progress))


def _folder(run: str | Path | Run | None) -> Path | None:
    return None if run is None else _some(run)


def _some(run: str | Path | Run) -> Path:
    return Path(run.run if isinstance(run, Run) else run).expanduser()
