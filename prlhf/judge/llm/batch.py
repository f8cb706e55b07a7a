"""`--batch`: the same requests through the provider's Batch API, for a lower price and with a delay of up to a day.

What was submitted is written to `….batches.json` beside the answers before the wait begins, so that the next run
collects it after a stop or a crash, and does not pay twice. The name of a batch is written before it is submitted, and
goes with it as `metadata`: if the run dies before it receives the batch's id, the next run finds the batch by name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
from pydantic import BaseModel, ValidationError

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file
from prlhf.judge.llm.replies import Fault, error_in, fault_of, read_completion
from prlhf.judge.llm.requests import Request, Session
from prlhf.judge.llm.server import refused, sync_client
from prlhf.progress import Progress

MAX_REQUESTS = 50_000  # of one batch
ROUNDS = 4  # how often requests are submitted again without the parameters that the server refuses
ENDED = ("completed", "failed", "expired", "cancelled")
NAME = "prlhf"  # the key in a batch's metadata


class Note(BaseModel):
    """The content of `….batches.json`."""

    open: list[str] = []  # ids of batches to collect
    submitting: str = ""  # the name of a batch whose id is not known yet


def send_batch(session: Session, requests: Sequence[Request], progress: Progress) -> None:
    """Answer `requests` from batches that an earlier run left, then by new ones within the budget.

    Raises PrlhfError if the server refuses a batch, or requests stay without an answer.
    """
    server, config, known = session.server, session.config, session.cache.known
    allowed: list[Request] = []
    try:
        with sync_client(server, config.timeout, config.retries) as client:
            batches = Batches(session, client, progress)
            batches.find()
            batches.collect()
            missing = [request for request in requests if request.key not in known]
            allowed = [request for request in missing if session.take(request)]
            unanswered = allowed
            for _ in range(ROUNDS):
                unanswered = _round(session, batches, unanswered, progress)
                if not unanswered:
                    break
    except openai.OpenAIError as error:
        raise refused(server, fault_of(error), config.max_wait) from None
    except Fault as fault:
        raise refused(server, fault, config.max_wait) from None
    finally:
        for request in allowed:
            session.settle(request, known.get(request.key))
    for request in allowed:
        if request.key not in known and (found := batches.faults.get(request.key)):
            session.give_up(request, found)
    if unanswered := [request for request in allowed if request.key not in known]:
        faults = [batches.faults[one.key].message for one in unanswered if one.key in batches.faults]
        why = server.redact(next(iter([*faults, *batches.reasons]), "no reason given"))
        raise PrlhfError(f"{len(unanswered)} requests of the batch have no answer: {why}", "run the same command again")


def _round(session: Session, batches: Batches, requests: Sequence[Request], progress: Progress) -> list[Request]:
    """Submit and collect; returns the requests to submit again, since the server refuses a parameter of them."""
    for start in range(0, len(requests), MAX_REQUESTS):
        batches.submit(requests[start : start + MAX_REQUESTS])
    if requests:
        progress.note(f"{len(requests)} requests submitted: {', '.join(batches.note.open)}")
    batches.collect()
    before, again = session.dialect, []
    for request in requests:
        fault = batches.faults.get(request.key)
        if fault is not None and before.after(fault) is not None:
            session.dialect = session.dialect.after(fault) or session.dialect
            again.append(request)
    if again:
        progress.note(f"{len(again)} requests are submitted again without {session.dialect.describe()}")
    return again


class Batches:
    """The batches of one session."""

    def __init__(self, session: Session, client: openai.OpenAI, progress: Progress) -> None:
        self._exchange, self._client = session, client
        self._path = session.cache.path.with_suffix(".batches.json")
        self.note = _read(self._path, progress)
        self.faults: dict[str, Fault] = {}  # by the key of the request
        self.reasons: list[str] = []  # why whole batches failed

    def find(self) -> None:
        """Look for a batch that an earlier run submitted without receiving its id."""
        if not self.note.submitting:
            return
        try:
            listed = self._json(self._client.get("/batches?limit=100", cast_to=httpx2.Response)).get("data")
        except Fault:
            listed = []  # the server has no such list
        for batch in listed if isinstance(listed, list) else []:
            metadata = batch.get("metadata") if isinstance(batch, dict) else None
            if isinstance(metadata, dict) and metadata.get(NAME) == self.note.submitting:
                self.note.open.append(str(batch["id"]))
                break
        self.note.submitting = ""
        self._save()

    def submit(self, requests: Sequence[Request]) -> None:
        """Submit one batch. Raises Fault and the exceptions of the openai package."""
        azure = bool(self._exchange.server.api_version)
        endpoint = "/chat/completions" if azure else "/v1/chat/completions"
        speak = self._exchange.dialect.speak
        lines = [
            {"custom_id": request.key, "method": "POST", "url": endpoint, "body": speak(request.body)}
            for request in requests
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
        """Wait for each open batch, store its answers, and remove it from the note."""
        while self.note.open:
            name = self.note.open[0]
            batch = self._wait(name)
            for key in ("output_file_id", "error_file_id"):
                if file := batch.get(key):
                    for line in self._content(str(file)).split(b"\n"):
                        self._keep(line)
            if batch.get("status") != "completed":
                self.reasons.append(_reason(name, batch))
            del self.note.open[0]
            self._save()

    def _wait(self, name: str) -> dict[str, Any]:
        while (batch := self._look(name)).get("status") not in ENDED:
            time.sleep(self._exchange.config.batch_poll)
        return batch

    def _look(self, name: str) -> dict[str, Any]:
        try:
            return self._json(self._client.get(f"/batches/{name}", cast_to=httpx2.Response))
        except openai.NotFoundError:
            return {"status": "expired", "errors": [{"message": f"the server no longer has batch {name}"}]}

    def _content(self, file: str) -> bytes:
        try:
            return self._client.get(f"/files/{file}/content", cast_to=httpx2.Response).content
        except openai.NotFoundError:
            self.reasons.append(f"the server no longer has file {file}")
            return b""

    def _keep(self, line: bytes) -> None:
        """Store the answer in a line of a batch, or remember its fault."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if line.strip():
                self.reasons.append("a line of the batch is not JSON")
            return
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str) or key in self._exchange.cache.known:
            return
        try:
            answer = read_completion(_body(row), seconds=0.0)
        except Fault as fault:
            self.faults[key] = fault
            return
        self.faults.pop(key, None)
        text = answer.text and self._exchange.server.redact_answer(answer.text)
        self._exchange.cache.add(key, replace(answer, text=text))

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


def _reason(name: str, batch: dict[str, Any]) -> str:
    """Why a batch failed."""
    errors = batch.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else errors
    found = error_in({"errors": listed}) if errors else None
    return found.message if found else f"batch {name} {batch.get('status')}"


def _body(row: dict[str, Any]) -> Any:
    """The reply in a line of a batch. Raises Fault if it is an error."""
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
    """The note of an earlier run; prlhf 0.1 wrote a list of ids."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
        value = json.loads(text)
        return Note.model_validate({"open": value} if isinstance(value, list) else value)
    except (OSError, ValueError, RecursionError, ValidationError):
        progress.note(f"{path} is damaged: batches that were submitted before cannot be collected")
        return Note()
