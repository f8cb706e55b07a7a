"""Reading weights under a `Progress`, in place of the bars of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from prlhf.progress import Progress


@contextmanager
def bars_shown_by(progress: Progress, label: str) -> Iterator[None]:
    """What transformers would show with bars of its own while the context lasts, `progress` shows as `label`."""
    from transformers.utils import logging

    gguf: Any = import_module("transformers.modeling_gguf_pytorch_utils")

    def bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        counted = len(args) == 1 and isinstance(args[0], Sized)
        return _steps(progress, label, args[0]) if counted else factory(*args, **options)

    before = logging.set_tqdm_hook(bar)
    tqdm = gguf.tqdm  # this module asks no hook
    gguf.tqdm = lambda *args, **options: bar(tqdm, args, options)
    try:
        yield
    finally:
        gguf.tqdm = tqdm
        logging.set_tqdm_hook(before)


def _steps(progress: Progress, label: str, items: Any) -> Iterator[Any]:
    progress.start(label, len(items))
    for item in items:
        yield item
        progress.advance(1)
    progress.finish()
