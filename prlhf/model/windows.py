"""What a model's config says of sliding windows."""

from __future__ import annotations

from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers names them


def window_of(config: Any) -> int | None:
    """How many tokens, itself among them, a token looks at in the layers that have a window."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and SLIDING not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)
