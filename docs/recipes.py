"""Write RECIPES.md from the files in recipes/: `python docs/recipes.py`. A test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path

from prlhf.recipes import load_recipe, shipped_recipes, text_of

PAGE = Path(__file__).resolve().parent / "RECIPES.md"

ABOVE = """\
# Recipes

Written by `python docs/recipes.py` from the files in `recipes/`.

A recipe is a YAML file with a section of settings for each stage: `prep`, `train`, `generate`, `judge`, `sweep`. These
come with prlhf and are found by name: `prlhf recipes list` names them, `prlhf recipes show NAME` prints one. A recipe
of your own is given by its path, `--recipe mine.yaml`; options of the command line win over it. `prlhf recipes schema`
prints a JSON schema, with which an editor checks and completes a recipe.
"""

GROUPS = {
    "With synthetic data, without a network": "They use the bundled base of 1.1 million parameters.",
    "With real text and a small model": "Public data, prepared from local files, and a base of 135 million parameters.",
    "At the paper's scale": "They need a GPU and the hub.",
}


def group_of(name: str) -> str:
    """The heading under which a recipe stands, decided by the base model that it trains."""
    base = load_recipe(name)["train"].get("model", "tiny")
    made_up, small, large = GROUPS
    return made_up if base == "tiny" else small if "135M" in base else large


def entry(name: str) -> str:
    """One recipe: what its header says, with the commands as code, and its settings."""
    lines = text_of(name).rstrip("\n").split("\n")
    comments = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    prose = " ".join(line for line in comments[1:] if line and not line.startswith(" "))
    commands = [comments[0], *(line.strip() for line in comments[1:] if line.startswith(" "))]
    settings = [line for line in lines if not line.startswith("#")]
    return "\n".join(
        [
            *(f"### {name}\n", prose, "\n```bash", *commands, "```\n"),
            *('<details markdown="1"><summary>settings</summary>\n', "```yaml", *settings, "```\n", "</details>\n"),
        ]
    )


def page() -> str:
    """The whole of RECIPES.md."""
    names = sorted(shipped_recipes())
    parts = [ABOVE]
    for group, about in GROUPS.items():
        parts += [f"## {group}\n\n{about}\n", *(entry(name) for name in names if group_of(name) == group)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
