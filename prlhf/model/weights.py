"""The weights of a personalized model in a folder: written, checked, and read, for some users or for all."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prlhf.errors import PrlhfError, one_line
from prlhf.files import sha256
from prlhf.model.later_users import read_later_rows
from prlhf.model.personalized import Personalized, RewardModel
from prlhf.model.sharding import as_shards_of, let_go
from prlhf.model.user_models import UserModel
from prlhf.model.user_rows import SparseRows
from prlhf.model.user_store import RowSelection, Users, block_sums, changed, read_rows

USER_MODEL, BLOCK_SUMS, USER_PRIOR = "user_model.safetensors", "user_model.sha256", "user_prior.safetensors"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", USER_MODEL, "reward_head.safetensors", USER_PRIOR)
ROWS = ".rows"  # after the name of a table: which of its rows a checkpoint of an unfinished run has


def save_weights(model: Personalized, folder: Path, touched: Callable[[Tensor], Tensor] | None = None) -> None:
    """Write adapter (or full weights), user model and head, if there is one, as safetensors.

    `touched` returns the rows of a table that training has changed. With it only these rows of the users' tables are
    written, and the folder is for `load_weights` into a model with the same start.
    """
    # otherwise PEFT asks the hub each time whether the base's vocabulary has changed; its table is not trained here
    options: dict[str, Any] = {"save_embedding_layers": False} if hasattr(model.lm, "peft_config") else {}
    if model.to_save is not None:
        options["state_dict"] = model.to_save
    model.lm.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; prlhf writes one with the results
    for name, part in _own_parts(model).items():
        state = part.state_dict()
        if touched:
            for key, table in _row_tables(part).items():
                rows = touched(table.weight).to(table.weight.device)
                state |= {key: state[key][rows], key + ROWS: rows}
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / name)


def _row_tables(part: nn.Module) -> dict[str, SparseRows]:
    return part.row_tables() if isinstance(part, UserModel) else {}


def _own_parts(model: Personalized) -> dict[str, nn.Module]:
    """The parts besides the language model, by the name of their file."""
    heads = {"reward_head.safetensors": model.head} if isinstance(model, RewardModel) else {}
    return {USER_MODEL: model.users, **heads}


def load_weights(model: Personalized, folder: Path, users: Users | None = None) -> None:
    """Load what `save_weights` wrote into `model`, in place.

    `users`: those of a finished run, as they are now. If these are some of them, the model then holds these alone, and
    only their rows are read and checked, from a folder with checksums per block.

    Raises:
        PrlhfError: a file is missing or damaged, or is for another base.
    """
    let_go(model)
    try:
        if hasattr(model.lm, "peft_config"):
            from peft import set_peft_model_state_dict

            missing = set_peft_model_state_dict(model.lm, load_file(folder / "adapter_model.safetensors"))
            if missing.unexpected_keys:
                raise PrlhfError(f"{folder} has adapter weights for which this base has no layer", "use its own base")
        else:
            # strict=False: tied weights are stored once
            model.lm.load_state_dict(_own_shards(model.lm, folder / "model.safetensors"), strict=False)
        for name, part in _own_parts(model).items():
            if users is not None and name == USER_MODEL:
                part.load_state_dict(_rows_of(model.users, folder, users))
            else:
                _load_part(part, load_file(folder / name))
    except (SafetensorError, RuntimeError, IndexError, FileNotFoundError) as error:
        raise PrlhfError(
            f"the weights in {folder} are damaged: {one_line(error)}", "train again, or use a copy"
        ) from error


def _rows_of(part: UserModel, folder: Path, users: Users) -> dict[str, Tensor]:
    """The weights of a user model for `users`: what training wrote, and over it the rows that came later."""
    tables, some = part.row_tables(), sorted(users.index_of().values()) if users.partial else None
    if some is not None:
        wanted = {key: table.select(some) for key, table in tables.items()}
        state = _trained_rows(folder, {
            key: RowSelection([row for row in rows if row <= users.trained - tables[key].first],
                              users.trained + 1 - tables[key].first)
            for key, rows in wanted.items()
        })  # fmt: skip
    else:
        state = load_file(folder / USER_MODEL)
        for key, table in tables.items():
            if len(state[key]) != users.trained + 1 - table.first:
                raise RuntimeError(f"'{key}' has {len(state[key])} rows, not {users.trained + 1 - table.first}")
    for key, table in tables.items():
        if more := len(table.weight) - len(state[key]):  # users who came later
            state[key] = torch.cat([state[key], torch.zeros(more, table.embedding_dim)])
    widths = [table.embedding_dim for table in tables.values()]
    place = None if some is None else {user_index: at for at, user_index in enumerate(some)}
    for row in read_later_rows(folder, some):
        at = row.user_index if place is None else place[row.user_index] + 1  # as if these were the users 1, 2, ...
        for (key, table), numbers in zip(tables.items(), row.numbers.split(widths), strict=True):
            state[key][at - table.first] = numbers
    return state


def _trained_rows(folder: Path, some: dict[str, RowSelection]) -> dict[str, Tensor]:
    if (folder / BLOCK_SUMS).exists():
        return read_rows(folder / USER_MODEL, _block_sums(folder), some)
    state = load_file(folder / USER_MODEL)  # of few users
    return {key: state[key][list(some[key].rows)] if key in some else value for key, value in state.items()}


def _own_shards(lm: nn.Module, path: Path) -> dict[str, Tensor]:
    """The weights in `path`, read one by one; if `lm` is in shards, this worker's parts of them."""
    there = lm.state_dict()
    with safe_open(path, "pt") as file:
        return {
            name: as_shards_of(there[name], value) if name in there else value
            for name, value in ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        }


def _load_part(part: nn.Module, state: dict[str, Tensor]) -> None:
    """Load all of `state`; rows of a table that it does not have stay as they are."""
    partial = [key.removesuffix(ROWS) for key in state if key.endswith(ROWS)]
    for name in partial:
        weight = part.get_parameter(name).detach()
        weight[state.pop(name + ROWS).to(weight.device)] = state.pop(name).to(weight.device)
    found = part.load_state_dict(state, strict=False)
    if found.unexpected_keys or set(found.missing_keys) != set(partial):
        raise RuntimeError(f"it lacks {found.missing_keys} and also has {found.unexpected_keys}")


def sum_weights(folder: Path, by_block: bool, but: Collection[str] = ()) -> dict[str, str]:
    """The checksums of the weight files; with `by_block` that of a file of checksums for the user model.

    Files that are named in `but` are left out.
    """
    names = [name for name in WEIGHTS if (folder / name).exists() and name not in but]
    if by_block:
        (folder / BLOCK_SUMS).write_text("".join(f"{line}\n" for line in block_sums(folder / USER_MODEL)))
        names[names.index(USER_MODEL)] = BLOCK_SUMS
    return {name: sha256(folder / name) for name in names}


def check_weights(folder: Path, about: dict[str, Any], rows: bool = True) -> None:
    """Compare every weight file with the checksum taken when it was saved.

    Without `rows` the blocks of the user model are not read, if they have their own checksums.
    """
    for name, expected in about["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise PrlhfError(f"{folder} lacks {name}", "train again, or use a copy")
        if sha256(path) != expected:
            raise changed(path)
    if BLOCK_SUMS in about["sha256"]:
        path = folder / USER_MODEL
        if not path.is_file():
            raise PrlhfError(f"{folder} lacks {USER_MODEL}", "train again, or use a copy")
        if rows and list(block_sums(path)) != _block_sums(folder):
            raise changed(path)


def _block_sums(folder: Path) -> list[str]:
    return (folder / BLOCK_SUMS).read_text().split()
