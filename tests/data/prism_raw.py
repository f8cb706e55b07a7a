"""Raw PRISM rows, for tests to change, and arbitrary JSON values."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ALL_SEEN = {"unseen_fraction": 0, "eval_fraction": 0}

SURVEY = {
    "user_id": "ann",
    "self_description": "I like\nboats.",
    "system_string": "Be brief.",
    "age": "Prefer not to say",
    "gender": "Female",
    "education": None,
    "ethnicity": {"self_described": "prefer not to say", "categorised": "Prefer not to say", "simplified": "White"},
    "religion": {"self_described": "pastafarian", "categorised": None, "simplified": "Prefer not to say"},
    "location": {"birth_country": "Peru", "reside_country": float("nan"), "same_birth_reside_country": "No"},
    "stated_prefs": {"values": 20, "creativity": 80.5, "fluency": 80.5, "factuality": None, "safety": 90, "other": 95},
    "order_stated_prefs": {"values": 3, "creativity": 4, "fluency": 1, "factuality": 2, "safety": 5, "other": 6},
}

TEXTS = st.text(max_size=3) | st.just("\ud800")  # half a surrogate pair, which JSON can write and no file can store
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)


def turn(number: int, *responses: str, message: str | None = None, chosen: int | None = 0) -> list[dict[str, Any]]:
    """The messages of one turn; `responses[chosen]` is the chosen one."""
    asked = {"turn": number, "role": "user", "content": f"Q{number}" if message is None else message}
    answers = [
        {"turn": number, "role": "model", "content": r, "if_chosen": i == chosen, "within_turn_id": i}
        for i, r in enumerate(responses)
    ]
    return [asked, *answers]


def talk(name: str, user: str, *turns: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    history = [message for messages in (turns or (turn(0, "yes", "no"),)) for message in messages]
    row = {"conversation_id": name, "user_id": user, "conversation_history": history} | more
    return {key: value for key, value in row.items() if value is not ...}
