"""`--batch`: the same requests through the provider's Batch API, at its price and pace. Submit, wait, collect, resume.

What is submitted is written down before the wait begins (`….batches.json` beside the answers), so that a run that was
stopped, or died, collects it the next time and does not pay twice. Before submitting, a name for the batch is written
down that goes with it as `metadata`: if the run dies before it hears the batch's id, the next one finds it by name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
from pydantic import BaseModel, ValidationError

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file
from prlhf.judge.answers import Answers
from prlhf.judge.connection import sync_client
from prlhf.judge.faults import Fault, error_in, fault_of
from prlhf.judge.replies import read_completion
from prlhf.judge.server import refused
from prlhf.progress import Progress

if TYPE_CHECKING:
    from prlhf.judge.llm import Asked, LlmJudge

MOST = 50_000  # requests a batch may hold
ROUNDS = 4  # how often requests that the server does not take are submitted anew without what it refuses
ENDED = ("completed", "failed", "expired", "cancelled")
NAME = "prlhf"  # the key in a batch's metadata


class Note(BaseModel):
    """What `….batches.json` holds: ids of batches to collect, and the name of one that is being submitted."""

    open: list[str] = []
    submitting: str = ""


class Batches:
    """The batches of one judge at one server."""

    def __init__(self, judge: LlmJudge, client: openai.OpenAI, answers: Answers, progress: Progress) -> None:
        self._judge, self._client, self._answers, self._progress = judge, client, answers, progress
        self._path = answers.path.with_suffix(".batches.json")
        self.note = _read(self._path, progress)
        self.faults: dict[str, Fault] = {}  # of requests that got no answer, by key
        self.reasons: list[str] = []  # the same of whole batches

    def find(self) -> None:
        """Take up the batch that an earlier run submitted without hearing its id, if the server has it."""
        if not self.note.submitting:
            return
        try:
            listed = self._json(self._client.get("/batches?limit=100", cast_to=httpx2.Response)).get("data")
        except Fault:
            listed = []  # a server without a list
        for batch in listed if isinstance(listed, list) else []:
            metadata = batch.get("metadata") if isinstance(batch, dict) else None
            if isinstance(metadata, dict) and metadata.get(NAME) == self.note.submitting:
                self.note.open.append(str(batch["id"]))
                break
        self.note.submitting = ""
        self._save()

    def submit(self, asked: Sequence[Asked]) -> None:
        """Submit one batch of `asked`. Raises Fault and the client's exceptions."""
        azure = bool(self._judge.server.api_version)
        endpoint = "/chat/completions" if azure else "/v1/chat/completions"
        speak = self._judge.dialect.speak
        lines = [
            {"custom_id": one.key, "method": "POST", "url": endpoint, "body": speak(one.body or {})} for one in asked
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        file = self._client.files.create(file=("requests.jsonl", content), purpose="batch")
        self.note.submitting = secrets.token_hex(16)
        self._save()
        body = {"completion_window": "24h", "endpoint": endpoint, "input_file_id": getattr(file, "id", None)}
        body |= {"metadata": {NAME: self.note.submitting}}
        batch = self._json(self._client.post("/batches", cast_to=httpx2.Response, body=body))
        if not isinstance(batch.get("id"), str):
            raise Fault(f"a batch without an id: {json.dumps(batch)[:80]}", kind="page")
        self.note = Note(open=[*self.note.open, batch["id"]])
        self._save()

    def collect(self) -> None:
        """Wait for each open batch, keep its answers, and strike it off."""
        while self.note.open:
            name = self.note.open[0]
            batch = self._wait(lambda name=name: self._look(name))  # type: ignore[misc]
            for key in ("output_file_id", "error_file_id"):
                if file := batch.get(key):
                    for line in self._content(str(file)).split(b"\n"):
                        self._keep(line)
            if batch.get("status") != "completed":
                errors = batch.get("errors")
                told = (
                    error_in({"errors": errors.get("data") if isinstance(errors, dict) else errors}) if errors else None
                )
                self.reasons.append(told.said if told else f"batch {name} {batch.get('status')}")
            del self.note.open[0]
            self._save()

    def _look(self, name: str) -> dict[str, Any]:
        try:
            return self._json(self._client.get(f"/batches/{name}", cast_to=httpx2.Response))
        except openai.NotFoundError:
            return {"status": "expired", "errors": [{"message": f"the server has no batch {name} any more"}]}

    def _content(self, file: str) -> bytes:
        try:
            return self._client.get(f"/files/{file}/content", cast_to=httpx2.Response).content
        except openai.NotFoundError:
            self.reasons.append(f"the server has no file {file} any more")
            return b""

    def _wait(self, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        while (batch := look()).get("status") not in ENDED:
            time.sleep(self._judge.config.batch_poll)
        return batch

    def _keep(self, line: bytes) -> None:
        """Keep the answer of a line; where it holds an error in its place, remember that."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if line.strip():
                self.reasons.append("a line of the batch is not JSON")
            return
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str) or key in self._answers.known:
            return
        try:
            answer = read_completion(_body(row), seconds=0.0)
        except Fault as fault:
            self.faults[key] = fault
            return
        self.faults.pop(key, None)
        text = answer.text and self._judge.server.redact_answer(answer.text)
        self._answers.add(key, replace(answer, text=text))

    def _json(self, reply: httpx2.Response) -> dict[str, Any]:
        try:
            body = reply.json()
        except (ValueError, RecursionError):
            raise Fault(f"not JSON but {reply.text[:80]!r}", kind="page") from None
        if fault := error_in({**body, "errors": None} if isinstance(body, dict) else body):
            raise fault
        if not isinstance(body, dict):
            raise Fault(f"not a batch but {json.dumps(body)[:80]}", kind="page")
        return body

    def _save(self) -> None:
        with atomic_file(self._path) as beside:
            beside.write_text(self.note.model_dump_json() + "\n")


def fetch(judge: LlmJudge, missing: Sequence[Asked], answers: Answers, progress: Progress) -> None:
    """Answer `missing`: first from batches that an earlier run left, then by new ones, within the budget."""
    server, config = judge.server, judge.config
    allowed: list[Asked] = []
    try:
        with sync_client(server, config.timeout, config.retries) as client:
            batches = Batches(judge, client, answers, progress)
            batches.find()
            batches.collect()
            left = [one for one in missing if one.key not in answers.known]
            allowed = [one for one in left if judge.budget.take(judge.estimated_cost(one))]
            open_ones = allowed
            for _ in range(ROUNDS):
                open_ones = _round(batches, judge, open_ones, progress)
                if not open_ones:
                    break
    except openai.OpenAIError as error:
        raise refused(server, fault_of(error), config.max_wait) from None
    except Fault as fault:
        raise refused(server, fault, config.max_wait) from None
    finally:
        for one in allowed:
            judge.budget.settle(judge.estimated_cost(one), answers.known.get(one.key))
    for one in allowed:
        if one.key not in answers.known and (found := batches.faults.get(one.key)):
            judge.lost(one, found, answers)
    if unanswered := [one for one in allowed if one.key not in answers.known]:
        faults = [batches.faults[one.key].said for one in unanswered if one.key in batches.faults]
        why = server.redact(next(iter([*faults, *batches.reasons]), "no reason given"))
        raise PrlhfError(f"{len(unanswered)} requests of the batch have no answer: {why}", "run it again for these")


def _round(batches: Batches, judge: LlmJudge, asked: Sequence[Asked], progress: Progress) -> list[Asked]:
    """Submit and collect; returns those to submit anew, since the server refuses a part of them by name."""
    for start in range(0, len(asked), MOST):
        batches.submit(asked[start : start + MOST])
    if asked:
        progress.note(f"{len(asked)} requests submitted: {', '.join(batches.note.open)}")
    batches.collect()
    before, again = judge.dialect, []
    for one in asked:
        fault = batches.faults.get(one.key)
        if fault is not None and before.after(fault) is not None:
            judge.dialect = judge.dialect.after(fault) or judge.dialect
            again.append(one)
    if again:
        progress.note(f"{len(again)} requests are submitted anew without {judge.dialect.describe()}")
    return again


def _body(row: dict[str, Any]) -> Any:
    """The reply in a line. Raises Fault where an error stands in its place."""
    if fault := error_in({"error": row.get("error")}) if row.get("error") else None:
        raise fault
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    status = response.get("status_code")
    status = status if isinstance(status, int) else 200
    if status != 200:
        body = response.get("body")
        raise error_in(body, status) or Fault(f"status {status}: {str(body)[:200]}", status)
    return response.get("body")


def _read(path: Path, progress: Progress) -> Note:
    """What an earlier run wrote down; 0.1 wrote a list of ids."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
        value = json.loads(text)
        return Note.model_validate({"open": value} if isinstance(value, list) else value)
    except (OSError, ValueError, RecursionError, ValidationError):
        progress.note(f"{path} is damaged: batches that were submitted before cannot be collected")
        return Note()
