"""`prlhf generate` as a function: which prompts, which users, what is already written, and the file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.atomic import atomic_file, full_disk_named
from prlhf.config import GenerateConfig
from prlhf.errors import Interrupted, PrlhfError, nearest
from prlhf.generate.decoding import Job, Written, batches, write_batch
from prlhf.model.checkpoint import Policy, load_policy, model_folder, read_about, reference_model
from prlhf.progress import SILENT, Progress
from prlhf.records import GENERIC, Prepared, Text, is_prepared, prompt_id, read_prepared
from prlhf.responses import Response, read_responses, to_line


@dataclass(frozen=True)
class Reader:
    """Someone a response is written for."""

    id: str
    index: int  # 0: generic, or unseen in training
    text: str


def generate(run: Path, config: GenerateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `config.out`, going on where a killed run stopped; returns counts and rates.

    Rows are appended to OUT.partial as they come; OUT appears when all are there, ordered by prompt and user.
    """
    out = config.out
    settings = settings_of(run, config)
    done = already_written(out, settings)
    policy = load_policy(run, config.device, config.precision, config.model, config.trust_remote_code)
    if config.base:
        policy = replace(policy, model=reference_model(policy, run, config.model, config.trust_remote_code))
    data = load_data(policy, config)
    readers = choose_readers(policy, data, config)
    jobs = plan(policy, load_prompts(data, config), readers, config)
    wanted = [job for job in jobs if (job.prompt_id, job.user_id) not in done]
    with full_disk_named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    progress.start("generating", len(jobs))
    progress.advance(len(jobs) - len(wanted))
    counts = {"responses": len(jobs), "new": len(wanted), "tokens": 0}
    try:
        for batch in batches(wanted, config.batch_size):
            rows = [as_response(w, settings) for w in write_batch(policy, batch, config, config.base)]
            append(partial(out), rows)
            done |= {(row.prompt_id, row.user_id): row for row in rows}
            counts["tokens"] += sum(row.response_tokens for row in rows)
            progress.advance(len(batch))
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {len(done)} of {len(jobs)} responses written; run it again to go on"
        ) from error
    finally:
        progress.finish()
    order = {(job.prompt_id, job.user_id): i for i, job in enumerate(jobs)}
    with atomic_file(out) as beside:
        rows = sorted(done.values(), key=lambda row: order.get((row.prompt_id, row.user_id), len(order)))
        beside.write_text("".join(map(to_line, rows)), encoding="utf-8")
    partial(out).unlink(missing_ok=True)
    return {"out": str(out), "run": str(run), **counts, "users": len(readers)}


# ---- what is already there ----


def settings_of(run: Path, config: GenerateConfig) -> dict[str, Any]:
    """What a response depends on besides prompt and user; rows with other settings are not mixed in."""
    weights = json.dumps(read_about(model_folder(run))["sha256"], sort_keys=True)
    keys = ("temperature", "top_p", "max_new_tokens", "seed", "base")
    return {
        "run": str(run),
        "weights": hashlib.sha256(weights.encode()).hexdigest()[:16],
        **{key: getattr(config, key) for key in keys},
    }


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def already_written(out: Path, settings: dict[str, Any]) -> dict[tuple[str, str], Response]:
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
    )


# ---- for whom, and what about ----


def load_data(policy: Policy, config: GenerateConfig) -> Prepared | None:
    """The prepared data set: named, or the one the run was trained on where that is still there."""
    folder = Path(config.dataset or policy.config.dataset)
    if config.dataset or config.prompts == "eval" or is_prepared(folder):
        return read_prepared(folder)
    return None


def choose_readers(policy: Policy, data: Prepared | None, config: GenerateConfig) -> list[Reader]:
    """The users asked for; ids the model does not know are refused, or served as generic where allowed."""
    generic = Reader(GENERIC, 0, "")
    if config.base:
        return [generic]
    known = {GENERIC: generic}
    known |= {user: Reader(user, i, policy.user_texts.get(user, "")) for user, i in policy.index_of().items()}
    for user in data.users if data else []:
        known.setdefault(user.id, Reader(user.id, 0, user.text))  # unseen in training, perhaps with text
    if config.users == "all":
        return [known[user] for user in policy.user_ids] + [generic]
    chosen: dict[str, Reader] = {}
    for name in filter(None, (part.strip() for part in config.users.split(","))):
        if name not in known and not config.unknown_as_generic:
            raise PrlhfError(
                f"user '{name}' is unknown to this model", f"{nearest(name, known)} or --unknown-as-generic"
            )
        chosen[name] = known.get(name, Reader(name, 0, ""))
    if not chosen:
        raise PrlhfError(f"users = '{config.users}' names no user", "use all, generic or ids separated by commas")
    return list(chosen.values())


def load_prompts(data: Prepared | None, config: GenerateConfig) -> list[Text]:
    """Distinct prompts in the order of their source."""
    if config.prompts == "eval":
        found = [row.prompt for row in data.eval] if data else []
    else:
        found = read_prompts(Path(config.prompts))
    distinct = list({prompt_id(prompt): prompt for prompt in found}.values())
    if not distinct:
        raise PrlhfError(f"prompts = {config.prompts} holds no prompt", "give a file with prompts")
    return distinct[: config.max_prompts]


def read_prompts(path: Path) -> list[Text]:
    """`prompt` of every row of a JSONL or parquet file, or the lines of a text file."""
    try:
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".json"):
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [_json_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        else:
            return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError as error:
        raise PrlhfError(f"no prompts at {path}", "give a file, or `eval` for the held-out prompts") from error
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise PrlhfError(f"cannot read prompts {path}: {error}", "give JSONL, parquet or text") from error
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not _is_text(prompt):
            raise PrlhfError(f"{path}, row {number}: no prompt", 'give rows like {"prompt": "…"}')
    return [row["prompt"] for row in rows]


def _json_row(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise PrlhfError(f"{path}:{number} is no JSON: {error}", "write one JSON object a line") from error


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )


def plan(policy: Policy, prompts: list[Text], readers: list[Reader], config: GenerateConfig) -> list[Job]:
    """One job per (prompt, user), in this order; each prompt is tokenised once."""
    encoder = replace(policy.encoder(), limit=policy.base.context)  # training's budget of tokens does not bind here
    texts = {reader.id: encoder.text("" if config.base else reader.text) for reader in readers}
    jobs = []
    for prompt in prompts:
        name = prompt_id(prompt)
        longest = max(len(text) for text in texts.values())
        room = encoder.limit - encoder.user_tokens - longest - config.max_new_tokens
        ids = encoder.prompt(prompt, room, name)
        jobs += [Job(name, prompt, texts[r.id] + ids, r.id, r.index) for r in readers]
    return jobs
