"""What the command line adds to a sweep's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prlhf.config import parse_overrides
from prlhf.errors import PrlhfError
from prlhf.sweep.settings import Sections
from prlhf.sweep.space import canonical, texts_by_key


def with_sets(sections: Sections, texts: list[str] | None) -> dict[str, dict[str, Any]]:
    """The sections with every `--set`: `alpha=0.3` is train's, `generate.temperature=0` says whose it is."""
    layered = {stage: dict(values) for stage, values in sections.items()}
    for text in texts or []:
        stage = next((stage for stage in ("generate", "judge") if text.strip().startswith(f"{stage}.")), "train")
        values = parse_overrides([text], stage)
        layered[stage] = {**layered.get(stage, {}), **values}
    return layered


def merged_space(recipe: Mapping[str, Any], texts: list[str] | None) -> dict[str, Any]:
    """The recipe's space with every `--space` on top: for a key that both name the latter counts."""
    if not isinstance(recipe, Mapping):
        raise PrlhfError(f"sweep.space = {recipe!r} is not a mapping", 'write it as alpha: "0.1:0.9", one key a line')
    return {canonical(key): value for key, value in recipe.items()} | texts_by_key(texts or [])
