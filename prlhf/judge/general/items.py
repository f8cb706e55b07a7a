r"""Texts and questions of multiple choice, in the layouts that tasks of lm-evaluation-harness have.

| row | context | choices, and which is right |
|---|---|---|
| ARC: `question`, `choices: {text, label}`, `answerKey` | `Question: …\nAnswer:` | `choices.text`; the key is a label |
| HellaSwag: `ctx` (or `ctx_a`, `ctx_b`), `endings`, `label` | `ACTIVITY: ctx` | `endings`; a number from 0 |
| any: `query`, `choices` (a list), `gold` | `query` | `choices`; a number from 0 |
| text: `text` or `page` | | |

HellaSwag's `activity_label` may be missing. A choice follows its context after a space, unless the context ends in one;
a row with `query` may say `target_delimiter` instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.source.formats import file_rows
from prlhf.source.values import Malformed, any_text, mapping, text

KNOWN = "give rows of ARC, HellaSwag, query and choices and gold, or text"
BRACKETS = re.compile(r"\[.*?\]")  # of WikiHow, in HellaSwag's texts


@dataclass(frozen=True)
class MultipleChoice:
    """A context and its choices, of which number `gold` is right."""

    name: str
    context: str
    choices: tuple[str, ...]
    gold: int
    delimiter: str = " "  # between the context and each choice


@dataclass(frozen=True)
class Document:
    """A text whose perplexity is measured."""

    name: str
    text: str


def read_general(path: Path) -> tuple[list[MultipleChoice], list[Document]]:
    """The questions and the texts of a file (JSONL, or another format of tables).

    Raises:
        PrlhfError: the file cannot be read or is empty, or a row has none of the layouts.
    """
    questions: list[MultipleChoice] = []
    documents: list[Document] = []
    for raw in file_rows([path]).rows:
        try:
            if raw.problem:
                raise Malformed(raw.problem)
            item = item_of(mapping(raw.value), raw.location)
        except Malformed as error:
            raise PrlhfError(f"{raw.location}: {error}", error.hint) from error
        if isinstance(item, MultipleChoice):
            questions.append(item)
        else:
            documents.append(item)
    if not questions and not documents:
        raise PrlhfError(f"{path} has no rows", KNOWN)
    return questions, documents


def item_of(row: Mapping[str, Any], name: str) -> MultipleChoice | Document:
    """A row as a question or a text; `name` is what messages call it. Raises Malformed."""
    if "answerKey" in row:
        choices = mapping(row.get("choices"), "'choices'")
        labels = [str(label) for label in listed(choices.get("label"), "choices.label")]
        key = str(row["answerKey"])
        gold = labels.index(key) if key in labels else key
        return choices_of(
            name, f"Question: {text(row.get('question'), 'question')}\nAnswer:", choices.get("text"), gold
        )
    if "endings" in row:
        activity, context = row.get("activity_label"), hellaswag_context(row)
        endings = [cleaned(text(one, "endings")) for one in listed(row["endings"], "endings")]
        return choices_of(name, cleaned(f"{activity}: {context}" if activity else context), endings, row.get("label"))
    if "choices" in row:
        return choices_of(
            name, any_text(row.get("query"), "query"), row["choices"], row.get("gold"), row.get("target_delimiter")
        )
    for column in ("text", "page"):
        if column in row:
            return Document(name, text(row[column], column))
    raise Malformed(f"it has the columns {', '.join(map(str, row)) or 'of nothing'}", KNOWN)


def hellaswag_context(row: Mapping[str, Any]) -> str:
    """The context of a row of HellaSwag; of its two parts, the second begins with a capital. Raises Malformed."""
    if "ctx_a" in row and "ctx_b" in row:
        return f"{any_text(row['ctx_a'], 'ctx_a')} {any_text(row['ctx_b'], 'ctx_b').capitalize()}"
    return text(row.get("ctx"), "ctx")


def choices_of(name: str, context: str, choices: Any, gold: Any, delimiter: Any = None) -> MultipleChoice:
    """A question with checked values; `gold` may be a number as text. Raises Malformed."""
    found = tuple(text(one, "a choice") for one in listed(choices, "choices"))
    if len(found) < 2:
        raise Malformed(f"it has {len(found)} choices, and two are the least")
    number = int(gold) if isinstance(gold, str) and gold.isdigit() else gold
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(found):
        raise Malformed(f"the right choice is {gold!r}, and there are {len(found)}, from 0")
    if delimiter is None:
        delimiter = "" if context[-1:].isspace() else " "
    return MultipleChoice(name, context, found, number, any_text(delimiter, "target_delimiter"))


def listed(value: Any, name: str) -> list[Any]:
    """`value` as a list. Raises Malformed."""
    if not isinstance(value, list | tuple):
        raise Malformed(f"'{name}' is not a list")
    return list(value)


def cleaned(words: str) -> str:
    """A text of HellaSwag without marks of WikiHow, as lm-evaluation-harness reads it."""
    words = BRACKETS.sub("", words.strip().replace(" [title]", ". "))
    return words.replace("  ", " ")
