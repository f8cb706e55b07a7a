"""What the users of the samples go by, as functions of a response: words, letters a word, warm words; and repetitions.

These are the rules that made the choices in the samples: the raw files of psoups-strong follow them without exception,
if a text without letters from A to Z counts 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from prlhf.dataset import Text

WARM = ("!", "you", "happy", "great", "hope", "sure", "please", "sorry", "help")


def plain(text: Text) -> str:
    """A prompt or a response without its form: the last message of a conversation."""
    return text if isinstance(text, str) else text[-1]["content"]


def word_count(text: str) -> float:
    """Words, parted by blanks."""
    return float(len(text.split()))


def letters_per_word(text: str) -> float | None:
    """The mean length of the runs of letters from A to Z; None without any."""
    runs = re.findall(r"[A-Za-z]+", text)
    return sum(map(len, runs)) / len(runs) if runs else None


def warm_words_per_word(text: str) -> float | None:
    """Exclamation marks and warm words, also within words ("your" has one), per word; None without words."""
    count, lower = len(text.split()), text.lower()
    return sum(lower.count(warm) for warm in WARM) / count if count else None


def repeated(text: str, n: int = 4) -> float:
    """The share of n-grams of words that stood in the text before; 0 for a text of fewer words."""
    parts = text.lower().split()
    grams = [tuple(parts[at : at + n]) for at in range(len(parts) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


MEASURES: dict[str, Callable[[str], float | None]] = {
    "words": word_count,
    "letters": letters_per_word,
    "warm": warm_words_per_word,
    "repeated": repeated,
}
