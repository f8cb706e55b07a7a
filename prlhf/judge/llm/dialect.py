"""The dialect of a server: which parameters of a request it accepts, and under which names.

OpenAI-compatible servers know different parameters, and refuse the others with statuses and words of their own. A
`Dialect` translates our request into one that the server accepts; `after` learns from a refusal, and `guesses` lists
what to try if the refusal names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prlhf.errors import PrlhfError, nearest
from prlhf.judge.llm.replies import Fault

Body = dict[str, Any]
LEAVE_OUT = ("response_format", "json_schema", "temperature", "seed", "max_completion_tokens", "max_tokens", "system")
OURS = (
    "model",
    "messages",
    "stream",
    "n",
    "response_format",
    "temperature",
    "seed",
    "max_completion_tokens",
    "max_tokens",
)

REFUSALS = (400, 404, 405, 406, 415, 422, 500, 501)  # statuses for which another form of the request may help
NAMED = {
    "limit": r"max_(?:completion|new|output)?_?tokens",
    "form": r"response_?format|json.?(?:schema|object|mode)|structured.?output|guided|grammar|\bschemas?\b",
    "temperature": r"temperature",
    "seed": r"\b(?:random_)?seed\b",
    "system": r"system.{0,3}(?:role|message|prompt|instruction)|role.{0,40}system|roles? must alternate",
}
VALUE = r"too large|at most|less than|greater than|maximum|exceed|<=|at least|out of range"  # refuses a value
CONTEXT = (
    r"context.{0,10}(?:length|window|size)|prompt is too long|reduce the length|input.{0,20}too long|max_model_len"
)
MODEL = (
    r"model.{0,80}(?:not.?found|(?:does )?not exist|unknown|not available|unavailable)|"
    r"(?:invalid|unknown|no such).{0,10}model|model_not_found|DeploymentNotFound"
)
PARAMETERS = (
    r"parameter|argument|field|property|extra|endpoints? found|not (?:supported|implemented|permitted)|unsupported"
)


@dataclass(frozen=True)
class Dialect:
    """What a server accepts; an empty text means not at all."""

    limit: Literal["max_completion_tokens", "max_tokens", ""] = "max_completion_tokens"
    form: Literal["json_schema", "json_object", ""] = "json_schema"
    temperature: bool = True
    seed: bool = True
    system: bool = True

    def speak(self, body: Mapping[str, Any]) -> Body:
        """`body` in this dialect. It may be in a dialect already, and only loses more."""
        spoken = dict(body)
        if "max_completion_tokens" in spoken and self.limit != "max_completion_tokens":
            spoken["max_tokens"] = spoken.pop("max_completion_tokens")
        if not self.limit:
            spoken.pop("max_tokens", None)
        if "response_format" in spoken and self.form == "json_object":
            spoken["response_format"] = {"type": "json_object"}
        left_out = {"response_format": not self.form, "temperature": not self.temperature, "seed": not self.seed}
        spoken = {key: value for key, value in spoken.items() if not left_out.get(key)}
        if not self.system and len(spoken.get("messages", [])) > 1:
            first, second, *more = spoken["messages"]
            if first["role"] == "system":
                spoken["messages"] = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *more]
        return spoken

    def without(self, names: Collection[str]) -> Dialect:
        """This dialect without the parts `names`, which are from LEAVE_OUT."""
        limit = "" if "max_tokens" in names else "max_tokens" if "max_completion_tokens" in names else self.limit
        form = "" if "response_format" in names else "json_object" if "json_schema" in names else self.form
        return Dialect(
            limit=limit,
            form=form,
            temperature=self.temperature and "temperature" not in names,
            seed=self.seed and "seed" not in names,
            system=self.system and "system" not in names,
        )

    def after(self, fault: Fault) -> Dialect | None:
        """The dialect without what the refusal `fault` names; None if it names nothing."""
        if fault.kind != "status" or fault.status not in REFUSALS or _has(CONTEXT, fault):
            return None
        named = [part for part, words in NAMED.items() if _has(words, fault)]
        if "limit" in named and _has(VALUE, fault):
            named.remove("limit")
        dialect = self
        for part in named:
            dialect = dialect._poorer(part)
        return None if dialect == self else dialect

    def guesses(self, fault: Fault) -> list[Dialect]:
        """The dialects to try, in this order, after a refusal that names nothing.

        Each leaves out one part; the last ones leave out everything possible. Empty if the form of the request is not
        the problem.
        """
        other = _has(CONTEXT, fault) or _has(MODEL, fault)
        page = fault.status == 404 and not _has(PARAMETERS, fault)
        if fault.kind != "status" or fault.status not in REFUSALS or other or page:
            return []
        single = [self._poorer("form"), replace(self, form=""), *(self._poorer(part) for part in list(NAMED)[:1])]
        single += [self._poorer(part) for part in ("temperature", "seed", "system")]
        least = Dialect("max_tokens", "", temperature=False, seed=False, system=self.system)
        return [one for one in dict.fromkeys([*single, least, replace(least, system=False)]) if one != self]

    def _poorer(self, part: str) -> Dialect:
        """This dialect with one step less of `part`."""
        if part == "limit":
            return replace(self, limit="max_tokens" if self.limit == "max_completion_tokens" else "")
        if part == "form":
            return replace(self, form="json_object" if self.form == "json_schema" else "")
        return replace(self, **{part: False})  # type: ignore[arg-type]

    def describe(self) -> str:
        """What this dialect leaves out, in words for a note."""
        parts = {
            "max_completion_tokens (max_tokens is sent in its place)": self.limit == "max_tokens",
            "max_completion_tokens and max_tokens (answers have no limit)": not self.limit,
            "a JSON schema (json_object is sent in its place)": self.form == "json_object",
            "response_format": not self.form,
            "temperature": not self.temperature,
            "seed": not self.seed,
            "system messages (the user's begins with it)": not self.system,
        }
        return ", ".join(words for words, lacking in parts.items() if lacking)


def named_parts(leave_out: str) -> list[str]:
    """The names in `leave_out`, which commas separate. Raises PrlhfError for an unknown one."""
    names = [name.strip() for name in leave_out.split(",") if name.strip()]
    for name in names:
        if name not in LEAVE_OUT:
            raise PrlhfError(f"leave_out names '{name}', which no request has", nearest(name, LEAVE_OUT))
    return names


def unknown_model(fault: Fault) -> bool:
    """Whether the server refused the name of the model."""
    return fault.kind == "status" and fault.status in (400, 404, 422) and (_has(MODEL, fault) or fault.status == 404)


def _has(words: str, fault: Fault) -> bool:
    return re.search(words, f"{fault.code} {fault.text}", re.IGNORECASE | re.DOTALL) is not None
