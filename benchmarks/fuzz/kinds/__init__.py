"""The kinds of cases: each is a function from random numbers to a `Case`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.kinds import folders, raw, settings, sweeps, texts
from benchmarks.fuzz.kinds.material import Material

Make = Callable[[Random, Path, Material], Case]
Draw = Callable[[Any, Path, Material], Case]  # with `draw` of hypothesis

# name -> (cases per thousand, function); cheap kinds have more
KINDS: dict[str, tuple[int, Make]] = {
    "rows: custom": (70, raw.custom),
    "rows: tldr": (50, raw.tldr),
    "rows: psoups": (50, raw.psoups),
    "rows: prism": (60, raw.prism),
    "rows: few-shot": (50, raw.few_shot),
    "recipe": (70, settings.recipe),
    "set": (70, settings.overrides),
    "space": (60, settings.space),
    "sweep's recipe": (30, settings.sweep_recipe),
    "command line": (50, settings.command),
    "prepared data": (65, folders.prepared),
    "model": (45, folders.checkpoint),
    "base": (20, folders.base),
    "run": (20, folders.run),
    "reference cache": (20, folders.cache),
    "output": (25, folders.output),
    "responses": (60, texts.responses),
    "prompts": (50, texts.prompts),
    "verdict": (40, texts.verdict),
    "answers": (25, texts.answers),
    "judge's files": (15, texts.judge_files),
    "sweep folder": (10, sweeps.sweep),
}
DRAWN: dict[str, tuple[int, Draw]] = {
    "rows: any JSON": (30, raw.any_rows),
    "verdict: any text": (15, texts.any_verdict),
}
