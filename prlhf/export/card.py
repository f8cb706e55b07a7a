"""The README.md of an export."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from prlhf.model.checkpoint import Policy
from prlhf.train.final_model import is_public, public_name


def write_card(
    folder: Path, format: str, users: Sequence[str], policy: Policy, run: Path, text: str = "", tokens: str = ""
) -> None:
    """Write README.md: what the files in `folder` are, and how other programs load them.

    `text`: about the user, if the export does not hold it. `tokens`: those of the first user, as text.
    """
    template = resources.files("prlhf.export").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card: str = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        format=format,
        users=users,
        config=policy.config,
        text=text,
        tokens=tokens,
        run=run.name,
        base=public_name(policy.base.name),
        base_is_public=is_public(policy.base.name),
        fingerprint=policy.base.fingerprint,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
