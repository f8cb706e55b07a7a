"""The page of `prlhf data show --html`: users, their agreement, and rows in tokens, without other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.html import write_page

GENERATOR = "prlhf data show"  # named in the page, which is how a page of ours is recognized
USERS = 200  # the most rows of the table of users


def write_data_page(path: Path, found: Mapping[str, Any]) -> None:
    """Write what `view` found, with tokens, as one page. Raises PrlhfError if it cannot be written."""
    users = [user["user_id"] for user in found["users"]]
    same = {tuple(sorted(one["users"])): one for one in found["agreement"]["between"]}
    named = {user for pair in same for user in pair}
    write_page(
        path,
        "prlhf.view",
        "page.html.jinja",
        generator=GENERATOR,
        found=found,
        shown_users=USERS,
        matrix_of=[user for user in users if user in named],
        between=lambda a, b: same.get(tuple(sorted([a, b]))),
        share=lambda value: f"{100 * value:.0f} %",
    )
