"""The training loop, to be read from top to bottom: `Loop.run` is one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import set_seed

from prlhf.model import workers
from prlhf.model.checkpoint import Trained
from prlhf.model.engine import Engine
from prlhf.model.sharding import gathered, in_shards
from prlhf.model.weights import load_weights, save_weights
from prlhf.progress import SILENT, Interruptible, Progress
from prlhf.train import checkpoints, losses, metrics
from prlhf.train.batches import Part, batches_of, epoch_of, parts_of, step_count
from prlhf.train.early_stopping import EarlyStop
from prlhf.train.encode import EncodedSet
from prlhf.train.finite import Watch, check_parameters, check_summary
from prlhf.train.objectives import Objective
from prlhf.train.optimizer import clip_grad_norm, optimizer_of, rows_of, schedule_of
from prlhf.train.samples import FILE, Samples, shown
from prlhf.train.trackers import Trackers

Report = Callable[[dict[str, float]], None]  # called after every evaluation with `step` and its numbers as `eval/NAME`


class Stop(Interruptible):
    """A request to end the run after the current step, with a checkpoint: by Ctrl-C, or by whoever sets `asked`."""

    def agreed(self) -> bool:
        """Whether any worker was asked; all workers get the same answer."""
        self.asked = bool(workers.most(self.asked))
        return self.asked


class Listener(Protocol):
    """What is called during a run; on Ray it uploads the checkpoints."""

    def begun(self, loop: Loop) -> None:
        """Called before the first step."""

    def saved(self, loop: Loop, checkpoint: Path) -> None:
        """Called after a checkpoint is complete."""


class Loop:
    """Trains user model and adapter (or all weights) together by `objective`, from the first step or a checkpoint.

    The same in one process and on each of several workers: every worker knows the rows of all, takes its share, and
    the gradients are averaged.
    """

    def __init__(
        self,
        policy: Trained[Any],
        engine: Engine,
        objective: Objective,
        train_set: EncodedSet,
        held_out: EncodedSet,
        progress: Progress = SILENT,
        report: Report | None = None,
        stop: Stop | None = None,
        listener: Listener | None = None,
    ) -> None:
        config = self.config = policy.config
        self.policy, self.model, self.engine, self.objective = policy, policy.model, engine, objective
        self.train_set, self.held_out = train_set, held_out
        self.progress, self.report, self.stop, self.listener = progress, report, stop or Stop(), listener
        self.metrics_path = config.folder / "metrics.jsonl"
        self.step, self.steps = 0, step_count(config, len(train_set))  # optimizer steps made, and to make
        self.saved = 0  # the step of the newest checkpoint
        self.optimizer = optimizer_of(self.model, config)
        self.schedule = schedule_of(self.optimizer, config, self.steps)
        self.random_state: dict[str, Tensor] | None = None  # of a checkpoint, to be restored
        self.trackers = Trackers(config, self.model, self.steps)
        sampling = config.sample_every and workers.rank() == 0
        self.samples = Samples(policy, [*held_out.rows, *train_set.rows]) if sampling else None
        self.samples_path = config.folder / FILE
        self.early_stop = EarlyStop(config, config.stop_metric) if config.stop_metric else None
        self.watch = Watch()
        self._ids = {id(e): row.id for e, row in zip(train_set.encoded, train_set.rows, strict=True)}
        self._recent: list[dict[str, Tensor]] = []  # what is logged of each row since the last optimizer step
        self._evaluated: tuple[int, dict[str, Any]] | None = None  # at which step, and the summary
        self.all_rows = config.user_init == "choices"  # users' rows at the start are in checkpoints and nowhere else
        set_seed(config.seed)  # of dropout

    def run(self) -> None:
        """Make the remaining steps, or those until `stop` is asked for."""
        config = self.config
        self.progress.start("training", self.steps)
        self.progress.advance(self.step)
        self.trackers.begin(self.step, self.progress)
        if self.listener:
            self.listener.begun(self)
        upcoming = self.upcoming()
        self._restore_random_state()
        while not self.over:
            batches = next(upcoming)
            users = {0, *(row.user_index for batch in batches for row in batch)}
            self.catch_up(users)
            loss = self.backward(batches)
            workers.average_gradients(self._whole_parameters(), rows_of(self.model, users))
            norm = clip_grad_norm(self.model.parameters(), config.max_grad_norm)
            self.watch.check(config, self.step + 1, loss, norm)
            rate = float(self.schedule.get_last_lr()[0])
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.step += 1
            stopping = self.stop.agreed()
            self.log(loss, norm, rate)
            last = self.early_stop is not None and self.step == self.steps  # it may be the best
            if len(self.held_out) and (last or (config.eval_every and self.step % config.eval_every == 0)):
                self.report_evaluation(self.evaluate())
            if self.samples and (self.step % config.sample_every == 0 or self.over):
                self.write_samples(self.samples)
            if stopping or self.step % config.save_every == 0 or self.over:
                self.save()
            if stopping:
                break
        self.trackers.end(self.step)
        self.progress.finish()

    @property
    def over(self) -> bool:
        """Whether all steps are made, or evaluations say that more would be of no use."""
        return self.step >= self.steps or bool(self.early_stop and self.early_stop.due)

    def upcoming(self) -> Iterator[list[list[Any]]]:
        """The batches of one optimizer step after the other, from the current one on."""
        found = batches_of(self.train_set, self.config)
        for _ in range(self.step):  # the steps before the checkpoint; now, since their order takes random numbers
            next(found)
        return found

    def passed(self) -> dict[str, float]:
        """How far the run is, for the log."""
        return {"epoch": epoch_of(self.config, len(self.train_set), self.step)}

    # ---- one step ----

    def backward(self, batches: Sequence[Sequence[Any]]) -> Tensor:
        """Forward and backward of this worker's share of a step, so that the workers' gradients average to the step's.

        One part at a time: no more than one part's activations are in memory. Returns the share's loss, a scalar; the
        workers' average is the step's.
        """
        self.model.train()
        size = self.objective.size([row for batch in batches for row in batch]) / workers.count()
        total = torch.zeros((), device=self.engine.device)
        for batch in batches:
            for part, counts in self.own_parts(batch):
                loss = self.loss_of(part, size) if counts else 0.0 * self.model(part.layout).sum()
                loss.backward()
                total += loss.detach()
        return total

    def own_parts(self, batch: Sequence[Any]) -> list[tuple[Part, bool]]:
        """This worker's share of `batch` in forward passes, and whether they count.

        Where the workers hold shards of the model all must run it equally often: passes that do not count are added.
        """
        parts = [(part, True) for part in parts_of(self.engine, workers.own(batch), self.objective)]
        if self.engine.in_step:
            missing = workers.most(len(parts)) - len(parts)
            parts += [(next(parts_of(self.engine, batch[:1], self.objective)), False)] * missing
        return parts

    def loss_of(self, part: Part, size: float) -> Tensor:
        """The scalar that `part` adds to the loss of a step of `size` (see Objective.size)."""
        values = self.objective.read(self.model, part.layout)
        terms = []
        for term in part.terms:
            found = self.objective.losses(values[term.where.to(values.device)], term.rows)
            terms.append((term.weight, found.losses))
            self.watch.add_rows([self._ids.get(id(row), "unnamed") for row in term.rows], found.losses)
            if term.logged:
                self._recent.append(found.logs)
        return losses.mix(terms, size)

    def catch_up(self, users: set[int]) -> None:
        """Bring the rows of `users` to where AdamW would have them by now; see optimizer.py."""
        for table, rows in rows_of(self.model, users).items():
            self.optimizer.catch_up(table, rows)

    def _whole_parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters that every worker has whole; FSDP averages the gradients of those in shards itself."""
        return [p for p in self.model.parameters() if p.requires_grad and not in_shards(p)]

    # ---- what a step leaves ----

    def log(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """Write the numbers of a step, means over all workers' rows."""
        mine = (loss.item(), {key: [row[key].cpu() for row in self._recent] for key in (self._recent or [{}])[0]})
        self._recent = []
        shares = workers.gather(mine)
        numbers = {"loss": sum(share for share, _ in shares) / len(shares), "grad_norm": norm.item()}
        numbers["learning_rate"] = rate
        for key in max((logs for _, logs in shares), key=len):
            values = [value for _, logs in shares for value in logs.get(key, [])]
            numbers[key] = torch.cat(values).mean().item()
        numbers |= self.passed()
        metrics.append(self.metrics_path, {"step": self.step, **numbers})
        self.trackers.log(self.step, numbers)
        self.progress.advance(1, **{name: numbers[name] for name in ("loss", "accuracy") if name in numbers})

    def evaluate(self, progress: Progress = SILENT) -> dict[str, Any]:
        """The summary of the held-out rows at the current step, computed and logged once per step."""
        if self._evaluated is None or self._evaluated[0] != self.step:
            self.optimizer.settle()
            summary = self.objective.evaluate(self.held_out, 2 * self.config.batch_size, progress)
            check_summary(self.config, self.step, summary)
            metrics.put_evaluation(self.metrics_path, self.step, summary)
            self._evaluated = self.step, summary
            if self.early_stop:
                self.early_stop.look(self.model)
        return self._evaluated[1]

    def report_evaluation(self, summary: dict[str, Any]) -> None:
        """Send the numbers of an evaluation to trackers and to `report`."""
        numbers = {name: value for name, value in summary.items() if isinstance(value, float)}
        self.trackers.log(self.step, {f"eval_{name}": value for name, value in numbers.items()} | self.passed())
        if self.report:
            self.report({"step": self.step} | {f"eval/{name}": value for name, value in numbers.items()})

    def write_samples(self, samples: Samples) -> None:
        """Show and log what the model writes now; the training goes on as if nothing had been written."""
        with self.optimizer.settled(rows_of(self.model, samples.user_indices)):
            rows = samples.write(self.step)
        for row in rows:
            metrics.append(self.samples_path, row)
            self.progress.note(shown(row))
        self.trackers.samples(self.step, rows)

    # ---- checkpoints ----

    def save(self) -> None:
        """Write a checkpoint; every worker its random state, the first one all the rest."""
        check_parameters(self.config, self.step, self.model.parameters())
        if self.objective.reference:  # before the checkpoint is whole: who resumes from it knows what was known here
            self.objective.reference.save()
        self.optimizer.settle()  # on every worker: a row that catches up in two steps is rounded otherwise than in one
        first = workers.rank() == 0
        moments = self.optimizer.state_dict() if first or self.engine.in_step else {}  # shards are gathered from all
        folder = self.config.folder / "checkpoints" / f"checkpoint-{self.step}"
        with checkpoints.writing(folder), gathered(self.model):
            checkpoints.write_random_state(folder)
            if first:
                save_weights(self.model, folder, None if self.all_rows else self.optimizer.touched)
                checkpoints.write_state(folder, moments, self.schedule.state_dict(), self.step, self.steps)
                self.put_into(folder)
                checkpoints.seal(folder, [self.metrics_path, self.samples_path], self.config.keep_checkpoints)
        self.saved = self.step
        self.trackers.saved(self.step)
        if self.listener:
            self.listener.saved(self, folder)

    def put_into(self, checkpoint: Path) -> None:
        """Add what stands beside the weights to a `checkpoint` that is being written."""
        if self.early_stop:
            self.early_stop.put_into(checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Restore the state saved in `checkpoint`; `run` then makes the steps that an uninterrupted run would make."""
        load_weights(self.model, checkpoint)
        moments, schedule, self.step = checkpoints.read_state(checkpoint, mmap=self.engine.in_step)
        self.saved = self.step
        self.optimizer.load_state_dict(moments)
        self.schedule.load_state_dict(schedule)
        self.random_state = checkpoints.read_random_state(checkpoint)

    def _restore_random_state(self) -> None:
        if self.random_state is not None:
            checkpoints.set_random_state(self.random_state)
