"""From a pair to the exact messages that a language model receives.

Everything that somebody else wrote (the prompt, the responses, what is known of the user) is data. It stands between
lines with a code drawn for this question, and the three possible verdicts are codes as well. The author of a response
could know none of them, so no text can close its fence or spell a verdict, and an answer that repeats a response is not
a verdict. The codes are a hash of the seed and of the content: the same question is always the same request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prlhf.config.names import PROMPTS
from prlhf.dataset import GENERIC, Message, Prepared, conversation, prompt_id, read_prepared
from prlhf.errors import PrlhfError, one_line
from prlhf.judge.llm.answers import Side
from prlhf.judge.verdicts import Pair

LETTERS, DIGITS = "BCDFGHJKLMNPQRSTVWXZ", "23456789"  # no vowels and no 0 or 1: codes are neither words nor ambiguous
ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
SHOWN_APART = {"self_description", "system_string", "stated_prefs_top", "open_feedback", "examples"}  # not as facts
Order = Literal["ab", "ba"]

# ---- what is known of the users ----


@dataclass(frozen=True)
class UserContext:
    """What a prepared data set knows of a user and of one conversation; empty if nothing is known."""

    text: str = ""  # u^t, the user's text
    preference: str = ""  # what the user wants, in words
    material: dict[str, Any] = field(default_factory=dict)  # from the survey and the conversation (prep prism)


UNKNOWN = UserContext()


class UserContexts:
    """What a prepared data set knows of its users; without a data set, nothing is known of anybody."""

    def __init__(self, dataset: Path | None) -> None:
        self._dataset = dataset
        data = read_prepared(dataset) if dataset is not None else Prepared([], [], [], {})
        self._users = {user.id: UserContext(user.text, user.preference) for user in data.users}
        self._material = {(prompt_id(row["prompt"]), row["user_id"]): row.get("material", {}) for row in data.judging}

    @property
    def protocol(self) -> str:
        """The protocol that uses most of what is known."""
        if self._material:
            return "role-play"
        return "profile" if any(user.preference or user.text for user in self._users.values()) else "plain"

    def of(self, prompt: str, user: str) -> UserContext:
        """What is known of `user` for the prompt with the id `prompt`. Raises PrlhfError for an unknown user."""
        if user == GENERIC or self._dataset is None:
            return UNKNOWN
        if user not in self._users:
            hint = "give --dataset the data set that the users are from"
            raise PrlhfError(f"{self._dataset} has no user '{user}'", hint)
        known = self._users[user]
        return UserContext(known.text, known.preference, self._material.get((prompt, user), {}))


# ---- protocols ----


def load_template(protocol: str, file: Path | None) -> Template:
    """The prompt of a protocol, or of `file` in its place. It has the blocks `system` and `user`.

    Raises PrlhfError if `file` cannot be used.
    """
    if file is None:
        return _packaged(protocol)
    try:
        template = ENVIRONMENT.from_string(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise PrlhfError(f"cannot use the prompt {file}: {one_line(error)}", "see docs/JUDGE.md") from error
    if missing := {"system", "user"} - set(template.blocks):
        hint = "write {% block system %} and {% block user %}"
        raise PrlhfError(f"the prompt {file} has no block '{min(missing)}'", hint)
    return template


@cache
def _packaged(name: str) -> Template:
    """A prompt of this package."""
    return ENVIRONMENT.from_string((PROMPTS / f"{name}.jinja").read_text(encoding="utf-8"))


# ---- questions ----


@dataclass(frozen=True)
class Question:
    """The messages of one call, and what its codes mean."""

    messages: list[Message]
    order: Order  # ab: A's response stands first
    labels: dict[str, Side]  # code -> verdict


def question(template: Template, pair: Pair, user: UserContext, order: Order, seed: int) -> Question:
    """The messages that show `pair` in `order` to a judge that speaks for `user`."""
    texts = [pair.a.response, pair.b.response] if order == "ab" else [pair.b.response, pair.a.response]
    known = [user.text, user.preference, user.material]
    fence, (first, second, tie) = _codes([seed, order, pair.prompt, texts, known])

    def fenced(name: str, content: object) -> str:
        text = str(content).strip()
        return f"[{fence} {name}]\n{text}\n[{fence} end]" if text else ""

    material = user.material
    context = {
        "rules": _packaged("_rules").render(fence=fence, first=first, second=second, tie=tie).strip(),
        "question": f"Which response do you choose, {first} or {second}, or {tie} for a tie?",
        "request": fenced("request", conversation(pair.prompt)),
        "first": fenced(f"response {first}", texts[0]) or f"(response {first} is empty)",
        "second": fenced(f"response {second}", texts[1]) or f"(response {second} is empty)",
        "text": fenced("about the user", user.text),
        "preference": fenced("wish", user.preference),
        "facts": fenced("facts", _facts(material)),
        "self_description": fenced("self-description", material.get("self_description", "")),
        "system_string": fenced("instruction", material.get("system_string", "")),
        "stated_prefs": fenced("preferences", "\n".join(map(str, material.get("stated_prefs_top", [])))),
        "open_feedback": fenced("feedback", material.get("open_feedback", "")),
        "examples": [fenced("earlier choice", _example(example)) for example in material.get("examples", [])],
    }
    messages = [{"role": role, "content": _block(template, role, context)} for role in ("system", "user")]
    verdicts: tuple[Side, Side] = ("A", "B") if order == "ab" else ("B", "A")
    return Question(messages, order, {first: verdicts[0], second: verdicts[1], tie: "tie"})


def reminded(question: Question, attempt: int) -> list[Message]:
    """The messages of `attempt`, from 0; from 1 on they end with a reminder of the form of an answer."""
    if not attempt:
        return question.messages
    codes = ", ".join(f'{{"verdict": "{label}"}}' for label in question.labels)
    reminder = f"\n\n(Asked again, {attempt} of 2: answer with one of these lines and nothing else: {codes})"
    *before, last = question.messages
    return [*before, {**last, "content": last["content"] + reminder}]


def answer_format(labels: Mapping[str, Side]) -> dict[str, Any]:
    """`response_format` for servers with structured output."""
    properties = {"reason": {"type": "string"}, "verdict": {"type": "string", "enum": list(labels)}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _codes(content: list[Any]) -> tuple[str, list[str]]:
    """A fence and three labels that occur nowhere in `content`."""
    inside = json.dumps(content, sort_keys=True, ensure_ascii=False)
    for draw in count():
        digest = hashlib.sha256(f"{draw} {inside}".encode()).digest()
        fence, labels = digest[:8].hex(), list(dict.fromkeys(_labels(digest[8:])))[:3]
        if len(labels) == 3 and not any(code.lower() in inside.lower() for code in (fence, *labels)):
            return fence, labels
    raise AssertionError("unreachable")


def _labels(digest: bytes) -> Iterator[str]:
    for letter, digit, more in zip(digest[::3], digest[1::3], digest[2::3], strict=True):
        yield LETTERS[letter % len(LETTERS)] + DIGITS[digit % len(DIGITS)] + LETTERS[more % len(LETTERS)]


def _block(template: Template, name: str, context: dict[str, Any]) -> str:
    try:
        text = "".join(template.blocks[name](template.new_context(context)))
    except TemplateError as error:
        raise PrlhfError(f"the prompt cannot be filled in: {one_line(error)}", "see docs/JUDGE.md") from error
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _facts(material: Mapping[str, Any]) -> str:
    """Demographics, as `name: answer in words`; numbers, which are ratings, are left out."""
    facts = {
        key: value for key, value in material.items() if key not in SHOWN_APART and isinstance(value, str) and value
    }
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items())


def _example(example: Mapping[str, Any]) -> str:
    rejected = "\n".join(f"you did not choose: {text}" for text in example["rejected"])
    return f"you wrote: {example['prompt']}\nyou chose: {example['chosen']}\n{rejected}"
