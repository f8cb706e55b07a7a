"""From a pair to the exact messages that a language model is asked, and back from its answer to a verdict.

Everything that somebody else wrote (request, responses, what is known of the user) is data: it stands between lines
that carry a code drawn for this question, and the three possible verdicts are codes drawn for it as well. Who wrote a
response could know neither, so no text can close its fence or spell a verdict, and an answer that repeats a response
decides nothing. The codes are a hash of the seed and of all that is inside: the same question is the same request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prlhf.dataset import Text
from prlhf.errors import PrlhfError, one_line
from prlhf.judge.pairs import Pair
from prlhf.judge.subjects import Subject
from prlhf.judge.thoughts import answer_in, tails

PROTOCOLS = ("role-play", "profile", "plain")
LETTERS, DIGITS = "BCDFGHJKLMNPQRSTVWXZ", "23456789"  # no vowels, no 0 or 1: no words, nothing to mistake
ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
Order = Literal["ab", "ba"]
Side = Literal["A", "B", "tie"]
Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One call's messages; `labels` says what each code that may be answered means."""

    messages: list[Message]
    order: Order  # ab: A's response stands first
    labels: dict[str, Side]


def question(template: Template, pair: Pair, subject: Subject, order: Order, seed: int) -> Question:
    """The messages that show `pair` in `order` to a judge who speaks for `subject`."""
    texts = [pair.a.response, pair.b.response] if order == "ab" else [pair.b.response, pair.a.response]
    known = [subject.text, subject.preference, subject.material]
    fence, (first, second, tie) = _codes([seed, order, pair.prompt, texts, known])

    def fenced(name: str, content: object) -> str:
        text = str(content).strip()
        return f"[{fence} {name}]\n{text}\n[{fence} end]" if text else ""

    material = subject.material
    context = {
        "rules": _packed("rules").render(fence=fence, first=first, second=second, tie=tie).strip(),
        "question": f"Which response do you choose, {first} or {second}, or {tie} for a tie?",
        "request": fenced("request", conversation(pair.prompt)),
        "first": fenced(f"response {first}", texts[0]) or f"(response {first} is empty)",
        "second": fenced(f"response {second}", texts[1]) or f"(response {second} is empty)",
        "text": fenced("about the user", subject.text),
        "preference": fenced("wish", subject.preference),
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
    """The messages of `attempt` (from 0): later ones add that the answer before had no verdict in it."""
    if not attempt:
        return question.messages
    codes = ", ".join(f'{{"verdict": "{label}"}}' for label in question.labels)
    reminder = f"\n\n(Asked again, {attempt} of 2: answer with one of these lines and nothing else: {codes})"
    *before, last = question.messages
    return [*before, {**last, "content": last["content"] + reminder}]


def verdict_in(answer: str | None, labels: Mapping[str, Side], cut: bool = False) -> Side | None:
    """The verdict of an answer, or None: a JSON object with `verdict`, a last line that says it, or the bare code.

    Thoughts that stand before the answer are no part of it. Of an answer that was `cut` off the last line is not what
    its author meant to end with: only a whole object or a bare code counts there.
    """
    for tail in tails(answer or ""):  # a reason may quote the mark of thoughts: a whole object comes first
        if (said := _stated(_unfenced(tail))) in labels:
            return labels[str(said)]
    text = _unfenced(answer_in(answer or "") or "")
    if text.strip("\"'.*` ") in labels:
        return labels[text.strip("\"'.*` ")]
    if (said := _stated(text)) is not None:
        return labels.get(said)
    if cut:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [re.fullmatch(r"\W*verdict\W+(\w+)\W*", line, re.IGNORECASE) for line in lines]
    if not found or found[-1] is None or sum(match is not None for match in found) > 1:
        return None
    return labels.get(found[-1].group(1))


def _unfenced(text: str) -> str:
    """The content of a code block, where the text is one."""
    text = text.strip()
    block = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL) if text.endswith("```") else None
    return (block.group(1) if block else text).strip()


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


def load_template(protocol: str, file: Path | None) -> Template:
    """The prompt of a protocol, or of `file` in its place. It has the blocks `system` and `user`."""
    if file is None:
        return _packed(protocol)
    try:
        template = ENVIRONMENT.from_string(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise PrlhfError(f"cannot use the prompt {file}: {one_line(error)}", "see docs/JUDGE.md") from error
    if missing := {"system", "user"} - set(template.blocks):
        hint = "write {% block system %} and {% block user %}"
        raise PrlhfError(f"the prompt {file} has no block '{min(missing)}'", hint)
    return template


@cache
def _packed(name: str) -> Template:
    """A prompt that comes with the package."""
    source = resources.files("prlhf.judge").joinpath("prompts", f"{name}.jinja").read_text(encoding="utf-8")
    return ENVIRONMENT.from_string(source)


def conversation(text: Text) -> str:
    """A prompt as a judge reads it."""
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


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


OWN_PLACE = {"self_description", "system_string", "stated_prefs_top", "open_feedback", "examples"}


def _facts(material: Mapping[str, Any]) -> str:
    """Demographics: answers in words under their names. Ratings by number are left to the calibration."""
    facts = {key: value for key, value in material.items() if key not in OWN_PLACE and isinstance(value, str) and value}
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items())


def _example(example: Mapping[str, Any]) -> str:
    rejected = "\n".join(f"you did not choose: {text}" for text in example["rejected"])
    return f"you wrote: {example['prompt']}\nyou chose: {example['chosen']}\n{rejected}"


def _stated(text: str) -> str | None:
    """The `verdict` of a text that is one JSON object; "" where there is none in it; None where it is no object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else {}  # a key said twice says nothing

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return str(value.get("verdict", "")) if isinstance(value, dict) else None
