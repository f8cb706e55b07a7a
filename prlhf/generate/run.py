"""`prlhf generate` as a function: select readers and prompts, plan requests, open the output, write."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.dataset import Prepared, gone, is_prepared, prompt_id, read_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.extensions import BASELINES
from prlhf.generate.baselines import Baseline, baseline_of
from prlhf.generate.best_of import reward_settings
from prlhf.generate.output import Block, OneFile, Shards, claim_output, open_output
from prlhf.generate.pairs import select
from prlhf.generate.readers import known_readers
from prlhf.generate.requests import plan_requests
from prlhf.generate.writer import Writer, WriterSpec, WritingModel, open_model, open_plan
from prlhf.model.hub_run import found_run
from prlhf.model.per_user import trained_on
from prlhf.progress import SILENT, Progress
from prlhf.responses import Response

IN_THIS_PROCESS = ClusterConfig()


def generate(
    run: Path | None,
    config: GenerateConfig,
    progress: Progress = SILENT,
    cluster: ClusterConfig = IN_THIS_PROCESS,
) -> dict[str, Any]:
    """Write `config.out`, continuing where a killed run stopped; returns counts.

    `run` may be None for the baselines that need no training. With workers, this process plans and keeps the output,
    and loads no weights but those of a base without a run.

    Raises:
        PrlhfError: the settings, the run, the data or the output do not allow it.
        Interrupted: Ctrl-C; what was written stays.
    """
    claim_output(config)
    run = run and found_run(run, progress)
    data = load_data(run, config)
    baseline = baseline_of(config, data)
    if not baseline.needs_model:
        if cluster.workers:
            progress.note("the chosen responses are only copied: no workers are started")
        return copy(baseline, config, progress)
    users = data.user_ids if data else []
    model = open_plan(run, config, users) if cluster.workers else open_model(run, config, users, progress)
    settings = settings_of(str(run or config.model), model.weights, baseline, config)
    known = known_readers(model.policy.index_of(), model.policy.user_texts, data)
    selection = select(known, baseline, config)
    requests = plan_requests(model.policy, selection.pairs, baseline, config, progress)
    out = open_output(config, settings, requests)
    blocks, before = out.blocks(cluster.workers), out.count
    work = Work(WriterSpec(run, config, users, settings), blocks, model, cluster)
    tokens = 0
    progress.start("generating", len(requests))
    progress.advance(before)
    try:
        with closing(work.results(progress)) as results:  # Ray ends before this function does
            for number, rows, last in results if blocks else ():
                out.add(number, rows)
                tokens += sum(row.response_tokens for row in rows)
                if last:
                    out.end_block(number)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {out.count} of {len(requests)} responses written; run it again to continue"
        ) from error
    finally:
        progress.finish()
    out.finish()
    return counts(out, settings, before, tokens, len(selection.readers), len(blocks), cluster.workers)


@dataclass(frozen=True)
class Work:
    """Blocks of requests, and who writes them: a model that is loaded here, or workers."""

    spec: WriterSpec
    blocks: list[Block]
    model: WritingModel
    cluster: ClusterConfig

    def results(self, progress: Progress) -> Generator[tuple[int, list[Response], bool]]:
        """(number of a block, rows, whether they are its last) as they are written; moves the bar by them."""
        if self.cluster.workers:
            from prlhf.generate.on_ray import write_on_ray

            for number, rows in write_on_ray(self.spec, self.blocks, self.cluster, progress):
                yield number, rows, True
            return
        writer = Writer(self.spec, progress, self.model)
        for block in self.blocks:
            left = len(block.requests)
            for rows in writer.write(block.requests):
                left -= len(rows)
                yield block.number, rows, left == 0
                progress.advance(len(rows))


def copy(baseline: Baseline, config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """Write what a baseline without a model takes from the data; token counts are 0."""
    data = baseline.data
    assert data is not None  # see `load_data`
    settings = settings_of(config.baseline, data.manifest["content_hash"], baseline, config)
    seen = {user: user_index for user_index, user in enumerate(data.user_ids, start=1)}
    pairs = select(known_readers(seen, {}, data), baseline, config).pairs
    found = [
        Response(prompt_id(prompt), reader.id, reader.user_index, prompt, response, 0, 0, "stop", settings)
        for (prompt, reader), response in zip(pairs, baseline.responses(pairs), strict=True)
        if response is not None
    ]
    if len(found) < len(pairs):
        progress.note(f"{len(pairs) - len(found)} (prompt, user) pairs have no chosen response in the held-out data")
    if not found:
        raise PrlhfError(f"users = {config.users} chose nothing among prompts = {config.prompts}", "use --prompts own")
    out = open_output(config, settings, found)
    blocks, before = out.blocks(0), out.count
    for block in blocks:
        out.add(block.number, block.requests)
        out.end_block(block.number)
    out.finish()
    return counts(out, settings, before, 0, len({row.user_id for row in found}), len(blocks), 0)


def counts(
    out: OneFile | Shards, settings: dict[str, Any], before: int, tokens: int, users: int, blocks: int, workers: int
) -> dict[str, Any]:
    """What the command reports. `before`: responses of earlier runs; `tokens`: of the new responses."""
    total = len(out.requests)
    made = {"responses": total, "new": total - before, "tokens": tokens, "users": users}
    pieces = {"blocks": blocks, "shards": out.shards, "workers": workers}
    return {"out": str(out.out), "run": settings["run"], **made, **pieces}


def load_data(run: Path | None, config: GenerateConfig) -> Prepared | None:
    """The prepared data set: named, or the one the run was trained on; None where it is gone and nothing needs it."""
    kind: type[Baseline] = BASELINES[config.baseline]
    needed = config.prompts in ("eval", "own", "judging") or kind.needs_data or not kind.needs_model
    name = config.dataset or (trained_on(run) if run else None)
    if name is None:
        if needed:
            raise PrlhfError("no data set is named", "add --dataset FOLDER, or give the folder of a finished run")
        return None
    if run and needed and not config.dataset and not is_prepared(Path(name)):
        raise gone(run, name)
    return read_prepared(Path(name)) if config.dataset or needed or is_prepared(Path(name)) else None


def settings_of(run: str, weights: str, baseline: Baseline, config: GenerateConfig) -> dict[str, Any]:
    """What a response depends on besides prompt and user; rows with other settings are not mixed in."""
    keys = ["temperature", "top_p", "max_new_tokens", "seed", "baseline"]
    settings: dict[str, Any] = {"run": run, "weights": weights, **{key: getattr(config, key) for key in keys}}
    settings |= baseline.settings()
    if config.template_options:
        settings["template_options"] = config.template_options
    return settings | reward_settings(config)
