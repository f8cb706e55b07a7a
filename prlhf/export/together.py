"""Users in front of the prompt: one model for all of them, and beside or in it what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError, unknown_user
from prlhf.export.card import write_card
from prlhf.export.compare import Compared, Sample, samples
from prlhf.export.hf_users import compare_with_users, write_with_users
from prlhf.export.names import folder_names
from prlhf.export.prefixes import prefixes_of
from prlhf.export.template import Prefix
from prlhf.export.whole import write_merged
from prlhf.files import full_disk_named
from prlhf.folders import claim, replacing
from prlhf.model.base import pick_dtype
from prlhf.model.checkpoint import Policy, load_policy
from prlhf.progress import Progress

TOGETHER = ("hf-users", "vllm", "peft", "ollama")


def write_together(
    run: Path,
    users: Sequence[str],
    format: str,
    out: Path,
    base: str | None,
    trust_remote_code: bool,
    precision: str,
    progress: Progress,
) -> tuple[dict[str, Path], Compared]:
    """Write `users` and the generic user into `out`. Returns the folder of each, and the comparison with the run."""
    claim(out, "export", inputs=[run])
    progress.start("export", 1)
    policy = load_policy(run, "cpu", "fp32", base, trust_remote_code, set(users) - {GENERIC}, whole=True)
    indices = _indices(policy, run, users)
    prefixes = prefixes_of(policy, indices, folder_names(list(indices)))
    rows = samples(policy, run, indices)
    dtype = pick_dtype(precision, torch.device("cpu"))
    merge = next(iter(indices.values()))  # with gates there is one user; without, everyone has the same adapter
    with full_disk_named(out), replacing(out, "export") as folder:
        write_card(folder, format, list(indices), policy, run, tokens="".join(prefixes[-1].tokens))
        compared = _write(policy, merge, prefixes, rows, format, dtype, folder)
    progress.advance()
    progress.finish()
    return dict.fromkeys(indices, out), compared


def _indices(policy: Policy, run: Path, users: Sequence[str]) -> dict[str, int]:
    """The user index of each who is exported: the generic user first, unless gates make everyone's model another."""
    known = {GENERIC: 0} | policy.index_of()
    for user in users:
        if user not in known:
            raise unknown_user(user, run, known)
    if policy.model.users.gates is None:
        return {user: known[user] for user in dict.fromkeys([GENERIC, *users])}
    if len(users) > 1:
        raise PrlhfError(
            f"{run} has users in the adapter too, so each of them is another model", "export one --user at a time"
        )
    return {users[0]: known[users[0]]}


def _write(
    policy: Policy,
    user_index: int,
    prefixes: Sequence[Prefix],
    rows: Sequence[Sample],
    format: str,
    dtype: torch.dtype,
    folder: Path,
) -> Compared:
    if format == "hf-users":
        write_with_users(policy, user_index, prefixes, dtype, folder)
        return compare_with_users(rows, prefixes, dtype, folder)
    if format == "ollama":
        from prlhf.export.ollama import write_modelfiles

        write_with_users(policy, user_index, prefixes, dtype, folder / "model")
        write_modelfiles(prefixes, folder)
        return compare_with_users(rows, prefixes, dtype, folder / "model")
    lm = write_merged(policy, user_index, dtype, folder / "model")
    if format == "vllm":
        from prlhf.export.vllm import compare_vectors, write_vectors

        write_vectors(prefixes, lm, dtype, folder)
        return compare_vectors(rows, prefixes, dtype, folder)
    from prlhf.export.peft import compare_prompt_tuning, write_prompt_tuning

    for one in prefixes:
        write_prompt_tuning(one, lm.config, folder / "users" / one.name)
    return compare_prompt_tuning(rows, prefixes, dtype, folder)
