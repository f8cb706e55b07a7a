"""What `import prlhf` offers. Each command of the terminal is one of these functions with its options.

Settings are the keys of a recipe's section (`prlhf recipes schema`), given as keyword arguments. An unknown key is
refused, with the nearest known name as a hint. Nothing is printed unless a `progress` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf.config import ClusterConfig, GenerateConfig, JudgeConfig, PrepConfig, SweepConfig, TrainConfig, resolve
from prlhf.errors import PrlhfError
from prlhf.progress import SILENT, Progress
from prlhf.results import CheckpointAccuracy, Judgement, PreparedData, Responses, Run, Trials

if TYPE_CHECKING:
    from prlhf.loaded import Loaded

__all__ = ["generate", "judge", "judge_checkpoint", "load", "prepare", "sweep", "train"]


def prepare(dataset: str | Path, *, progress: Progress = SILENT, **settings: Any) -> PreparedData:
    """Turn raw data into a prepared data set, as `prlhf prep` does.

    Args:
        dataset: a known name (`demo`, `tldr`, …), or the path or hub id of data with the columns `prompt`, `chosen`,
            `rejected` and `user_id`.
        progress: receives the steps and the warnings.
        settings: keys of PrepConfig, such as `out` and `columns={"user_id": "annotator"}`.

    Raises:
        PrlhfError: a setting or a row is refused, the data cannot be read, or `out` cannot be written.
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
    """Train the user model and the adapter on a prepared data set, as `prlhf train` does.

    Args:
        dataset: the result of `prepare`, its folder, or a known name, which is prepared on first use. Default: `demo`.
        resume: continue the run in `out`.
        per_user: train one adapter per user, a baseline.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        progress: receives the steps and the warnings.
        settings: keys of TrainConfig, such as `user_model="cluster", k=10`.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; a checkpoint was saved first.
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


def load(
    run: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a finished run, a policy or a reward model.

    Args:
        run: the folder of the run.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto` (bf16 on GPUs), `fp32` or `bf16`.
        base: the path or hub id of the base model, if it has moved since training.
        trust_remote_code: run the code that comes with the base model.

    Raises:
        PrlhfError: `run` is not a finished run, or its files or its base cannot be read.
    """
    from prlhf.loaded import Loaded
    from prlhf.model.checkpoint import kind_of, load_policy, load_reward_model

    folder = Path(run).expanduser()
    kind = kind_of(folder)
    read: Any = load_policy if kind == "policy" else load_reward_model
    return Loaded(folder, kind, read(folder, device, precision, base, trust_remote_code))


def generate(
    run: str | Path | Run | None,
    *,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Responses:
    """Write responses for many (prompt, user) pairs to disk, as `prlhf generate` does.

    `load(run).generate` returns responses in memory.

    Args:
        run: a finished run, or None for a baseline.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        progress: receives the steps and the warnings.
        settings: keys of GenerateConfig, such as `prompts`, `users` and `out`.

    Raises:
        PrlhfError: a setting is refused, a file cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; the finished responses were saved first.
    """
    from prlhf.generate.run import generate as write

    at = resolve(ClusterConfig, {}, cluster or {})
    folder = None if run is None else _folder(run)
    return Responses.model_validate(write(folder, resolve(GenerateConfig, {}, settings), progress, at))


def judge(
    a: str | Path | Responses, b: str | Path | Responses, *, progress: Progress = SILENT, **settings: Any
) -> Judgement:
    """Compute the win-rates of the responses `a` against the responses `b`, as `prlhf judge A B` does.

    Args:
        a: the result of `generate`, a file of responses, or a folder of shards.
        b: the same for the other side.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `judge="rule:shorter"` and `out`.

    Raises:
        PrlhfError: a setting is refused, the responses cannot be read or compared, or the judge gives no answer.
    """
    from prlhf.judge.run import judge_responses

    config = resolve(JudgeConfig, {}, settings)
    first, second = (Path(side.out if isinstance(side, Responses) else side).expanduser() for side in (a, b))
    return judge_responses(first, second, config, progress)


def judge_checkpoint(
    run: str | Path | Run, dataset: str | Path | PreparedData, *, progress: Progress = SILENT, **settings: Any
) -> CheckpointAccuracy:
    """Measure how often `run` ranks held-out comparisons as their users did, as `prlhf judge --checkpoint` does.

    Args:
        run: a finished run.
        dataset: a prepared data set, whose held-out comparisons are read.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `out`.

    Raises:
        PrlhfError: a setting is refused, or the run or the data cannot be read.
    """
    from prlhf.judge.accuracy import judge_checkpoint as check

    where = Path(dataset.folder if isinstance(dataset, PreparedData) else dataset).expanduser()
    return check(_folder(run), where, resolve(JudgeConfig, {}, settings), progress)


def sweep(
    space: Mapping[str, Any],
    *,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    cluster: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> Trials:
    """Train once per point of a space of settings, as `prlhf sweep` does.

    Args:
        space: for each key its values or a range, such as `{"alpha": [0.2, 0.5], "lr": "1e-5:1e-3:log"}`.
        sections: the other sections of a recipe, `{"train": {…}, "generate": {…}}`.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        resume: continue the sweep in `out`.
        progress: receives the steps and the warnings.
        settings: keys of SweepConfig, such as `trials`, `metric` and `out`.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; finished trials are kept.
    """
    from prlhf.sweep.run import sweep as run

    config = resolve(SweepConfig, {}, settings | {"space": dict(space)})
    known: dict[str, dict[str, Any]] = {name: dict(values) for name, values in (sections or {}).items()}
    return Trials.model_validate(run(config, known, resolve(ClusterConfig, {}, cluster or {}), resume, progress))


def _folder(run: str | Path | Run) -> Path:
    return Path(run.run if isinstance(run, Run) else run).expanduser()
