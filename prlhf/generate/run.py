"""`prlhf generate` as a function: what is to be written, and who writes it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.dataset import Prepared, gone, is_prepared, prompt_id, read_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.author import Assignment, Author
from prlhf.generate.baselines import check_preferences, chosen_responses
from prlhf.generate.best_of import reward_settings
from prlhf.generate.jobs import plan
from prlhf.generate.models import Writer, open_plan, open_writer
from prlhf.generate.output import Block, claim_output, open_output
from prlhf.generate.pairs import choose_pairs, choose_readers, known_readers
from prlhf.model.per_user import trained_on
from prlhf.progress import SILENT, Progress
from prlhf.responses import Response

HERE = ClusterConfig()


def generate(
    run: Path | None, config: GenerateConfig, progress: Progress = SILENT, cluster: ClusterConfig = HERE
) -> dict[str, Any]:
    """Write `config.out`, going on where a killed run stopped; returns counts.

    `run` may be None for the baselines that need no training. With workers, this process plans and keeps the output,
    and loads no weights but those of a base without a run.
    """
    claim_output(config)
    data = load_data(run, config)
    if config.baseline == "oracle" and data:
        check_preferences(data)
    if config.baseline == "chosen" and data:
        if cluster.workers:
            progress.note("the chosen responses are only copied: no workers are started")
        return copy_chosen(data, config, progress)
    users = data.user_ids if data else []
    writer = (open_plan if cluster.workers else open_writer)(run, config, users)
    settings = settings_of(str(run or config.model), writer.weights, data, config)
    readers = choose_readers(known_readers(writer.policy.index_of(), writer.policy.user_texts, data), config)
    jobs = plan(writer.policy, choose_pairs(data, readers, config), data, config, progress)
    out = open_output(config, settings, jobs)
    blocks, before = out.blocks(cluster.workers), out.count
    work = Work(Assignment(run, config, users, settings), blocks, writer, cluster)
    tokens = 0
    progress.start("generating", len(jobs))
    progress.advance(before)
    try:
        with closing(work.results(progress)) as results:  # Ray ends before this function does
            for block, rows, last in results if blocks else ():
                out.add(block, rows)
                tokens += sum(row.response_tokens for row in rows)
                if last:
                    out.end_block(block)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {out.count} of {len(jobs)} responses written; run it again to go on"
        ) from error
    finally:
        progress.finish()
    out.finish()
    counts = {"responses": len(jobs), "new": len(jobs) - before, "tokens": tokens, "users": len(readers)}
    pieces = {"blocks": len(blocks), "shards": out.shards, "workers": cluster.workers}
    return {"out": str(config.out), "run": settings["run"], **counts, **pieces}


@dataclass(frozen=True)
class Work:
    """Blocks, and who writes them: a model that is loaded here, or workers."""

    given: Assignment
    blocks: list[Block]
    writer: Writer
    cluster: ClusterConfig

    def results(self, progress: Progress) -> Generator[tuple[int, list[Response], bool]]:
        """(block, rows, whether they are its last) as they are written; moves the bar by them."""
        if self.cluster.workers:
            from prlhf.generate.on_ray import write_on_ray

            for number, rows in write_on_ray(self.given, self.blocks, self.cluster, progress):
                yield number, rows, True
            return
        author = Author(self.given, progress, self.writer)
        for block in self.blocks:
            left = len(block.jobs)
            for rows in author.write(block.jobs):
                left -= len(rows)
                yield block.number, rows, left == 0
                progress.advance(len(rows))


def copy_chosen(data: Prepared, config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """The responses that the data's users chose, as a file like any other; token counts are 0, there is no model."""
    settings = settings_of("chosen", data.manifest["content_hash"], data, config)
    seen = {user: index for index, user in enumerate(data.user_ids, start=1)}
    readers = choose_readers(known_readers(seen, {}, data), config)
    pairs = choose_pairs(data, readers, config)
    found = [
        Response(prompt_id(prompt), reader.id, reader.user_index, prompt, response, 0, 0, "stop", settings)
        for (prompt, reader), response in zip(pairs, chosen_responses(data, pairs), strict=True)
        if response is not None
    ]
    if len(found) < len(pairs):
        progress.note(f"{len(pairs) - len(found)} (prompt, user) pairs have no chosen response in the held-out data")
    if not found:
        raise PrlhfError(f"users = {config.users} chose nothing among prompts = {config.prompts}", "use --prompts own")
    out = open_output(config, settings, found)
    blocks, before = out.blocks(0), out.count
    for block in blocks:
        out.add(block.number, block.jobs)
        out.end_block(block.number)
    out.finish()
    counts = {"responses": len(found), "new": len(found) - before, "tokens": 0}
    pieces = {"users": len({row.user_id for row in found}), "blocks": len(blocks), "shards": out.shards, "workers": 0}
    return {"out": str(config.out), "run": settings["run"], **counts, **pieces}


def load_data(run: Path | None, config: GenerateConfig) -> Prepared | None:
    """The prepared data set: named, or the one the run was trained on; None where it is gone and nothing needs it."""
    needed = config.prompts in ("eval", "own", "judging") or config.baseline in ("oracle", "in-context", "chosen")
    name = config.dataset or (trained_on(run) if run else None)
    if name is None:
        if needed:
            raise PrlhfError("no data set is named", "add --dataset FOLDER, or give the folder of a finished run")
        return None
    if run and needed and not config.dataset and not is_prepared(Path(name)):
        raise gone(run, name)
    return read_prepared(Path(name)) if config.dataset or needed or is_prepared(Path(name)) else None


def settings_of(run: str, weights: str, data: Prepared | None, config: GenerateConfig) -> dict[str, Any]:
    """What a response depends on besides prompt and user; rows with other settings are not mixed in."""
    keys = ["temperature", "top_p", "max_new_tokens", "seed", "baseline"]
    settings: dict[str, Any] = {"run": run, "weights": weights, **{key: getattr(config, key) for key in keys}}
    if data and config.baseline in ("oracle", "in-context"):
        settings["data"] = data.manifest["content_hash"]
    if config.baseline == "in-context":
        settings["examples"] = config.examples
    if config.template_options:
        settings["template_options"] = config.template_options
    return settings | reward_settings(config)
