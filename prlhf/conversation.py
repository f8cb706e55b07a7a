"""A conversation with a run as one of its users: questions, their answers, other answers, and choices among them."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig
from prlhf.dataset import Message, Text
from prlhf.errors import PrlhfError, nearest
from prlhf.files import atomic_file, full_disk_named
from prlhf.folders import claim_file
from prlhf.generate.baselines import baseline_of
from prlhf.generate.prefixes import KeptBeginnings
from prlhf.generate.readers import known_readers
from prlhf.generate.requests import Planner, WriteRequest
from prlhf.generate.stream import stream
from prlhf.generate.writer import WritingModel, open_model, turns
from prlhf.model.hub_run import found_run
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress

KEPT = 512 << 20  # bytes for what was computed of the conversation so far


@dataclass(frozen=True)
class Reply:
    """What was written to the last question, for whom."""

    user: str
    text: str


class Dialogue:
    """Holds what was said. A run that was trained on plain prompts takes each question as a prompt of its own."""

    def __init__(self, model: WritingModel, config: GenerateConfig, user: str) -> None:
        """Raises PrlhfError if the user is unknown."""
        policy = model.policy
        self.model, self.config = model, config
        self.readers = known_readers(policy.index_of(), policy.user_texts, None)
        self.plain = policy.conversational is False or not policy.tokenizer.chat_template
        self.messages: list[Message] = []  # up to the last question
        self.answers: list[Reply] = []  # to the last question
        self.chosen = -1  # the one that the next question follows
        self.user = self.known(user)
        self._planner = Planner(policy, baseline_of(config), config)
        self._kept = KeptBeginnings(0 if model.adapters else KEPT)  # an adapter per user: each is a model of its own

    def known(self, user: str) -> str:
        """`user`, if the run knows them. Raises PrlhfError."""
        if user not in self.readers:
            raise PrlhfError(f"user '{user}' is unknown to the run", nearest(user, self.readers))
        return user

    # ---- asking ----

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer to `question`, in pieces. It is kept as far as it is read.

        Raises:
            PrlhfError: it does not fit into the model's context.
        """
        before = [] if self.plain or not self.answers else [*self.messages, _said(self.answers[self.chosen].text)]
        messages = [*before, {"role": "user", "content": question}]
        request = self._request(messages, self.user, 0)
        self.messages, self.answers, self.chosen = messages, [], -1
        return self._answer(request)

    def again(self, user: str | None = None) -> Generator[str, None, None]:
        """Another answer to the last question, for `user` or as before, in pieces.

        Raises:
            PrlhfError: nothing was asked, or the user is unknown.
        """
        if not self.messages:
            raise PrlhfError("nothing was asked yet", "type a question first")
        who = self.known(user or self.user)
        return self._answer(self._request(self.messages, who, sum(answer.user == who for answer in self.answers)))

    def new(self) -> None:
        """Forget what was said."""
        self.messages, self.answers, self.chosen = [], [], -1

    def _request(self, messages: list[Message], user: str, candidate: int) -> WriteRequest:
        request = self._planner.request(self._prompt(messages), self.readers[user])
        return replace(request, candidate=candidate)

    def _prompt(self, messages: list[Message]) -> Text:
        return messages[-1]["content"] if self.plain else messages

    def _answer(self, request: WriteRequest) -> Generator[str, None, None]:
        text = ""
        try:
            for policy, base, (one,) in turns(self.model, [request], self.config):
                for piece in stream(policy, one, self.config, base, self._kept):
                    text += piece
                    yield piece
        finally:  # the reader may have stopped
            self.answers.append(Reply(request.user_id, text))
            self.chosen = -1

    # ---- keeping ----

    def choose(self, number: int, file: Path, user: str | None = None) -> list[dict[str, Any]]:
        """Continue with answer `number`, from 1, and append it to `file` as chosen over each of the others.

        A row has the columns of custom data, which `prlhf adapt` reads. `user`: whose choice it is, if it is not that
        of whom the answers are written for; it may be somebody new.

        Raises:
            PrlhfError: there is no such answer, or none that differs from it, or `file` cannot be written.
        """
        if not 1 <= number <= len(self.answers):
            count = len(self.answers)
            raise PrlhfError(f"there is no answer {number}", f"there are {count}; /regenerate or /compare give more")
        best = self.answers[number - 1].text
        others = [text for text in dict.fromkeys(answer.text for answer in self.answers) if text != best]
        if not others:
            raise PrlhfError("there is nothing to choose from: no other answer differs", "/regenerate gives another")
        prompt = self._prompt(self.messages)
        whose, chosen = user or self.user, self._as_data(best)
        rows = [
            {"prompt": prompt, "chosen": chosen, "rejected": self._as_data(other), "user_id": whose} for other in others
        ]
        _append(file, "".join(json_text(row, ensure_ascii=False) + "\n" for row in rows))
        self.chosen = number - 1
        return rows

    def _as_data(self, text: str) -> Text:
        return text if self.plain else [_said(text)]

    def save(self, file: Path) -> None:
        """Write what was said as JSON: `{"user": …, "messages": […]}`. Raises PrlhfError if `file` exists."""
        if os.path.lexists(file):
            raise PrlhfError(f"{file} exists", "choose another name")
        answer = [_said(self.answers[self.chosen].text)] if self.answers else []
        with atomic_file(file) as beside:
            talk = {"user": self.user, "messages": [*self.messages, *answer]}
            beside.write_text(json_text(talk, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def open_conversation(run: Path, user: str, config: GenerateConfig, progress: Progress = SILENT) -> Dialogue:
    """Load a run, from a folder or the hub, to talk with.

    Raises:
        PrlhfError: it cannot be read, does not write, or does not know the user.
    """
    return Dialogue(open_model(found_run(run, progress), config, [], progress), config, user)


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _append(file: Path, lines: str) -> None:
    """Append whole lines to a file of lines, which may lack the end of its last one."""
    claim_file(file, "choose another --choices")
    with full_disk_named(file), file.open("ab+") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            lines = ("" if out.read(1) == b"\n" else "\n") + lines
        out.write(lines.encode())
        out.flush()
        os.fsync(out.fileno())
