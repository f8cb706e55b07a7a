"""Write docs/RESULTS.md, its pictures and docs/results.json with every number, from the results of the experiments.

A section whose experiment was not run in this working folder keeps the numbers of docs/results.json.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import jinja2

from benchmarks import pictures
from benchmarks.gather import GATHER, IN_PARTS
from benchmarks.real_text import experiments as real_texts
from benchmarks.real_text import gather as real_text_files
from benchmarks.real_text import page as real_text_page
from benchmarks.real_text.criteria import percent as real_text_percent
from benchmarks.real_text.picture import draw_users
from benchmarks.shares import Numbers, interval, percent, plus_minus
from benchmarks.steps import EXPERIMENTS

TEMPLATE = Path(__file__).with_name("RESULTS.md.jinja")


def render(work: Path, docs: Path) -> None:
    """Collect the results, draw the pictures, and write the page."""
    kept = docs / "results.json"
    numbers: Numbers = json.loads(kept.read_text()) if kept.exists() else {}
    for name, gather in GATHER.items():
        steps = EXPERIMENTS[name].steps if name in EXPERIMENTS else []
        whole = all((work / step.done).exists() for step in steps)
        found = gather(work) if whole or name in IN_PARTS else {}
        if found and name == "real_text":
            found = with_earlier_arms(numbers.get(name, {}), found)
        if found:
            numbers[name] = found
    numbers["machine"] = numbers.get("machine") or machine()
    kept.write_text(json.dumps(numbers, indent=1) + "\n")
    pictures.draw_all(numbers, docs / "figures")
    for name, found in numbers.get("real_text", {}).items():
        if real_texts.EXPERIMENTS[name].dimensions:
            draw_users(real_texts.EXPERIMENTS[name], found, docs / "figures" / f"{name}.png")
    commands = {
        name: list(dict.fromkeys("prlhf " + s.command.replace("{w}/", "") for s in e.steps))
        for name, e in EXPERIMENTS.items()
    }
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "pc": percent,
        "ci": interval,
        "pm": plus_minus,
        "section": real_text_page.as_markdown,
        "pct": real_text_percent,
        "arm": real_text_files.arm_of,
        "label": real_text_files.label,
    }
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**numbers, commands=commands)
    (docs / "RESULTS.md").write_text(page, encoding="utf-8")


def machine() -> str:
    import peft
    import torch
    import transformers

    devices = [platform.machine(), *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return f"{', '.join(devices)}; Python {platform.python_version()}, {versions}"


def with_earlier_arms(earlier: Numbers, found: Numbers) -> Numbers:
    """The experiments on real text whose files are here, and what was found earlier in places that are not here."""
    both = {
        name: real_text_files.with_earlier(earlier[name], now) if name in earlier else now
        for name, now in found.items()
    }
    return earlier | both
