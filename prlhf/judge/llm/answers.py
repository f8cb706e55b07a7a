"""From the text of a model's answer to its verdict.

Servers without a reasoning parser return a reasoning model's thoughts within the text, between marks that each family
of models spells differently. Thoughts weigh one verdict against the other, so nothing in them counts as a verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

Side = Literal["A", "B", "tie"]

NAMES = r"(?:seed:|mm:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad)"
LEFT, RIGHT = r"(?:<\|?|\[|◁|⟨)", r"(?:\|?>|\]|▷|⟩)"
OPENING = re.compile(
    rf"{LEFT}(?:begin_of_|start_of_|begin_|start_)?{NAMES}(?:\s[^<>]{{0,60}})?{RIGHT}|<\|?channel\|?>\s*thought|<unused94>",
    re.IGNORECASE,
)
CLOSING = re.compile(rf"{LEFT}(?:/|end_of_|end_){NAMES}{RIGHT}|<channel\|>|<unused95>", re.IGNORECASE)
CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|).)*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)", re.DOTALL
)
WITHOUT_MARKS = (  # the server dropped the special tokens, or the model was trained on plain words
    re.compile(r"\A\s*(?:assistant\s*)?analysis.*assistant\s*final(.*)\Z", re.DOTALL),
    re.compile(r"\A\s*Here is my thought process:.*Here is my response:(.*)\Z", re.DOTALL),
)
WRAPPED = re.compile(
    r"\A\s*<\|?(?:begin_of_)?(answer|final|final_answer|response|output|solution)\|?>(.*?)"
    r"(?:<\|?(?:/|end_of_)\1\|?>)?\Z",
    re.DOTALL | re.IGNORECASE,
)
END = re.compile(r"(?:<\|(?:im_end|eot_id|end|return|endoftext|end_of_text)\|>|</s>|<end_of_turn>)\Z")
MAX_MARKS = 20  # closing marks that are tried; a text has one or two


def verdict_in(answer: str | None, labels: Mapping[str, Side], cut: bool = False) -> Side | None:
    """The verdict of an answer, or None.

    It is a JSON object with `verdict`, a last line `Verdict: CODE`, or the code alone, after the thoughts if any.

    Args:
        answer: the text of the answer.
        labels: the codes, and the verdict that each stands for.
        cut: whether the answer was cut off. Its last line is then not the intended end, and does not count.
    """
    for tail in tails(answer or ""):  # a reason may quote a mark of thoughts, so a whole object comes first
        if (stated := _stated(_unfenced(tail))) in labels:
            return labels[str(stated)]
    text = _unfenced(answer_in(answer or "") or "")
    if text.strip("\"'.*` ") in labels:
        return labels[text.strip("\"'.*` ")]
    if (stated := _stated(text)) is not None:
        return labels.get(stated)
    return None if cut else _last_line(text, labels)


def _last_line(text: str, labels: Mapping[str, Side]) -> Side | None:
    """The verdict of the last line, if it is the only line that states one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [re.fullmatch(r"\W*verdict\W+(\w+)\W*", line, re.IGNORECASE) for line in lines]
    if not found or found[-1] is None or sum(match is not None for match in found) > 1:
        return None
    return labels.get(found[-1].group(1))


def answer_in(text: str) -> str | None:
    """What follows the thoughts in `text`; None if the thoughts do not end, as in an answer that was cut off."""
    if "<|channel|>" in text:
        finals = [content for channel, content in CHANNEL.findall(text) if channel == "final"]
        return _bare(finals[-1]) if finals else None
    for form in WITHOUT_MARKS:
        if found := form.match(text):
            return _bare(found[1])
    closed = list(CLOSING.finditer(text))
    rest = text[closed[-1].end() :] if closed else text
    return None if OPENING.search(rest) else _bare(rest)


def tails(text: str) -> list[str]:
    """`text`, and what follows each mark that closes thoughts; a tail that is JSON as a whole is the answer."""
    starts = [found.end() for found in CLOSING.finditer(text)]
    return [_bare(text), *(_bare(text[start:]) for start in starts[:MAX_MARKS])]


def _bare(text: str) -> str:
    """`text` without end-of-text tokens, and without a pair of marks around the whole answer."""
    text = text.strip()  # no expression runs over blanks: an answer may consist of thousands of them
    while found := END.search(text):
        text = text[: found.start()].rstrip()
    wrapped = WRAPPED.match(text)
    return (wrapped[2] if wrapped else text).strip()


def _unfenced(text: str) -> str:
    """The content of a Markdown code block if `text` is one, else `text`."""
    text = text.strip()
    block = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL) if text.endswith("```") else None
    return (block.group(1) if block else text).strip()


def _stated(text: str) -> str | None:
    """The `verdict` of a text that is one JSON object ("" if it has none); None if it is not a JSON object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else {}  # an object that repeats a key states nothing

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return str(value.get("verdict", "")) if isinstance(value, dict) else None
