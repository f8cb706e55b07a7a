"""The loop: transformers.Trainer with the personalized objective in its public `compute_loss`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, nn
from torch.utils import serialization
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.dataset import Comparison
from prlhf.model import workers
from prlhf.model.base import pick_device
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.reference import Reference
from prlhf.model.scoring import Scored, score, summarise
from prlhf.model.sharding import gathered
from prlhf.model.table import Table
from prlhf.model.weights import load_weights, save_weights
from prlhf.progress import SILENT, Progress
from prlhf.train import checkpoints, metrics, objectives
from prlhf.train.batching import ByPrompt, Part, parts_of, weighted_terms
from prlhf.train.finite import Watch, check_summary, check_weights
from prlhf.train.optimizer import RowAdamW, clip_grad_norm
from prlhf.train.terms import Objective, objective_of
from prlhf.train.trackers import tracker_names

if TYPE_CHECKING:
    _Loop = Trainer  # whichever library's loop it is, it has transformers' hooks
else:
    _Loop = object


class EncodedSet(Dataset[Encoded]):
    """Tokenised comparisons, with the rows they came from and counts of those that were left out, by reason."""

    def __init__(
        self, encoded: Sequence[Encoded], rows: Sequence[Comparison], left_out: dict[str, int] | None = None
    ) -> None:
        self.encoded, self.rows, self.left_out = list(encoded), list(rows), left_out or {}

    def __len__(self) -> int:
        return len(self.encoded)

    @override
    def __getitem__(self, index: int) -> Encoded:
        return self.encoded[index]


def as_batch(items: list[Encoded]) -> dict[str, list[Encoded]]:
    """The collator: padding waits until the loss knows which users the rows are for."""
    return {"comparisons": items}


def training_arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """Our settings as transformers' own."""
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=None,  # Trainer would remove an older one before the new one is sealed
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every or None,
        report_to=tracker_names(config.report_to) or "none",
        use_cpu=pick_device(config.device).type == "cpu",  # or it overlooks workers on CPUs
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        label_names=[],
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    if arguments.world_size != workers.count():  # each would train a model of its own, and none would say so
        raise RuntimeError(f"{workers.count()} workers, of which transformers sees {arguments.world_size}")
    return arguments


class OwnParts(_Loop):
    """What our trainers share, whichever library's loop they are.

    One evaluation a step, and checkpoints that hold our parts as safetensors. To stand before the loop among a class's
    bases.
    """

    policy: Trained[Any]
    watch: Watch
    metrics_path: Path
    state: TrainerState
    args: TrainingArguments
    row_optimizer: RowAdamW | None = None  # of users' tables, where there are any
    _evaluated: tuple[int, dict[str, Any]] | None = None  # at which step, and what came out

    def evaluate_held_out(self, progress: Progress) -> dict[str, Any]:
        """The summary of the held-out set at the current step."""
        raise NotImplementedError

    def evaluate_once(self, progress: Progress = SILENT) -> dict[str, Any]:
        """The held-out summary at the current step, computed and logged once per step."""
        step = self.state.global_step
        if self._evaluated is None or self._evaluated[0] != step:
            self._evaluated = (step, self.evaluate_held_out(progress))
            check_summary(self.policy.config, step, self._evaluated[1])
            metrics.put_evaluation(self.metrics_path, step, self._evaluated[1])
        return self._evaluated[1]

    def take_up(self, checkpoint: Path) -> None:
        """Be where `checkpoint` was written, without training."""
        load_weights(self.policy.model, checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    @override
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.watch.add_loss(loss)
        return loss

    @override
    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Before the step is made: what is not finite must not reach the weights."""
        norm = self.clip(model)
        self.watch.check(self.policy.config, self.state.global_step + 1, norm)
        return norm

    def clip(self, model: nn.Module) -> Tensor:
        """Bound the norm of the gradient; returns the norm before."""
        return super()._clip_grad_norm(model)  # type: ignore[no-any-return, no-untyped-call]

    def check_weights(self) -> None:
        """Raise NotFinite where the trained weights are not finite."""
        check_weights(self.policy.config, self.state.global_step, self.policy.model.parameters())

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.check_weights()
        if not self.args.should_save:
            super()._save_checkpoint(model, trial)
            return
        written = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with checkpoints.writing(written):
            super()._save_checkpoint(model, trial)
            checkpoints.seal(written, self.metrics_path, self.policy.config.keep_checkpoints)

    @override
    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """One device a process: with more GPUs in sight Trainer would cut our batches up among them."""
        return super()._wrap_model(model, *args, **kwargs) if workers.count() > 1 else model

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.policy.model, folder, self.row_optimizer.touched if self.row_optimizer else None)

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.policy.model, Path(resume_from_checkpoint))


class PersonalizedTrainer(OwnParts, Trainer):
    """Trains user model and adapter together on comparisons with users.

    A policy is trained against its reference; where there is no reference, it is a reward model.
    """

    def __init__(
        self,
        policy: Trained[Any],
        engine: Engine,
        reference: Reference | None,
        train: EncodedSet,
        held_out: EncodedSet,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.engine = engine
        self.policy, self.reference, self.train_set, self.held_out = policy, reference, train, held_out
        self.objective: Objective = objective_of(engine, reference, policy.config)
        self.metrics_path = folder / "metrics.jsonl"
        self.watch = Watch()
        self._names = {id(e): row.id for e, row in zip(train.encoded, train.rows, strict=True)}
        self._recent: list[dict[str, Tensor]] = []  # of each comparison, since the last log
        self._met: set[int] = set()  # users of all workers' comparisons since the last optimizer step
        super().__init__(
            model=policy.model,
            args=training_arguments(policy.config, folder),
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=as_batch,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        policy.model._ddp_params_and_buffers_to_ignore = list(self._own_parameters())
        self.model_accepts_loss_kwargs = False  # the loss is a mean over comparisons: let accumulation divide it

    # ---- the objective ----

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        parts = self.parts_of(inputs["comparisons"])
        total = torch.stack([self.loss_of(model, part, len(inputs["comparisons"])) for part in parts]).sum()
        return (total, {}) if return_outputs else total

    @override
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of this worker's share, a part at a time.

        So no more than one part's activations are in memory. `inputs` are the comparisons of all workers; theirs and
        ours average to the batch's loss.
        """
        model.train()
        batch = inputs["comparisons"]
        self.catch_up({0, *(e.user_index for e in batch)})
        parts = self.own_parts(batch)
        total = torch.zeros((), device=self.args.device)
        for number, (part, counts) in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.loss_of(model, part, len(batch) / workers.count(), counts)
                loss = loss / self.current_gradient_accumulation_steps
                self.accelerator.backward(loss)
            total += loss.detach()
        self.watch.add_loss(total)
        return total

    def own_parts(self, batch: list[Encoded]) -> list[tuple[Part, bool]]:
        """This worker's share of `batch` as parts that count; or, where there is none for it, as one that does not.

        Where the workers hold shards of the model, all get as many parts.
        """
        own = workers.own(batch)
        parts = [(part, bool(own)) for part in self.parts_of(own or batch[:1])]
        missing = workers.most(len(parts)) - len(parts) if self.engine.in_step else 0
        return parts + [(parts[0][0], False)] * missing

    def catch_up(self, users: set[int]) -> None:
        """Bring the rows of `users` to where AdamW would have them by now; see optimizer.py."""
        self._met |= users
        if self.row_optimizer:
            for table, rows in self._rows_of(users).items():
                self.row_optimizer.catch_up(table, rows)

    def _rows_of(self, users: set[int]) -> dict[Tensor, list[int]]:
        """Which rows of which table are those of `users`, in ascending order."""
        tables = [module for module in self.policy.model.users.modules() if isinstance(module, Table)]
        return {table.weight: sorted(u - table.first for u in users if u >= table.first) for table in tables}

    def settle(self) -> None:
        """The same for all users, before they are saved or scored."""
        if self.row_optimizer:
            self.row_optimizer.settle()

    def parts_of(self, batch: list[Encoded]) -> Iterator[Part]:
        """`batch` in parts of at most the engine's budget of tokens."""
        return parts_of(self.engine, batch, weighted_terms(self.policy.config, batch))

    def loss_of(self, model: nn.Module, part: Part, count: float, counts: bool = True) -> Tensor:
        """What `part` adds to the loss of a batch of `count` comparisons; 0 where it does not count."""
        values = model(part.layout)
        losses = []
        for share in part.shares:
            term = self.objective.term(values[share.where.to(values.device)], share.comparisons)
            losses.append((share.weight, term.losses))
            if counts:
                self.watch.add_rows([self._names.get(id(e), "unnamed") for e in share.comparisons], term.losses)
            if share.term == 0 and counts:
                self._recent.append({"accuracy": (term.margins > 0).float(), "margin": term.margins, **term.logs})
        return objectives.mix(losses, count) * counts

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole batches, on every worker the same: accelerate would hand each worker other ones."""
        loader = super().get_train_dataloader()
        if isinstance(loader.batch_sampler, BatchSamplerShard):
            loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
            loader.batch_sampler.even_batches = False
        return loader

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.policy.config.group_by_prompt:
            return super()._get_train_sampler(train_dataset)
        data: EncodedSet = train_dataset or self.train_dataset  # type: ignore[assignment]
        return ByPrompt([row.prompt_id for row in data.rows], self.policy.config.seed)

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; what stands beside the language model has groups of its own: own rates, no weight decay."""
        if self.optimizer is None:
            config, parts = self.policy.config, self.policy.model
            groups = [{"params": _trained(parts.lm.parameters()), "lr": config.lr, "weight_decay": config.weight_decay}]
            groups += [
                {"params": _trained(some), "lr": rate, "weight_decay": 0.0} for some, rate in parts.rates(config)
            ]
            self.optimizer = optimizer = RowAdamW([g for g in groups if g["params"]], lr=config.lr)
            self.row_optimizer = optimizer
        return self.optimizer

    @override
    def clip(self, model: nn.Module) -> Tensor:
        """Trainer's own refuses the sparse gradients of users' tables. What DDP is kept from is averaged here."""
        workers.average_gradients(self._own_parameters().values(), self._rows_of(self._met))
        self._met = set()
        return clip_grad_norm(model.parameters(), self.args.max_grad_norm)

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        """What stands beside the language model, by name: rows of users, which DDP would exchange whole."""
        return {name: p for name, p in self.policy.model.named_parameters() if not name.startswith("lm.")}

    # ---- following the run ----

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            recent = [row for rows in workers.gather(self._recent) for row in rows]
            logs |= {key: torch.cat([row[key].cpu() for row in recent]).mean().item() for key in recent[0]}
            self._recent = []
        super().log(logs, start_time)

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy of the (implicit) reward and margins per user on the held-out comparisons, where there are any."""
        if not len(self.held_out):
            return {}
        summary = self.evaluate_once()
        numbers = {f"eval_{key}": value for key, value in summary.items() if isinstance(value, float)}
        self.log(dict(numbers))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        if self.reference:  # before the checkpoint is whole: who goes on from it knows what was known here
            self.reference.save()
        self.settle()  # on every worker: a row that catches up in two steps is rounded otherwise than in one
        super()._save_checkpoint(model, trial)

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with gathered(self.policy.model):
            super().save_model(output_dir, _internal_call)

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.engine.in_step and self.optimizer and not self.args.should_save:
            self.optimizer.state_dict()  # the first worker, who writes it, gathers it from all
        super()._save_optimizer_and_scheduler(output_dir)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        mmap = serialization.config.patch("load.mmap", self.engine.in_step)  # type: ignore[attr-defined]
        with mmap:  # of moments in shards a worker reads its own
            super()._load_optimizer_and_scheduler(checkpoint)

    @override
    def evaluate_held_out(self, progress: Progress) -> dict[str, Any]:
        self.settle()
        data, rows = self.held_out.encoded, self.held_out.rows

        def scored_as(users: list[int]) -> list[Scored]:
            batch = self.args.per_device_train_batch_size * 2
            found = score(self.objective.rewards, workers.spread(data), workers.spread(users), batch, progress)
            return workers.collect(found, len(data))

        own = [e.user_index for e in data]
        as_user = scored_as(own)
        personal = self.policy.config.user_model != "uniform"
        as_generic = scored_as([0] * len(data)) if personal else as_user
        return summarise([row.user_id for row in rows], own, as_user, as_generic)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad and p.numel() > 0]
