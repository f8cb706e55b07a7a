"""Training on Ray workers: Ray Train runs the training function of run.py in each of them.

The run folder is on the machine where the command was started; each worker has a temporary folder of its own. What
must survive the loss of a machine is copied to the store (storage.py).
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
from prlhf.config.train import ONLINE
from prlhf.dataset import Prepared
from prlhf.errors import Interrupted, OnAll, PrlhfError, one_line
from prlhf.files import in_use, scratch_dir
from prlhf.model import workers
from prlhf.progress import SILENT, Progress
from prlhf.train.checkpoints import random_state_name
from prlhf.train.loop import Listener, Loop, Report, Stop
from prlhf.train.run import checked, learn
from prlhf.train.run_folder import finished, take_back, write_recipe, write_results
from prlhf.train.storage import Store, fetch_newest, fetch_recipe, fetch_results, keep_cluster

LOOK_SECONDS = 0.5  # how often a worker checks whether it must stop


def train_on_ray(
    config: TrainConfig,
    cluster: ClusterConfig,
    resume: bool = False,
    progress: Progress = SILENT,
    report: Report | None = None,
) -> dict[str, Any]:
    """`prlhf.train.run.train` on `cluster.workers` Ray workers: the same run up to rounding, with the same summary.

    Raises:
        PrlhfError: the input has a fault that the user can fix, or the cluster is too small.
        Interrupted: after Ctrl-C, when a checkpoint is saved.
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
        raise PrlhfError(
            f"{store} already holds a run", "continue it with --resume, or choose another --out or --storage"
        )
    with connected(cluster):
        each = worker_resources(cluster)
        check_fits(cluster.workers, each)
        if not resume:
            write_recipe(config.folder, config, data)
            keep_cluster(config.folder, cluster)
            store.begin(config.folder / "recipe.yaml")
        with in_use(config.folder):
            outcome = _fit(config, cluster, each, data, store, progress, report)
    if "error" in outcome:
        if not resume and not store.checkpoints():
            store.give_back()
            take_back(config.folder)
        raise PrlhfError(*outcome["error"])
    if "stopped" in outcome:
        raise Interrupted(outcome["stopped"])
    fetch_results(store, config.folder)
    results: dict[str, Any] = outcome["results"] | {"run": str(config.folder)}  # not the worker's temporary folder
    write_results(config.folder, results)
    return results


def check_share(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise PrlhfError if the run cannot be spread over the workers, or not every one has a comparison per batch."""
    if ONLINE.holds(config) and cluster.workers and cluster.parallel == "fsdp":
        raise PrlhfError(
            f"objective = {config.objective} does not go with parallel = fsdp: no worker has the whole model to write",
            "set parallel to ddp",
        )
    if config.sample_every and cluster.workers and cluster.parallel == "fsdp":
        raise PrlhfError(
            f"sample_every = {config.sample_every} does not go with parallel = fsdp: no worker has the whole model",
            "leave sample_every out, or set parallel to ddp",
        )
    if config.stop_metric and cluster.workers and cluster.parallel == "fsdp":
        raise PrlhfError(
            f"stop_metric = {config.stop_metric} does not go with parallel = fsdp: no worker has the whole model",
            "leave stop_metric out, or set parallel to ddp",
        )
    if config.quantize != "none" and cluster.workers and cluster.parallel == "fsdp":
        raise PrlhfError(
            f"quantize = {config.quantize} does not go with parallel = fsdp: packed weights are not divided",
            "leave quantize out, or set parallel to ddp",
        )
    if config.lora_variant == "dora" and cluster.workers and cluster.parallel == "fsdp":
        raise PrlhfError(
            "lora_variant = dora does not go with parallel = fsdp: a layer's norm needs all of its weights",
            "set lora_variant to rslora or plain, or parallel to ddp",
        )
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
    """Let Ray Train run `work`; returns what the first worker returns."""
    ray, train, torch = (importlib.import_module(name) for name in ("ray", "ray.train", "ray.train.torch"))
    last = LastReport(progress)
    with shown_by(last, report) as relay, _waiting(last, cluster.silence_minutes, config.folder) as waiting:
        trainer = torch.TorchTrainer(
            work,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "data": ray.put(data),
                "store": (cluster.storage, str(config.folder)),
                "relay": relay,
                "sharded": cluster.parallel == "fsdp",
                "stop": waiting.flag,
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
            outcome: dict[str, Any] = waiting.wait_for(trainer.fit).return_value
        except train.TrainingFailedError as error:
            raise _as_ours(error, config, cluster) from error
    return outcome


def _as_ours(error: Any, config: TrainConfig, cluster: ClusterConfig) -> PrlhfError:
    """A failed run in one line: a worker's error, or that workers were lost too often."""
    failures = list(getattr(error, "worker_failures", {}).values())
    ours = [f for f in failures if isinstance(f, PrlhfError)]
    if ours:
        return PrlhfError(ours[0].message, ours[0].hint)
    first = one_line(failures[0] if failures else error)
    return PrlhfError(
        f"the workers failed more often than max_failures = {cluster.max_failures}: {first}",
        f"continue with: prlhf train --resume --out {config.folder}",
    )


def work(setup: dict[str, Any]) -> dict[str, Any]:
    """What every worker does: train from the newest checkpoint in the store, or from the start."""
    ray = importlib.import_module("ray")
    first = workers.rank() == 0
    relay: Relay = setup["relay"]
    with scratch_dir("worker") as scratch:
        out = scratch / "run"
        config = TrainConfig.saved(setup["config"] | {"out": out})
        store = Store(setup["store"][0], Path(setup["store"][1]))
        step = fetch_newest(store, out, relay)
        if first and step:
            relay.note(f"resuming from step {step}")
        stop = StopByCommand(setup["stop"])
        upload = Upload(out)
        try:
            data = ray.get(setup["data"])
            progress: Progress = relay if first else SILENT
            report = relay.report if first else None
            results = learn(config, data, step > 0, progress, report, stop, upload, setup["sharded"])
        except Interrupted:
            said = f"stopped after step {upload.step}; continue with: prlhf train --resume --out {setup['store'][1]}"
            return {"stopped": said}
        except PrlhfError as error:
            if upload.has_begun and not isinstance(error, OnAll):  # maybe only this worker failed: Ray must end
                raise  # the others
            return {"error": (error.message, error.hint)}
        upload.results(first)
        return {"results": results}


class StopByCommand(Stop):
    """A thread checks regularly whether the command was interrupted."""

    def __init__(self, flag: Any) -> None:
        super().__init__()
        self._flag, self._over = flag, threading.Event()

    @override
    def __enter__(self) -> StopByCommand:
        if workers.rank() == 0:
            threading.Thread(target=self._check, daemon=True).start()
        return self

    @override
    def __exit__(self, *error: Any) -> None:
        self._over.set()

    def _check(self) -> None:
        ray = importlib.import_module("ray")
        while not self._over.wait(LOOK_SECONDS):
            self.asked = self.asked or ray.get(self._flag.asked.remote())


class Upload(Listener):
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
        """Hand over the finished run, from the first worker's folder."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self._report(self.folder if first else None, f"final-{self._try}")

    def _report(self, folder: Path | None, name: str) -> None:
        train = importlib.import_module("ray.train")
        checkpoint = train.Checkpoint.from_directory(folder) if folder else None
        train.report({"step": self.step}, checkpoint, checkpoint_dir_name=name)


# ---- Ctrl-C ----


class StopFlag:
    """An actor that knows whether the workers must stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask all workers to stop."""
        self._asked = True

    def asked(self) -> bool:
        """Whether the workers were asked to stop."""
        return self._asked


class LastReport:
    """A `Progress` that also records what the first worker does and when it last reported."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.doing, self.at = progress, "starting", time.monotonic()

    def start(self, label: str, total: int) -> None:
        """See Progress."""
        self._record(label)
        self._progress.start(label, total)

    def advance(self, steps: int = 1, **values: float) -> None:
        """See Progress."""
        self._record(self.doing)
        self._progress.advance(steps, **values)

    def finish(self) -> None:
        """See Progress."""
        self._record(f"the end of {self.doing.removeprefix('the end of ')}")
        self._progress.finish()

    def note(self, line: str) -> None:
        """See Progress."""
        self._record(self.doing)
        self._progress.note(line)

    def _record(self, doing: str) -> None:
        self.doing, self.at = doing, time.monotonic()


class Waiting:
    """Waits for the workers; the first Ctrl-C asks them to save and stop, the second one stops waiting.

    Without a report for `minutes` (unless 0) it stops waiting as well: a worker hangs, and the others wait for it.
    """

    def __init__(self, flag: Any, last: LastReport, minutes: float, folder: Path) -> None:
        self.flag, self._last, self._minutes, self._folder = flag, last, minutes, folder

    def wait_for(self, fit: Any) -> Any:
        """What `fit` returns or raises. It runs in a thread, or Ray would handle Ctrl-C itself and lose steps."""
        found: dict[str, Any] = {}
        over = threading.Event()  # Python 3.11 considers a thread ended if its join was interrupted

        def run() -> None:
            try:
                found["result"] = fit()
            except BaseException as error:  # raised below, in the thread that waits
                found["error"] = error
            over.set()

        threading.Thread(target=run, daemon=True).start()
        try:
            self._wait(over)
        except KeyboardInterrupt:
            self._last.note("stopping after the current step; Ctrl-C again stops at once")
            self.flag.ask.remote()
            self._wait(over)
        if "error" in found:
            raise found["error"]
        return found["result"]

    def _wait(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            if self._minutes and time.monotonic() - self._last.at > 60 * self._minutes:
                raise PrlhfError(
                    f"the workers have reported nothing for {self._minutes:g} minutes, since {self._last.doing}: "
                    "one of them hangs",
                    f"continue from the newest checkpoint with: prlhf train --resume --out {self._folder}; if nothing "
                    "hangs, but a step or a lost machine takes that long, give a larger --silence-minutes",
                )


@contextmanager
def _waiting(last: LastReport, minutes: float, folder: Path) -> Iterator[Waiting]:
    ray = importlib.import_module("ray")
    flag = actor_here(StopFlag)
    try:
        yield Waiting(flag, last, minutes, folder)
    finally:
        ray.kill(flag)
