"""What writes a block of jobs: the model, loaded once, and for best-of-N the reward. In this process or in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig
from prlhf.generate.best_of import best_of
from prlhf.generate.decoding import Job, Written, write
from prlhf.generate.models import Writer, open_writer, turns
from prlhf.generate.probe import serves
from prlhf.progress import SILENT, Progress
from prlhf.responses import Response


@dataclass(frozen=True)
class Assignment:
    """All that an author needs to know, wherever it sits."""

    run: Path | None
    config: GenerateConfig
    users: Sequence[str]  # ids of the data's seen users
    settings: dict[str, Any]  # of each row


class Author:
    """Writes responses with one loaded model; the same in this process and in a worker."""

    def __init__(self, given: Assignment, progress: Progress = SILENT, writer: Writer | None = None) -> None:
        """Loads the model, unless `writer` has it loaded; says so if it is of a kind that is slow."""
        self.given, config = given, given.config
        self.writer = writer or open_writer(given.run, config, given.users)
        fingerprint = self.writer.policy.base.fingerprint
        self.write_jobs = best_of(config.reward, config, fingerprint) if config.reward else write
        if not serves(self.writer.policy.model):
            progress.note(
                "this kind of model is decoded by transformers' generate: batches wait for their longest response"
            )

    def write(self, jobs: Sequence[Job]) -> Iterator[list[Response]]:
        """The rows of `jobs`, as they end."""
        for policy, base, group in turns(self.writer, jobs, self.given.config):
            for ended in self.write_jobs(policy, group, self.given.config, base):
                yield [as_response(one, self.given.settings) for one in ended]


def as_response(written: Written, settings: dict[str, Any]) -> Response:
    """The row of the output file for what was written."""
    job = written.job
    return Response(
        prompt_id=job.prompt_id,
        user_id=job.user_id,
        user_index=job.user_index,
        prompt=job.prompt,
        response=written.text,
        prompt_tokens=len(job.ids),
        response_tokens=written.tokens,
        finish_reason="stop" if written.finished else "length",
        settings=settings,
        reward=written.reward,
    )
