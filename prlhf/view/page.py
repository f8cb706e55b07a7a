"""The page of `prlhf data show --html`: users, their agreement, and rows in tokens, without other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.folders import claim_file
from prlhf.html import write_page

GENERATOR = "prlhf data show"  # named in the page, which is how a page of ours is recognized
USERS = 200  # the most rows of the table of users


def claim_page(path: Path) -> None:
    """Check that the page may be written. Raises PrlhfError if there is a file that is not such a page."""
    claim_file(path, "choose another --html")
    if os.path.lexists(path) and f'content="{GENERATOR}"' not in path.read_text("utf-8", errors="replace")[:500]:
        raise PrlhfError(f"{path} exists and is not a page of {GENERATOR}", "choose another --html")


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
