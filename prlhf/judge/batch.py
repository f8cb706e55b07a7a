"""`--batch`: the same requests through the provider's Batch API, at its price and pace. Submit, wait, collect, resume.

What was submitted is written down before the wait begins (`….batches.json` beside the answers), so that a run that was
stopped, or died, collects it the next time and does not pay twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import openai

from prlhf.atomic import atomic_file
from prlhf.errors import PrlhfError
from prlhf.judge.answers import Answers
from prlhf.judge.client import read_completion
from prlhf.judge.server import refused
from prlhf.progress import Progress

if TYPE_CHECKING:
    from prlhf.judge.llm import Asked, LlmJudge

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST = 50_000  # requests a batch may hold
ENDED = ("completed", "failed", "expired", "cancelled")


def fetch(judge: LlmJudge, missing: Sequence[Asked], answers: Answers, progress: Progress) -> None:
    """Answer `missing`: first from batches that an earlier run left, then by new ones, within the budget."""
    server, config = judge.server, judge.config
    path = answers.path.with_suffix(".batches.json")
    reasons: list[str] = []
    open_batches: list[str] = json.loads(path.read_text()) if path.exists() else []
    try:
        with openai.OpenAI(base_url=server.base_url, api_key=server.key or "none", timeout=config.timeout) as client:
            _collect(client, open_batches, path, answers, config.batch_poll, reasons)
            left = [one for one in missing if one.key not in answers.known]
            allowed = [one for one in left if judge.budget.take(judge.estimated_cost(one))]
            for start in range(0, len(allowed), MOST):
                open_batches.append(_submit(client, allowed[start : start + MOST]))
                _note(path, open_batches)
            progress.note(f"{len(allowed)} requests submitted: {', '.join(open_batches)}")
            _collect(client, open_batches, path, answers, config.batch_poll, reasons)
    except (openai.OpenAIError, json.JSONDecodeError) as error:
        raise refused(server, error) from None
    for one in allowed:
        judge.budget.settle(judge.estimated_cost(one), answers.known.get(one.key))
    if unanswered := sum(one.key not in answers.known for one in allowed):
        why = server.redact(reasons[0] if reasons else "no reason given")
        raise PrlhfError(f"{unanswered} requests of the batch have no answer: {why}", "mend it, if it can be mended")


def _submit(client: openai.OpenAI, asked: Sequence[Asked]) -> str:
    lines = [{"custom_id": one.key, "method": "POST", "url": ENDPOINT, "body": one.body} for one in asked]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(completion_window="24h", endpoint=ENDPOINT, input_file_id=file.id).id


def _collect(
    client: openai.OpenAI, batches: list[str], path: Path, answers: Answers, poll: float, reasons: list[str]
) -> None:
    """Wait for each of `batches`, keep its answers, and strike it off; `reasons` grows by what went wrong."""
    while batches:
        batch = _wait(lambda: client.batches.retrieve(batches[0]), poll)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in client.files.content(file).text.splitlines():
                reasons += _keep(json.loads(line), answers)
        if batch.status != "completed":
            said = [str(error.message) for error in (batch.errors.data or [])] if batch.errors else []
            reasons += said or [f"batch {batch.id} {batch.status}"]
        del batches[0]
        _note(path, batches)


def _wait(look: Callable[[], Any], poll: float) -> Any:
    while (batch := look()).status not in ENDED:
        time.sleep(poll)
    return batch


def _keep(row: dict[str, Any], answers: Answers) -> list[str]:
    """Keep the answer of a line; where it holds an error in its place, say so, and leave the request unanswered."""
    response = row.get("response") or {}
    body = response.get("body") or {}
    if row.get("error") or response.get("status_code") != 200:
        error = row.get("error") or body.get("error") or {}
        return [str(error.get("message") or error)]
    if row["custom_id"] not in answers.known:
        answers.add(row["custom_id"], read_completion(body, seconds=0.0))
    return []


def _note(path: Path, batches: Sequence[str]) -> None:
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(list(batches)) + "\n")
