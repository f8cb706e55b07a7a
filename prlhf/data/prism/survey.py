"""PRISM's participants: the text about each of them, and what a judge may know about them, from the survey.

Every answer of the survey except `user_id` may be missing, null or "Prefer not to say", and is then omitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import jinja2

from prlhf.data.identifiers import user_identifier
from prlhf.source.values import Malformed, any_text, column, kind, mapping

UNSAID = {"", "prefer not to say", "empty string"}  # the last is PRISM's mark for an empty text
TOP = 3  # stated preferences in the text (the paper's number)

# Our key -> (label in the text, columns of the answer: `outer.inner` if nested; the first one answered is used).
DEMOGRAPHICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "age": ("Age", ("age",)),
    "gender": ("Gender", ("gender",)),
    "education": ("Education", ("education",)),
    "employment_status": ("Employment", ("employment_status",)),
    "marital_status": ("Marital status", ("marital_status",)),
    "english_proficiency": ("English", ("english_proficiency",)),
    "ethnicity": ("Ethnicity", ("ethnicity.simplified", "ethnicity.categorised", "ethnicity.self_described")),
    "religion": ("Religion", ("religion.simplified", "religion.categorised", "religion.self_described")),
    "birth_country": ("Country of birth", ("location.birth_country",)),
    "reside_country": ("Country of residence", ("location.reside_country",)),
    "lm_familiarity": ("Familiarity with language models", ("lm_familiarity",)),
}
NESTED = ("ethnicity", "religion", "location")

# PRISM's attributes of a response, in its order, which is also the order of equal ratings.
ATTRIBUTES = {
    "values": "reflects their values and culture",
    "creativity": "is creative and inspiring",
    "fluency": "is fluent and well written",
    "factuality": "is factual and informative",
    "diversity": "presents several viewpoints",
    "safety": "is safe and does no harm",
    "personalisation": "is personal and learns from the conversation",
    "helpfulness": "is helpful and to the point",
    "other": "",  # named by the participant, in `other_text`
}


@dataclass(frozen=True)
class Participant:
    """One row of the survey. A text that was not given is ""."""

    id: str
    self_description: str
    system_string: str  # how the participant would instruct an assistant; for judges only
    demographics: dict[str, str] = field(default_factory=dict)  # key of DEMOGRAPHICS -> answer, if answered
    stated_prefs_top: list[str] = field(default_factory=list)  # names of ATTRIBUTES, `other` in the participant's words

    @property
    def text(self) -> str:
        """u^t: lines with self-description, demographics and top stated preferences; "" if nothing is known."""
        prefs = [f"{name} ({ATTRIBUTES[name]})" if ATTRIBUTES.get(name) else name for name in self.stated_prefs_top]
        facts = {DEMOGRAPHICS[key][0]: answer for key, answer in self.demographics.items()}
        rendered = _template().render(self_description=self.self_description, facts=facts, stated_prefs_top=prefs)
        return rendered.strip()

    @property
    def material(self) -> dict[str, Any]:
        """The part of the survey for a judge who plays the role of the participant."""
        return {
            **self.demographics,
            "self_description": self.self_description,
            "system_string": self.system_string,
            "stated_prefs_top": self.stated_prefs_top,
        }


def read_participant(value: Any, prefs: Literal["ratings", "order"]) -> Participant:
    """Read and check a row of the survey. `prefs`: see `top_ratings` and `first_shown`.

    Raises:
        Malformed: a value is of another type, or there is no `user_id`.
    """
    row = mapping(value)
    for name in (*NESTED, "stated_prefs", "order_stated_prefs"):
        if row.get(name) is not None:
            mapping(row[name], f"'{name}'")
    answers = {key: _first_said(row, paths) for key, (_, paths) in DEMOGRAPHICS.items()}
    top = top_ratings if prefs == "ratings" else first_shown
    return Participant(
        id=user_identifier(column(row, "user_id"), "user_id"),
        self_description=said(row.get("self_description"), "self_description"),
        system_string=said(row.get("system_string"), "system_string"),
        demographics={key: answer for key, answer in answers.items() if answer},
        stated_prefs_top=_named(top(row), row),
    )


def top_ratings(row: Mapping[str, Any]) -> list[str]:
    """Return the three attributes with the highest ratings, highest first; equal ratings in the order of ATTRIBUTES."""
    stated = row.get("stated_prefs") or {}
    ratings = {name: slider_value(stated.get(name), f"stated_prefs.{name}") for name in ATTRIBUTES}
    if not said(stated.get("other_text"), "stated_prefs.other_text"):
        del ratings["other"]  # a rating of an attribute without a name
    rated = {name: rating for name, rating in ratings.items() if rating is not None}
    return sorted(rated, key=lambda name: -rated[name])[:TOP]


def first_shown(row: Mapping[str, Any]) -> list[str]:
    """Return the "top three" of the paper's released code: the attributes whose sliders were shown first.

    That order is not one of preference (PRISM's codebook); it is for replicating the results of that code.
    """
    shown = row.get("order_stated_prefs") or {}
    places = {name: slider_value(shown.get(name), f"order_stated_prefs.{name}") for name in ATTRIBUTES}
    return [name for name, place in places.items() if place in (1, 2, 3)]


def said(value: Any, name: str) -> str:
    """Return a text answer on one line; "" if there is none.

    Raises:
        Malformed: it is not text.
    """
    if _null(value):
        return ""
    answer = " ".join(any_text(value, name).split())
    return "" if answer.lower() in UNSAID else answer


def slider_value(value: Any, name: str) -> float | None:
    """Return the number of a slider; None if it was not moved.

    Raises:
        Malformed: it is not a number.
    """
    if _null(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"'{name}' is {kind(value)}, not a number")
    return value


def slider_values(value: Any, name: str) -> dict[str, float]:
    """Return the numbers of the sliders that were moved, by name.

    Raises:
        Malformed: `value` is not a mapping of numbers.
    """
    sliders = {} if value is None else mapping(value, f"'{name}'")
    found = {
        any_text(key, f"a key of {name}"): slider_value(slider, f"{name}.{key}") for key, slider in sliders.items()
    }
    return {key: slider for key, slider in found.items() if slider is not None}


def _null(value: Any) -> bool:
    """Whether a value is null; pandas, which wrote PRISM's files, has NaN for null."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _first_said(row: Mapping[str, Any], paths: tuple[str, ...]) -> str:
    for path in paths:
        outer, _, inner = path.partition(".")
        value = row.get(outer)
        if answer := said((value or {}).get(inner) if inner else value, path):
            return answer
    return ""


def _named(attributes: list[str], row: Mapping[str, Any]) -> list[str]:
    """The attributes, with `other` replaced by the text of the participant."""
    other = said((row.get("stated_prefs") or {}).get("other_text"), "stated_prefs.other_text")
    return [(other or name) if name == "other" else name for name in attributes]


@cache
def _template() -> jinja2.Template:
    source = resources.files("prlhf.data").joinpath("prism/user.txt.jinja").read_text(encoding="utf-8")
    template: jinja2.Template = jinja2.Template(
        source, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return template
