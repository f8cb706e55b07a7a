"""Write ARCHITECTURE.md and its picture: `python docs/architecture.py`. A test compares the page with the code.

The list of files consists of the first sentences of the modules' docstrings, so that each is written once.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/ARCHITECTURE.md", ROOT / "docs/figures/architecture.png"

ABOVE = """\
# Architecture

Written by `python docs/architecture.py`; the lists of files are the first sentences of the modules.

![Raw data become a prepared data set, a run, responses and a judgement](figures/architecture.png)

Each command reads what the command before it wrote, checks that it is complete, and writes a folder or file of its own.
A message to the user stands where the fault is found, as `PrlhfError(message, hint)` (`prlhf/errors.py`).

| package | what it does |
|---|---|
| `prlhf_cli/` | the commands: parse options, call one function of the library, show the result |
| `prlhf/` | what all stages share: the Python API, settings, errors, file formats, folders; it never prints |
| `prlhf/config/` | all settings, a module per stage; options, help, tables and the JSON schema are made from them |
| `prlhf/source/` | reads tables in any format, from files or the hub |
| `prlhf/data/` | makes prepared data sets: a file per known data set, and one for custom files |
| `prlhf/model/` | base, adapter, user model, reference; log-probs and rewards; saving and loading |
| `prlhf/kernels/` | fast attention and linear layers, checked before they are used; knows nothing of users |
| `prlhf/runs/` | runs on disk: what each is, a page of one, and several side by side |
| `prlhf/view/` | rows of a data set as training reads them, and how users agree |
| `prlhf/train/` | objectives, batches, the optimizer, the training loop, workers; run folders and the model in them |
| `prlhf/generate/` | writes responses for many users at once; baselines |
| `prlhf/online/` | what a policy writes during its training, scored by a reward model: rounds |
| `prlhf/judge/` | compares responses: rules, reward models, language models; accuracy; statistics; the report |
| `prlhf/adapt/` | new users from a few choices, with the language model as it is; forgetting them |
| `prlhf/serve/` | a run behind an OpenAI-compatible API, for all its users at once |
| `prlhf/export/` | a person of a run as files for other programs, a file per format |
| `prlhf/sweep/` | many trials over a space of settings; their report |
| `prlhf/forum/` | the synthetic forum: posts, tastes, and the training of the tiny base |
| `prlhf/demo/` | the demo, from data to picture |

Imports run one way, from the commands down to the errors (`tests/test_imports.py`). `recipes/` has one YAML file per
experiment, `benchmarks/` makes the figures of [RESULTS.md](RESULTS.md) and [PERFORMANCE.md](PERFORMANCE.md), and
`tests/` has a folder for each package.

## Two trips through the code

**From a comparison to its loss.** `data/` reads raw rows and writes `Comparison`s (`dataset.py`). Training reads them
and makes token ids of each (`model/encoding.py`: text about the user, prompt, chosen, rejected). A batch is split
into parts of a token budget (`train/batches.py`); in a part each response is read as the user and as the generic
user (`model/prefix_tree.py` lays out what they share once). `model/personalized.py` puts the user vectors
in front and returns log-probs; `model/reference.py` has the base's. `train/objectives.py` and `train/losses.py` turn
them into the loss (paper, section 4.4), and `train/loop.py` takes the step.

**From a user's id to the text written for them.** `generate/pairs.py` finds the users to write for and the prompts they
get. `generate/requests.py` makes token ids of each (prompt, user) pair, `generate/decoding.py` and
`generate/decode_loop.py` write many of them at once, each with the vectors of its user and its own random numbers,
and `generate/output.py` stores the responses as they come, so that a rerun continues where a killed one stopped. A
server does the same for requests (`serve/planning.py`, `serve/engine.py`).

## Where would you look?

A test of the names: for ten changes, the file that was expected after reading the first screen of this page and the
names of the files only, and where the change belongs. Two pieces of code were then moved to where they were expected.

| change | expected in | belongs in | |
|---|---|---|---|
| a new loss | `train/losses.py` | `train/losses.py` | hit |
| a new user model | `model/user_models.py` | `model/user_models.py` | hit |
| another judge prompt | `judge/prompts/` | `judge/prompts/` | hit |
| a new raw format | `source/formats.py` | `source/formats.py` | moved |
| a new column in responses | `responses.py` | `responses.py`; its value comes from `generate/writer.py` | hit |
| another schedule | `train/optimizer.py` | `train/optimizer.py` | moved |
| another Ray resource | `cluster.py` | `cluster.py` | hit |
| a new picture in the report | `judge/report.py` | `judge/report.py`; for sweeps `sweep/report.py` | hit |
| a new export | `export/` | `export/NAME.py`, named in `export/run.py` | moved |
| a new message | `errors.py` | where the fault is found | miss |

A value or key that a recipe can set (a schedule, a resource) is also declared in `config/`.

## Files
"""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, or its first paragraph if that ends before a full stop."""
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
    """The text of ARCHITECTURE.md."""
    return f"{ABOVE}\n{tables()}"


BOXES = [  # (x, y, width, title, content)
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
    """Draw the flow of data: boxes are files and folders, arrows are commands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, axes = pyplot.subplots(figsize=(15, 4.4))
    for x, y, width, title, content in BOXES:
        shape = FancyBboxPatch((x, y), width, 0.8, boxstyle="round,pad=0.02", facecolor="#e8f1f8", edgecolor="#0072b2")
        axes.add_patch(shape)
        axes.text(x + width / 2, y + 0.52, title, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(x + width / 2, y + 0.22, content, ha="center", va="center", fontsize=9.5, color="#444444")
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
