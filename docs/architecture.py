"""Write ARCHITECTURE.md and its picture: `python docs/architecture.py`. A test compares the page with the code.

The list of files is made from the first sentence of each module's docstring, so that it is written once.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/ARCHITECTURE.md", ROOT / "docs/figures/architecture.png"

ABOVE = """\
# Architecture

Written by `python docs/architecture.py`: the lists of files come from the modules' own first sentences.

![Raw data become a prepared data set, a run, responses and a judgement](figures/architecture.png)

Each command takes what the one before it wrote, checks that it is whole, and writes a folder or a file of its own. A
command of the terminal (`prlhf_cli/`) reads options and shows results; the work is a function of the library
(`prlhf/`), which never prints. Imports run one way, from the commands down to the errors (`tests/test_imports.py`
holds the order). `recipes/` has one YAML file per experiment, `benchmarks/` makes the figures of
[RESULTS.md](RESULTS.md) and [PERFORMANCE.md](PERFORMANCE.md), and `tests/` has a folder for each package.

## Two trips through the code

**From a comparison to its loss.** `data/` reads raw rows and writes `Comparison`s (`dataset.py`). Training reads them
and makes token ids of each (`model/encoding.py`: text about the user, prompt, chosen, rejected). A batch is split
into parts of a token budget (`train/batching.py`); in a part each sequence is read as the user and as the generic
user (`model/prefix_tree.py` lays out what they have in common once). `model/personalized.py` puts the user's vectors
in front and returns log-probs; `model/reference.py` has the base's. `train/losses.py` and `train/objectives.py` turn
them into the loss (paper, section 4.4), and `train/trainer.py` takes the step.

**From a user's id to the text written for them.** `generate/pairs.py` finds whom to write for and which prompts they
get. `generate/jobs.py` makes token ids of each (prompt, user) pair, `generate/decoding.py` and
`generate/decode_loop.py` write many of them at once, each with the vectors of its user and random numbers of its own,
and `generate/output.py` keeps the responses as they come, so that a rerun goes on where a killed one stopped.

## Files
"""


def first_sentence(path: Path) -> str:
    """What a module says of itself, up to its first full stop, or blank line."""
    said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    words = " ".join(said.split())
    return words.partition(". ")[0].rstrip(".:")


def tables() -> str:
    """A table of files for each package, the top level first."""
    parts = []
    for package in ("prlhf", "prlhf_cli"):
        folders = [ROOT / package, *sorted(p for p in (ROOT / package).rglob("*") if p.is_dir())]
        for folder in folders:
            files = sorted(p for p in folder.glob("*.py") if first_sentence(p))
            if files:
                rows = [f"| `{file.name}` | {first_sentence(file).replace('|', chr(92) + '|')} |" for file in files]
                parts.append("\n".join([f"### {folder.relative_to(ROOT)}/\n", "| file | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def page() -> str:
    """The whole of ARCHITECTURE.md."""
    return f"{ABOVE}\n{tables()}"


BOXES = [  # (x, y, width, title, what it is)
    (0.0, 1.0, 1.8, "raw data", "files or the hub"),
    (2.9, 1.0, 2.4, "prepared data set", "train, eval, users"),
    (6.7, 1.0, 2.3, "run", "user model + adapter"),
    (10.6, 1.0, 2.0, "responses", "per (prompt, user)"),
    (13.7, 1.0, 2.1, "judgement", "win-rates, intervals"),
    (6.7, 2.6, 2.3, "base model", "hub, folder, GGUF"),
    (6.7, -0.9, 2.3, "accuracy", "per user, with controls"),
]
ARROWS = [  # (from x, from y, to x, to y, the command)
    (1.8, 1.4, 2.9, 1.4, "prep"),
    (5.3, 1.4, 6.7, 1.4, "train"),
    (9.0, 1.4, 10.6, 1.4, "generate"),
    (12.6, 1.4, 13.7, 1.4, "judge"),
    (7.85, 2.6, 7.85, 1.8, ""),
    (7.85, 1.0, 7.85, -0.1, "judge --checkpoint"),
]


def draw(path: Path) -> None:
    """The flow of data as boxes (what lies on disk) and arrows (commands)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, axes = pyplot.subplots(figsize=(15, 4.4))
    for x, y, width, title, what in BOXES:
        shape = FancyBboxPatch((x, y), width, 0.8, boxstyle="round,pad=0.02", facecolor="#e8f1f8", edgecolor="#0072b2")
        axes.add_patch(shape)
        axes.text(x + width / 2, y + 0.52, title, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(x + width / 2, y + 0.22, what, ha="center", va="center", fontsize=9.5, color="#444444")
    for x, y, to_x, to_y, command in ARROWS:
        axes.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1.6})
        if command and y == to_y:
            axes.text((x + to_x) / 2, y + 0.16, command, ha="center", fontsize=11, color="#d55e00", family="monospace")
        elif command:
            axes.text(x + 0.15, to_y + 0.25, command, va="center", fontsize=11, color="#d55e00", family="monospace")
    sweep = FancyBboxPatch(
        (5.5, 0.72),
        10.5,
        1.4,
        boxstyle="round,pad=0.03",
        fill=False,
        edgecolor="#009e73",
        linestyle="--",
        linewidth=1.4,
    )
    axes.add_patch(sweep)
    axes.text(16.0, 2.28, "sweep: many times, over a space of settings", ha="right", fontsize=11, color="#009e73")
    axes.set_xlim(-0.2, 16.2)
    axes.set_ylim(-1.1, 3.6)
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Write page and picture."""
    PAGE.write_text(page(), encoding="utf-8")
    draw(PICTURE)
    sys.stdout.write(f"{PAGE}\n{PICTURE}\n")


if __name__ == "__main__":
    main()
