"""What transformers' callbacks do not do for trackers: say where a run is shown, end it, and send samples as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

COLUMNS = ("step", "user_id", "prompt", "response")
TABLE = "samples"

Rows = Sequence[dict[str, Any]]


# ---- where the run is shown, while it is open ----


def place_of(tracker: str, callback: Any) -> str | None:
    """Where `tracker` shows the run of its `callback`: an address, or a command that opens it; None if not known."""
    where = PLACES.get(tracker)
    return where and where(callback)


def _at_trackio(_: Any) -> str:
    from trackio import context_vars

    space, project = context_vars.current_space_id.get(), context_vars.current_project.get()
    return f"https://huggingface.co/spaces/{space}" if space else f"trackio show --project {project}"


def _at_wandb(_: Any) -> str:
    import wandb

    return wandb.run.url or f"offline; to send it: wandb sync {wandb.run.dir.removesuffix('/files')}"


def _at_mlflow(_: Any) -> str:
    import mlflow

    run, uri = mlflow.active_run().info, mlflow.get_tracking_uri()
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"mlflow ui --backend-store-uri {uri}, run {run.run_id}"


def _at_tensorboard(callback: Any) -> str:
    return f"tensorboard --logdir {callback.logging_dir}"


# ---- the end of a run ----


def is_open(tracker: str) -> bool:
    """Whether `tracker` has a run before ours begins, which then takes our numbers and stays open."""
    if tracker != "wandb":
        return False
    import wandb

    return wandb.run is not None


def close_run(tracker: str) -> None:
    """End our run at a tracker whose callback leaves that to the end of the process."""
    if tracker == "wandb":
        import wandb

        wandb.finish()


# ---- tables of samples ----


def send_table(tracker: str, callback: Any, step: int, rows: Rows) -> None:
    """Give `tracker` the samples `rows` of samples.jsonl, written after `step`, if it has tables."""
    if write := TABLES.get(tracker):
        write(callback, step, rows)


def _to_trackio(_: Any, step: int, rows: Rows) -> None:
    import trackio

    table = trackio.Table(columns=list(COLUMNS), data=_cells(rows))
    trackio.log({TABLE: table, "train/global_step": step})


def _to_wandb(_: Any, step: int, rows: Rows) -> None:
    import wandb

    wandb.log({TABLE: wandb.Table(columns=list(COLUMNS), data=_cells(rows)), "train/global_step": step})


def _to_mlflow(_: Any, step: int, rows: Rows) -> None:  # noqa: ARG001
    import mlflow

    cells = _cells(rows)
    columns = {name: [row[number] for row in cells] for number, name in enumerate(COLUMNS)}
    mlflow.log_table(columns, f"{TABLE}.json")  # adds to the table of earlier steps


def _to_tensorboard(callback: Any, step: int, rows: Rows) -> None:
    """TensorBoard has tables as texts, with a slider over the steps."""
    for row in rows:
        callback.tb_writer.add_text(f"{TABLE}/{row['user_id']}/{row['prompt_id']}", row["response"], step)


def _cells(rows: Rows) -> list[list[Any]]:
    """The cells [rows, columns]; a conversation as text."""
    return [
        [value if isinstance(value, int) else str(value) for value in map(row.__getitem__, COLUMNS)] for row in rows
    ]


PLACES: dict[str, Callable[[Any], str]] = {
    "trackio": _at_trackio,
    "wandb": _at_wandb,
    "mlflow": _at_mlflow,
    "tensorboard": _at_tensorboard,
}
TABLES: dict[str, Callable[[Any, int, Rows], None]] = {
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}
