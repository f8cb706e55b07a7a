"""Names that settings choose from, besides those of extensions (`prlhf.extensions`)."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Literal

from prlhf.extensions import DATA_SETS

KNOWN_DATA = tuple(DATA_SETS.ours)
HUB_DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

PROMPTS = resources.files("prlhf") / "judge" / "prompts"  # NAME.jinja is a protocol, _NAME.jinja a part of others
PROTOCOLS = tuple(
    sorted(one.name[:-6] for one in PROMPTS.iterdir() if one.name[0] != "_" and one.name[-6:] == ".jinja")
)
if TYPE_CHECKING:
    ProtocolName = str
else:
    ProtocolName = Literal[PROTOCOLS]
