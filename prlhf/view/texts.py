"""Token ids as text, all of them or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prlhf.model.prefix_tree import SLOT

LONGEST = 8  # tokens of one character at most; a token that never gives one is shown as it is
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for a part of a character


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included; vectors of a user have none."""
    return str(tokenizer.decode([id_ for id_ in ids if id_ != SLOT], clean_up_tokenization_spaces=False))


def decoded_one_by_one(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, as it stands after the token before it: some tokenizers drop a text's first space.

    A character of several tokens is the text of its last one; the others have none.
    """
    found: list[str] = []
    before: list[int] = []
    begun: list[int] = []
    for id_ in ids:
        begun.append(id_)
        text = decoded(tokenizer, [*before, *begun])[len(decoded(tokenizer, before)) :]
        unfinished = text.endswith(PARTIAL) and len(begun) < LONGEST
        found.append("" if unfinished else text)
        if not unfinished:
            before, begun = begun, []
    return found
