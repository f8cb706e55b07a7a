"""Training on Ray workers: the training function of run.py in each of them, Ray Train around it.

The run folder is here, where the command was typed; each worker has a folder of its own that goes with it. What is to
outlive a machine goes to the store (storage.py).
"""

from __future__ import annotations

import importlib
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from prlhf.cluster import Relay, actor_here, check_fits, connected, shown_by, worker_resources
from prlhf.config import ClusterConfig, TrainConfig
from prlhf.dataset import Prepared
from prlhf.errors import Interrupted, NotFinite, PrlhfError, one_line
from prlhf.files import scratch_dir
from prlhf.model import workers
from prlhf.progress import SILENT, Progress
from prlhf.train.checkpoints import random_state_name
from prlhf.train.loop import Listener, Loop, Report, Stop
from prlhf.train.run import checked, learn
from prlhf.train.run_folder import finished, take_back, write_recipe, write_results
from prlhf.train.storage import Store, fetch_newest, fetch_recipe, fetch_results, keep_cluster

LOOK_SECONDS = 0.5  # how often a worker looks whether it is to stop


def train_on_ray(
    config: TrainConfig,
    cluster: ClusterConfig,
    resume: bool = False,
    progress: Progress = SILENT,
    report: Report | None = None,
) -> dict[str, Any]:
    """`prlhf.train.run.train` on `cluster.workers` Ray workers; the same summary, and the same run but for rounding.

    Raises PrlhfError for input the user can mend, what the cluster has no room for included, and Interrupted after a
    saved Ctrl-C.
    """
    store = Store(cluster.storage, config.folder)
    store.claim()
    if resume:
        fetch_recipe(config.folder, cluster)
    config, data = checked(config, resume, progress)
    if resume and (done := finished(config.folder, progress)):
        return done
    check_share(config, cluster)
    if not resume and store.exists("checkpoints"):
        raise PrlhfError(f"{store} already holds a run", "go on with --resume, or choose another --out or --storage")
    with connected(cluster):
        each = worker_resources(cluster)
        check_fits(cluster.workers, each)
        if not resume:
            write_recipe(config.folder, config, data)
            keep_cluster(config.folder, cluster)
            store.begin(config.folder / "recipe.yaml")
        outcome = _fit(config, cluster, each, data, store, progress, report)
    if "error" in outcome:
        if not resume and not store.checkpoints():
            store.give_back()
            take_back(config.folder)
        raise PrlhfError(*outcome["error"])
    if "stopped" in outcome:
        raise Interrupted(outcome["stopped"])
    fetch_results(store, config.folder)
    results: dict[str, Any] = outcome["results"] | {"run": str(config.folder)}  # not the worker's scratch folder
    write_results(config.folder, results)
    return results


def check_share(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise PrlhfError if the run cannot be shared by the cluster's workers."""
    if config.batch_size < cluster.workers:
        raise PrlhfError(
            f"batch_size = {config.batch_size} is less than workers = {cluster.workers}: some would have nothing to do",
            f"set batch_size to {cluster.workers} or more, or take fewer workers",
        )


# ---- the workers ----


def _fit(
    config: TrainConfig,
    cluster: ClusterConfig,
    each: dict[str, float],
    data: Prepared,
    store: Store,
    progress: Progress,
    report: Report | None,
) -> dict[str, Any]:
    """Let Ray Train run `work`; the outcome as the first worker returns it."""
    ray, train, torch = (importlib.import_module(name) for name in ("ray", "ray.train", "ray.train.torch"))
    heard = Heard(progress)
    with shown_by(heard, report) as relay, _stoppable(heard, cluster.silence_minutes, config.folder) as stopping:
        trainer = torch.TorchTrainer(
            work,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "data": ray.put(data),
                "store": (cluster.storage, str(config.folder)),
                "relay": relay,
                "sharded": cluster.parallel == "fsdp",
                "stopping": stopping.box,
            },
            torch_config=torch.TorchConfig(backend="nccl" if each.get("GPU") else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=cluster.workers, use_gpu=bool(each.get("GPU")), resources_per_worker=each
            ),
            run_config=train.RunConfig(
                name="checkpoints",
                storage_path=str(store),
                failure_config=train.FailureConfig(max_failures=cluster.max_failures),
                checkpoint_config=train.CheckpointConfig(num_to_keep=config.keep_checkpoints),
            ),
        )
        try:
            outcome: dict[str, Any] = stopping.wait_for(trainer.fit).return_value
        except train.TrainingFailedError as error:
            raise _as_ours(error, config, cluster) from error
    return outcome


def _as_ours(error: Any, config: TrainConfig, cluster: ClusterConfig) -> PrlhfError:
    """A failed run in one line: what a worker said, or that workers were lost once too often."""
    failures = list(getattr(error, "worker_failures", {}).values())
    ours = [f for f in failures if isinstance(f, PrlhfError)]
    if ours:
        return PrlhfError(ours[0].message, ours[0].hint)
    first = one_line(failures[0] if failures else error)
    return PrlhfError(
        f"the workers failed more often than max_failures = {cluster.max_failures}: {first}",
        f"go on with: prlhf train --resume --out {config.folder}",
    )


def work(setup: dict[str, Any]) -> dict[str, Any]:
    """What every worker does: from the newest checkpoint of the store, or from the beginning."""
    ray = importlib.import_module("ray")
    first = workers.rank() == 0
    relay: Relay = setup["relay"]
    with scratch_dir("worker") as scratch:
        out = scratch / "run"
        config = TrainConfig.saved(setup["config"] | {"out": out})
        store = Store(setup["store"][0], Path(setup["store"][1]))
        step = fetch_newest(store, out, relay)
        if first and step:
            relay.note(f"going on from step {step}")
        stop = StopWhenTold(setup["stopping"])
        ship = Ship(out)
        try:
            data = ray.get(setup["data"])
            progress: Progress = relay if first else SILENT
            report = relay.report if first else None
            results = learn(config, data, step > 0, progress, report, stop, ship, setup["sharded"])
        except Interrupted:
            said = f"stopped after step {ship.step}; go on with: prlhf train --resume --out {setup['store'][1]}"
            return {"stopped": said}
        except PrlhfError as error:
            if ship.has_begun and not isinstance(error, NotFinite):  # one worker alone may have met this: Ray must end
                raise  # the others
            return {"error": (error.message, error.hint)}
        ship.results(first)
        return {"results": results}


class StopWhenTold(Stop):
    """Looks every now and then whether the command was interrupted, beside the training."""

    def __init__(self, box: Any) -> None:
        super().__init__()
        self._box, self._over = box, threading.Event()

    @override
    def __enter__(self) -> StopWhenTold:
        if workers.rank() == 0:
            threading.Thread(target=self._look, daemon=True).start()
        return self

    @override
    def __exit__(self, *error: Any) -> None:
        self._over.set()

    def _look(self) -> None:
        ray = importlib.import_module("ray")
        while not self._over.wait(LOOK_SECONDS):
            self.asked = self.asked or ray.get(self._box.asked.remote())


class Ship(Listener):
    """Hands every checkpoint to Ray, which copies it to the storage; all workers take part."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.has_begun, self.step = folder, False, 0
        self._try = max(workers.gather(int(time.time())))

    @override
    def begun(self, loop: Loop) -> None:
        self.has_begun = True

    @override
    def saved(self, loop: Loop, checkpoint: Path) -> None:
        self.step = loop.step
        if workers.rank() > 0:  # the workers' files go into one folder: what the first one sealed must not be replaced
            for path in checkpoint.iterdir():
                if path.name != random_state_name():
                    path.unlink()
        self._report(checkpoint, f"checkpoint-{self._try}-{loop.step}")

    def results(self, first: bool) -> None:
        """The end of a run: what the first worker has in its folder."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self._report(self.folder if first else None, f"final-{self._try}")

    def _report(self, folder: Path | None, name: str) -> None:
        train = importlib.import_module("ray.train")
        checkpoint = train.Checkpoint.from_directory(folder) if folder else None
        train.report({"step": self.step}, checkpoint, checkpoint_dir_name=name)


# ---- Ctrl-C ----


class Box:
    """An actor that knows whether the workers are to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask all workers to stop."""
        self._asked = True

    def asked(self) -> bool:
        """Whether the workers are asked to stop."""
        return self._asked


class Heard:
    """A `Progress` that also knows what the first worker is doing, and since when it has said nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.doing, self.at = progress, "starting", time.monotonic()

    def start(self, label: str, total: int) -> None:
        """See Progress."""
        self._hear(label)
        self._progress.start(label, total)

    def advance(self, steps: int = 1, **values: float) -> None:
        """See Progress."""
        self._hear(self.doing)
        self._progress.advance(steps, **values)

    def finish(self) -> None:
        """See Progress."""
        self._hear(f"the end of {self.doing.removeprefix('the end of ')}")
        self._progress.finish()

    def note(self, line: str) -> None:
        """See Progress."""
        self._hear(self.doing)
        self._progress.note(line)

    def _hear(self, doing: str) -> None:
        self.doing, self.at = doing, time.monotonic()


class Stopping:
    """Waits for the workers; the first Ctrl-C asks them to save and stop, the second one leaves them.

    So does a silence of `minutes`, unless that is 0: one of them hangs, and the others wait for it.
    """

    def __init__(self, box: Any, heard: Heard, minutes: float, folder: Path) -> None:
        self.box, self._heard, self._minutes, self._folder = box, heard, minutes, folder

    def wait_for(self, fit: Any) -> Any:
        """What `fit` returns or raises. In a thread: Ray would take Ctrl-C for itself, and throw steps away."""
        found: dict[str, Any] = {}
        over = threading.Event()  # Python 3.11 takes a thread for ended when its join was interrupted

        def run() -> None:
            try:
                found["result"] = fit()
            except BaseException as error:  # raised below, where somebody waits for it
                found["error"] = error
            over.set()

        threading.Thread(target=run, daemon=True).start()
        try:
            self._wait(over)
        except KeyboardInterrupt:
            self._heard.note("stopping after the step in hand; once more stops at once")
            self.box.ask.remote()
            self._wait(over)
        if "error" in found:
            raise found["error"]
        return found["result"]

    def _wait(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            if self._minutes and time.monotonic() - self._heard.at > 60 * self._minutes:
                raise PrlhfError(
                    f"the workers have said nothing for {self._minutes:g} minutes, since {self._heard.doing}: "
                    "one of them hangs",
                    f"go on from the newest checkpoint with: prlhf train --resume --out {self._folder}; if nothing "
                    "hangs, and a step or a lost machine takes that long, with a larger --silence-minutes",
                )


@contextmanager
def _stoppable(heard: Heard, minutes: float, folder: Path) -> Iterator[Stopping]:
    ray = importlib.import_module("ray")
    box = actor_here(Box)
    try:
        yield Stopping(box, heard, minutes, folder)
    finally:
        ray.kill(box)
