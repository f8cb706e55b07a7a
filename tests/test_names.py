"""One meaning per name: a public function or class is defined in one module only, over the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Names that mean the same wherever they are defined.
# in prlhf.api, each calls its namesake
FRONT_DOOR = {
    "export", "generate", "judge_checkpoint", "judge_general", "plan_training", "prepare", "serve", "sweep", "train",
}  # fmt: skip
REGISTERING = {"judge"}  # a decorator; in prlhf.api, the command
READERS = {"load"}  # of one data set each, and of a run
SAME = FRONT_DOOR | REGISTERING | READERS


def definitions() -> dict[str, set[str]]:
    """The modules that define each public function or class at their top level."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.glob("prlhf/**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(str(path.relative_to(ROOT)))
    return found


def test_a_public_name_has_one_meaning() -> None:
    shared = {name: sorted(modules) for name, modules in definitions().items() if len(modules) > 1}
    assert shared.keys() >= SAME, "a name of the lists is defined once: take it off"
    assert not {name: modules for name, modules in shared.items() if name not in SAME}
