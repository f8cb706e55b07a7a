"""The trials on Ray Tune: the search gives it the points, and the trial log receives the results.

Tune places trials, stops those that are behind (ASHA), and restarts those whose process was lost. After a kill, the
trial log is what --resume reads; Tune's own state is never read.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher
from typing_extensions import override

from prlhf.cluster import worker_resources
from prlhf.config import ClusterConfig, SweepConfig
from prlhf.errors import PrlhfError
from prlhf.progress import Interruptible
from prlhf.sweep.search import Search
from prlhf.sweep.settings import Settings
from prlhf.sweep.trials import Trial, TrialDisplay, metrics_of, missing_metric, no_metric

SCRATCH = ".tune"  # Tune's own files, in the sweep's folder
NO_END = 10**9  # the last step for ASHA: trials end by themselves
DRIVER = {"memory": 2.0**20}  # resources of a trial that only drives its workers; Tune refuses none at all
SETTINGS_OF_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # SweepStopper handles Ctrl-C
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # missing_metric checks it
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",  # do not wait for the next evaluation of a stopped trial
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class SweepStopper(Interruptible, tune.Stopper):  # type: ignore[misc]
    """Stops all trials after Ctrl-C, or after an error of the sweep."""

    def __init__(self) -> None:
        super().__init__()
        self.error: PrlhfError | None = None

    @override
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    @override
    def stop_all(self) -> bool:
        return self.asked or self.error is not None

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {"asked": False, "error": None, "_before": None}  # Tune pickles it; a signal handler cannot be pickled


class TuneSearch(Searcher):  # type: ignore[misc]
    """The search, for Tune."""

    def __init__(self, search: Search, out: Path, cluster: ClusterConfig) -> None:
        super().__init__()
        self._search, self._out, self._cluster = search, out, cluster

    @override
    def suggest(self, trial_id: str) -> Any:
        trial = self._search.next()
        if trial is None:
            return Searcher.FINISHED
        settings = self._search.settings_of(trial)
        train = settings.train.model_copy(update={"out": self._out / trial.name})
        return {
            "trial": trial.name,
            "out": str(self._out),
            "settings": settings.model_copy(update={"train": train}).model_dump_json(),
            "cluster": self._cluster.model_dump_json(),
            "metric": self._search.sweep.metric,
        }

    @override
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # TrialLogger passes the result to the search

    @override
    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass

    @override
    def get_state(self) -> dict[str, Any]:
        return {}


class TrialLogger(tune.Callback):  # type: ignore[misc]
    """Updates our trials with the events of Tune's, writes the log and shows them."""

    def __init__(self, search: Search, save: Callable[[], None], display: TrialDisplay, stop: SweepStopper) -> None:
        self._search, self._save, self._display, self._stop = search, save, display, stop
        self._began: dict[str, float] = {}

    def _ours(self, trial: Any) -> Trial:
        return next(ours for ours in self._search.trials if ours.name == trial.config["trial"])

    @override
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._ours(trial)
        self._began[ours.name] = time.monotonic()
        ours.status, ours.result, ours.error, ours.traceback, ours.seconds = "running", None, None, None, None
        ours.history = []
        self._changed(ours)

    @override
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours, metric = self._ours(trial), self._search.sweep.metric
        if "outcome" in result:
            self._end(ours, **json.loads(result["outcome"]))
            return
        ours.result = {name: value for name, value in metrics_of(result).items() if name == "step" or "/" in name}
        value = ours.result.get(metric)
        if value is not None and "step" in ours.result:
            ours.history = [*ours.history, (int(ours.result["step"]), value)]
        elif self._search.sweep.asha and metric not in result:
            self._stop.error = no_metric("an evaluation of " + ours.name, metric, ours.result)
        self._changed(ours)

    @override
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._ours(trial)
        if ours.status == "running":  # it did not end by itself
            self._end(ours, "interrupted" if self._stop.stop_all() else "stopped", ours.result)

    @override
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._ours(trial)
        if ours.status == "running":
            why = str(trial.get_error() or "no reason is known").strip().splitlines()[-1]
            self._end(ours, "failed", None, f"its process was lost repeatedly: {' '.join(why.split())[:200]}")

    def _end(
        self,
        ours: Trial,
        status: Any,
        result: dict[str, Any] | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        ours.status, ours.result, ours.error, ours.traceback = status, result, error, traceback
        ours.seconds = round(time.monotonic() - self._began[ours.name], 3)
        if status != "interrupted":
            self._search.ended(ours)
        self._stop.error = self._stop.error or missing_metric(ours, self._search.sweep.metric)
        self._changed(ours)

    def interrupt(self) -> None:
        """Mark the trials that still run as interrupted."""
        for ours in self._search.trials:
            if ours.status == "running":
                self._end(ours, "interrupted", ours.result)

    def _changed(self, ours: Trial) -> None:
        self._save()
        self._display.changed(self._search.trials, ours)


def run_trials(
    search: Search, out: Path, cluster: ClusterConfig, concurrent: int, save: Callable[[], None], display: TrialDisplay
) -> bool:
    """Run the trials of `search` in the cluster that this process is connected to; returns False after Ctrl-C.

    Args:
        search: gives the trials.
        out: the folder of the sweep.
        cluster: where a trial runs: in a task, or on workers.
        concurrent: the number of trials at a time.
        save: writes the trial log.
        display: receives the trials while they run.

    Raises:
        PrlhfError: a trial is done without the metric of the sweep.
    """
    os.environ.update({name: value for name, value in SETTINGS_OF_TUNE.items() if name not in os.environ})
    resources = DRIVER if cluster.workers else worker_resources(cluster)
    with SweepStopper() as stop:
        logger = TrialLogger(search, save, display, stop)
        tuner = tune.Tuner(
            tune.with_resources(in_worker, resources),
            tune_config=tune.TuneConfig(
                search_alg=TuneSearch(search, out, cluster),
                scheduler=_scheduler(search),
                num_samples=search.total,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # the next trial need not import torch
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{time.time_ns()}",  # a new name, so that Tune does not find earlier state
                storage_path=str(out / SCRATCH),
                callbacks=[logger],
                stop=stop,
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            logger.interrupt()
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
    if stop.error:
        raise stop.error
    return not stop.asked


def _scheduler(search: Search) -> Any:
    """ASHA with the reports of earlier runs of the sweep, or a scheduler that stops nothing."""
    sweep: SweepConfig = search.sweep
    if not sweep.asha:
        return FIFOScheduler()
    grace = sweep.grace or min(settings.train.eval_every for settings in search.upcoming())
    asha = ASHAScheduler("step", sweep.metric, sweep.mode, NO_END, grace, sweep.reduction)
    for trial in search.trials:
        if trial.finished:
            known = SimpleNamespace(trial_id=trial.name)
            asha.on_trial_add(None, known)
            for step, value in trial.history:
                asha.on_trial_result(None, known, {"step": step, sweep.metric: value})
    return asha


# ---- in the workers ----


def in_worker(config: dict[str, Any]) -> None:
    """Run a trial in a process of Ray. Errors are reported as its outcome: Tune must restart only lost processes."""
    gc.collect()  # memory of the trial before it in this process
    from prlhf.sweep.trial import run_trial

    settings = Settings.model_validate_json(config["settings"])
    cluster = ClusterConfig.model_validate_json(config["cluster"])
    outcome: dict[str, Any] = {"status": "failed"}
    last: dict[str, float] = {}
    try:
        result = run_trial(settings, cluster, Path(config["out"]), tune.report)
        outcome = {"status": "done", "result": result}
        if config["metric"] in metrics_of(result):
            last = {"step": result.get("steps", NO_END), config["metric"]: metrics_of(result)[config["metric"]]}
    except PrlhfError as error:
        outcome["error"] = " ".join(str(error).split())
    except Exception as error:  # a bug in one trial must not end the others
        outcome["error"] = " ".join(f"{type(error).__name__}: {error}".split())
        outcome["traceback"] = traceback.format_exc()
    tune.report({**last, "outcome": json.dumps(outcome)})


def precompute_in_cluster(
    trials: list[Settings], against: Settings | None, out: Path, cluster: ClusterConfig, relay: Any
) -> dict[str, int]:
    """Run `trial.precompute` as one task in the cluster. Raises its PrlhfError."""
    resources = worker_resources(cluster)
    task = ray.remote(_precompute).options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    texts = [settings.model_dump_json() for settings in trials]
    base = against.model_dump_json() if against else None
    counts, error = ray.get(task.remote(texts, base, str(out), cluster.workers > 0, relay))
    if error:
        raise PrlhfError(*error)
    return counts  # type: ignore[no-any-return]


def _precompute(
    trials: list[str], against: str | None, out: str, workers: bool, relay: Any
) -> tuple[dict[str, int], Any]:
    from prlhf.sweep.trial import precompute

    found = [Settings.model_validate_json(text) for text in trials]
    base = Settings.model_validate_json(against) if against else None
    try:
        return precompute(found, base, Path(out), workers, relay), None
    except PrlhfError as error:
        return {}, (error.message, error.hint)
