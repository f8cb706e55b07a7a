"""The made-up forum behind the `demo` data set: posts, summaries, and the checker that judges them.

A *fact* is (subject, verb, object), said as `my sister sold boats`. A post states four to six facts
between filler words; a summary states one to four of them, in the post's order and without filler.
Because the grammar is known, whether a response is well-formed and true to its post is decided exactly,
without a model. Nothing here knows about tensors, users or preferences.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

SUBJECTS = tuple(
    ["sister", "brother", "boss", "neighbor", "roommate", "uncle", "aunt", "cousin", "teacher", "coach", "landlord", "dentist", "doctor", "manager", "partner", "friend", "nephew", "niece", "mother", "father", "grandma", "grandpa", "barber", "plumber", "lawyer", "waiter", "tenant", "editor", "captain", "tutor", "banker", "baker", "nurse", "pilot", "singer", "farmer", "driver", "tailor", "florist", "mechanic"]
)
VERBS = tuple(
    ["sold", "lost", "broke", "fixed", "painted", "stole", "found", "burned", "moved", "washed", "hid", "borrowed", "returned", "dropped", "ruined", "bought", "ordered", "repaired", "cleaned", "opened", "closed", "locked", "shipped", "wrapped", "traded", "rented", "buried", "polished", "photographed", "measured", "ignored", "praised", "mailed", "copied", "tested", "labeled", "guarded", "counted", "shared", "donated"]
)
OBJECTS = tuple(
    ["boats", "cars", "bikes", "lamps", "sofas", "tables", "guitars", "pianos", "phones", "laptops", "cameras", "watches", "rings", "necklaces", "jackets", "coats", "hats", "boots", "tents", "kayaks", "ladders", "drills", "hammers", "shovels", "mowers", "fences", "gates", "doors", "windows", "mirrors", "carpets", "curtains", "ovens", "kettles", "blenders", "toasters", "fridges", "freezers", "printers", "scanners", "radios", "drones", "telescopes", "violins", "trumpets", "drums", "puzzles", "paintings", "statues", "vases", "clocks", "calendars", "notebooks", "letters", "packages", "tickets", "passports", "wallets", "suitcases", "umbrellas"]
)
SUBREDDITS = ("relationships", "advice", "family", "work", "roommates", "neighbors", "tifu", "legal")
TITLES = (
    "what would you do?",
    "am i wrong here?",
    "need some advice.",
    "how do i handle this?",
    "a strange week.",
    "is this normal?",
    "i do not know what to think.",
    "please help me decide.",
)
OPENERS = (
    "",
    "",
    "yesterday ",
    "last week ",
    "so ",
    "honestly ",
    "then ",
    "this morning ",
    "for some reason ",
    "on monday ",
)
TAILS = (
    "",
    "",
    "",
    " again",
    " without asking",
    " for no reason",
    " at night",
    " and laughed",
    " twice",
    " in a hurry",
)
FILLERS = (
    "i do not know what to say.",
    "nobody warned me.",
    "sorry for the long post.",
    "it has been a hard month.",
    "we used to get along.",
    "thanks for reading.",
)
MIN_FACTS, MAX_FACTS = 1, 4

Fact = tuple[str, str, str]

_CLAUSE = re.compile(r"my (\w+) (\w+) (\w+)")
_SUMMARY = re.compile(rf" ?my \w+ \w+ \w+\.(?: my \w+ \w+ \w+\.){{0,{MAX_FACTS - 1}}}")


@dataclass(frozen=True)
class Post:
    """A forum post as a prompt (`TL;DR` layout of the paper's section 5.1) and the facts it states, in order."""

    prompt: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one response."""

    well_formed: bool  # one to four distinct facts, nothing else, ended by the model itself
    faithful: bool  # well-formed, and every fact stands in the post
    facts: int  # facts stated, 0 where the response is not well-formed


def clause(fact: Fact) -> str:
    subject, verb, obj = fact
    return f"my {subject} {verb} {obj}"


def write_post(rng: random.Random) -> Post:
    """One post of four to six facts; no subject, verb or object comes twice."""
    count = rng.randint(4, 6)
    facts = tuple(zip(rng.sample(SUBJECTS, count), rng.sample(VERBS, count), rng.sample(OBJECTS, count), strict=True))
    sentences = [f"{rng.choice(OPENERS)}{clause(fact)}{rng.choice(TAILS)}." for fact in facts]
    sentences.insert(rng.randint(0, count), rng.choice(FILLERS))
    prompt = f"SUBREDDIT: r/{rng.choice(SUBREDDITS)}\nTITLE: {rng.choice(TITLES)}\nPOST: {' '.join(sentences)}\nTL;DR:"
    return Post(prompt, facts)


def write_summary(post: Post, rng: random.Random, count: int | None = None) -> str:
    """A well-formed, faithful summary of `count` facts (default: uniform on 1..4), with its leading space."""
    count = rng.randint(MIN_FACTS, MAX_FACTS) if count is None else count
    chosen = sorted(rng.sample(range(len(post.facts)), count))
    return "".join(f" {clause(post.facts[i])}." for i in chosen)


def check(prompt: str, response: str, finished: bool = True) -> Verdict:
    """Judge `response` to `prompt` exactly. `finished`: the model ended it, rather than a token limit."""
    facts = [tuple(match) for match in _CLAUSE.findall(response)]
    known = all(s in SUBJECTS and v in VERBS and o in OBJECTS for s, v, o in facts)
    well_formed = bool(
        finished and _SUMMARY.fullmatch(response.rstrip("\n")) and known and len(set(facts)) == len(facts)
    )
    stated = set(_CLAUSE.findall(prompt))
    return Verdict(well_formed, well_formed and set(facts) <= stated, len(facts) if well_formed else 0)
