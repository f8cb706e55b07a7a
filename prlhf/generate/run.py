"""`prlhf generate` as a function: what is already written, what is to be written, and the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prlhf.atomic import atomic_file, full_disk_named
from prlhf.config import GenerateConfig
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.baselines import check_preferences, chosen_responses
from prlhf.generate.best_of import best_of, reward_settings
from prlhf.generate.decoding import Written, write
from prlhf.generate.jobs import plan
from prlhf.generate.models import open_writer, trained_on, turns
from prlhf.generate.pairs import choose_pairs, choose_readers, known_readers
from prlhf.generate.probe import serves
from prlhf.progress import SILENT, Progress
from prlhf.records import Prepared, is_prepared, prompt_id, read_prepared
from prlhf.responses import Response, read_responses, to_line

Done = dict[tuple[str, str], Response]  # (prompt_id, user_id) -> row


def generate(run: Path | None, config: GenerateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `config.out`, going on where a killed run stopped; returns counts and rates.

    Rows are appended to OUT.partial as they come; OUT appears when all are there, ordered by prompt and user.
    `run` may be None for the baselines that need no training.
    """
    data = load_data(run, config)
    if config.baseline == "oracle" and data:
        check_preferences(data)
    if config.baseline == "chosen" and data:
        return copy_chosen(data, config, progress)
    writer = open_writer(run, config, data.user_ids if data else [])
    settings = settings_of(str(run or config.model), writer.weights, data, config)
    done = already_written(config.out, settings)
    readers = choose_readers(known_readers(writer.policy.index_of(), writer.policy.user_texts, data), config)
    jobs = plan(writer.policy, choose_pairs(data, readers, config), data, config, progress)
    wanted = [job for job in jobs if (job.prompt_id, job.user_id) not in done]
    writes = best_of(config.reward, config, writer.policy.base.fingerprint) if config.reward else write
    with full_disk_named(config.out):
        config.out.parent.mkdir(parents=True, exist_ok=True)
    if wanted and not serves(writer.policy.model):
        progress.note(
            "this kind of model is decoded by transformers' generate: batches wait for their longest response"
        )
    progress.start("generating", len(jobs))
    progress.advance(len(jobs) - len(wanted))
    counts = {"responses": len(jobs), "new": len(wanted), "tokens": 0}
    try:
        for policy, base, group in turns(writer, wanted, config):
            for ended in writes(policy, group, config, base):
                rows = [as_response(one, settings) for one in ended]
                append(partial(config.out), rows)
                done |= {(row.prompt_id, row.user_id): row for row in rows}
                counts["tokens"] += sum(row.response_tokens for row in rows)
                progress.advance(len(rows))
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {len(done)} of {len(jobs)} responses written; run it again to go on"
        ) from error
    finally:
        progress.finish()
    put_in_place(config.out, done, [(job.prompt_id, job.user_id) for job in jobs])
    return {"out": str(config.out), "run": settings["run"], **counts, "users": len(readers)}


def copy_chosen(data: Prepared, config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """The responses that the data's users chose, as a file like any other; token counts are 0, there is no model."""
    settings = settings_of("chosen", data.manifest["content_hash"], data, config)
    done = already_written(config.out, settings)
    seen = {user: index for index, user in enumerate(data.user_ids, start=1)}
    readers = choose_readers(known_readers(seen, {}, data), config)
    pairs = choose_pairs(data, readers, config)
    found = [
        Response(prompt_id(prompt), reader.id, reader.index, prompt, response, 0, 0, "stop", settings)
        for (prompt, reader), response in zip(pairs, chosen_responses(data, pairs), strict=True)
        if response is not None
    ]
    if len(found) < len(pairs):
        progress.note(f"{len(pairs) - len(found)} (prompt, user) pairs have no chosen response in the held-out data")
    if not found:
        raise PrlhfError(f"users = {config.users} chose nothing among prompts = {config.prompts}", "use --prompts own")
    new = {(row.prompt_id, row.user_id): row for row in found}
    put_in_place(config.out, done | new, list(new))
    counts = {"responses": len(new), "new": len(new.keys() - done.keys()), "tokens": 0}
    return {"out": str(config.out), "run": settings["run"], **counts, "users": len({row.user_id for row in found})}


def load_data(run: Path | None, config: GenerateConfig) -> Prepared | None:
    """The prepared data set: named, or the one the run was trained on; None where it is gone and nothing needs it."""
    needed = config.prompts in ("eval", "own", "judging") or config.baseline in ("oracle", "in-context", "chosen")
    name = config.dataset or (trained_on(run) if run else None)
    if name is None:
        if needed:
            raise PrlhfError("no data set is named", "add --dataset FOLDER, or give the folder of a finished run")
        return None
    return read_prepared(Path(name)) if config.dataset or needed or is_prepared(Path(name)) else None


# ---- what is already there ----


def settings_of(run: str, weights: str, data: Prepared | None, config: GenerateConfig) -> dict[str, Any]:
    """What a response depends on besides prompt and user; rows with other settings are not mixed in."""
    keys = ["temperature", "top_p", "max_new_tokens", "seed", "baseline"]
    settings: dict[str, Any] = {"run": run, "weights": weights, **{key: getattr(config, key) for key in keys}}
    if data and config.baseline in ("oracle", "in-context"):
        settings["data"] = data.manifest["content_hash"]
    if config.baseline == "in-context":
        settings["examples"] = config.examples
    return settings | reward_settings(config)


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def already_written(out: Path, settings: dict[str, Any]) -> Done:
    """Rows of an earlier run with the same settings, whole or killed."""
    rows = read_responses(out) if out.exists() else []
    whole = None
    if partial(out).exists():
        more, whole = read_responses(partial(out), partial=True)
        rows += more
    for row in rows:
        different = [key for key in settings if row.settings.get(key) != settings[key]]
        if different:
            key = different[0]
            raise PrlhfError(
                f"{out} holds responses with {key} = {row.settings.get(key)}, not {settings[key]}",
                "choose another --out, or remove it",
            )
    if whole is not None:
        os.truncate(partial(out), whole)
    return {(row.prompt_id, row.user_id): row for row in rows}


def append(path: Path, rows: list[Response]) -> None:
    with full_disk_named(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(map(to_line, rows)))


def as_response(written: Written, settings: dict[str, Any]) -> Response:
    job = written.job
    return Response(
        prompt_id=job.prompt_id,
        user_id=job.user_id,
        user_index=job.user,
        prompt=job.prompt,
        response=written.text,
        prompt_tokens=len(job.ids),
        response_tokens=written.tokens,
        finish_reason="stop" if written.finished else "length",
        settings=settings,
        reward=written.reward,
    )


def put_in_place(out: Path, done: Done, first: list[tuple[str, str]]) -> None:
    """The whole file: rows in the order of `first`, then those of earlier runs; the partial one goes."""
    order = {key: i for i, key in enumerate(first)}
    with atomic_file(out) as beside:
        rows = sorted(done.items(), key=lambda item: order.get(item[0], len(order)))
        beside.write_text("".join(to_line(row) for _, row in rows), encoding="utf-8")
    partial(out).unlink(missing_ok=True)
