"""Every option that a message, a hint or a help text names is one that the command at hand really has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from prlhf.config import STAGES
from prlhf_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
SET = re.compile(r"--set '?([a-z_.]+)=")
OTHER_PROGRAMS = re.compile(r"(ray start|pip install|hf auth|llama.cpp|mlflow ui|trackio show|tensorboard --)[^`;,]*")
RUNS = ("train", "generate", "judge")  # the commands that load models

# Which commands a file's messages are read in; the longest beginning of its path counts. An option that is not in all
# of them has to stand behind the name of a command that has it, as in "prlhf prep --source FOLDER".
SERVES: dict[str, tuple[str, ...]] = {
    "prlhf/data": ("prep",),
    "prlhf/model": RUNS,
    "prlhf/model/base.py": ("train",),
    "prlhf/model/sharding.py": ("train",),
    "prlhf/model/gates.py": ("train",),  # before the first step
    "prlhf/export": ("export",),
    "prlhf/conversation.py": ("chat",),
    "prlhf/upload.py": ("train",),
    "prlhf_cli/talk.py": ("chat",),
    "prlhf/view": ("data",),
    "prlhf/serve": ("serve",),
    "prlhf/choice_store.py": ("feedback",),
    "prlhf/config/serve.py": ("serve",),
    "prlhf/adapt": ("adapt",),
    "prlhf/config/adapt.py": ("adapt",),
    "prlhf/train": ("train",),
    "prlhf/generate": ("generate",),
    "prlhf/judge": ("judge",),
    "prlhf/sweep": ("sweep",),
    "prlhf/runs": ("runs",),
    "prlhf/html.py": ("runs",),  # for pages of which the user says where
    "prlhf/cluster.py": ("train", "generate", "sweep"),
    "prlhf/config/cluster.py": ("train", "generate", "sweep"),
    **{f"prlhf/config/{name}.py": (name,) for name in ("prep", "train", "generate", "judge", "sweep")},
    "prlhf/source": ("prep",),
    "prlhf/dataset.py": ("train", "generate", "judge"),
    "prlhf/responses.py": ("generate", "judge"),
    "prlhf/start_training.py": ("train",),
    "prlhf/forum/pretrain.py": (),  # a program of its own, with its own options
    "prlhf": ("prep", "train", "generate", "judge", "sweep"),
    "prlhf_cli/asking.py": ("adapt",),
    "prlhf_cli/main.py": ("",),
    **{
        f"prlhf_cli/{name}.py": (name,)
        for name in (
            "prep",
            "train",
            "generate",
            "judge",
            "sweep",
            "export",
            "push",
            "chat",
            "adapt",
            "demo",
            "data",
            "runs",
        )
    },
    "prlhf_cli/serve.py": ("serve",),
    "prlhf_cli/feedback.py": ("feedback",),
    "prlhf_cli": ("prep", "train", "generate", "judge", "sweep"),
}
# Messages that only some of their file's commands can bring: (file, option) -> the commands, and why.
ONLY: dict[tuple[str, str], tuple[str, ...]] = {
    ("prlhf/folders.py", "--resume"): ("train", "sweep"),  # the kinds that are resumed
    ("prlhf/recipes.py", "alpha"): ("train",),  # an example of it
}


def options() -> dict[str, set[str]]:
    group: Any = get_command(app)
    names = {
        name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for name, command in group.commands.items()
    }
    return {name: found | {"--help"} for name, found in names.items()} | {"": {"--help", "--version"}}


OPTIONS = options()


def serves(path: str) -> tuple[str, ...]:
    parts = path.split("/")
    places = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(SERVES[place] for place in places if place in SERVES)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string but docstrings; of an f-string the text with {} in its holes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            skipped.add(id(node.body[0].value))  # type: ignore[attr-defined]
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield node.lineno, "".join(parts)


def faults(path: str, text: str) -> list[str]:
    """Options in `text` that the commands of `path` do not have."""
    text, found = OTHER_PROGRAMS.sub("", text), []
    for match in FLAG.finditer(text):
        commands = reached(path, match[0], text[: match.start()])
        found += [f"{match[0]} is not of {name}" for name in commands if match[0] not in OPTIONS[name]]
    for match in SET.finditer(text):
        stage, _, key = match[1].rpartition(".")
        stages = (stage,) if stage else reached(path, key, text[: match.start()])
        stages = tuple("train" if name == "sweep" else name for name in stages)  # of sweep --set is train's
        found += [f"{key} is not of {name}" for name in stages if key not in STAGES[name].model_fields]
    return found


def reached(path: str, word: str, before: str) -> tuple[str, ...]:
    """The commands that `word` is for: the one named `before` it, or those that `path` serves."""
    named = re.findall(r"prlhf ([a-z]+)[^;,`]*$", before)
    return (named[-1],) if named and named[-1] in OPTIONS else ONLY.get((path, word), serves(path))


FILES = sorted([*ROOT.glob("prlhf/**/*.py"), *ROOT.glob("prlhf_cli/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_messages(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if not serves(name):
        return
    wrong = [f"{name}:{line}: {fault} ({text!r:.120})" for line, text in texts(path) for fault in faults(name, text)]
    assert wrong == []


def test_options_in_documents() -> None:
    """In prose, where no command stands before it, an option has to be one of some command."""
    known = set().union(*OPTIONS.values()) | {"--constraint"}  # pip's
    for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"`[^`]*--|^    prlhf|--set", line) and "prlhf" in line:
                unknown = [flag for flag in FLAG.findall(OTHER_PROGRAMS.sub("", line)) if flag not in known]
                assert unknown == [], f"{path.name}: {line}"


def test_the_test_sees_what_it_is_for() -> None:
    """The two hints of 0.1 that named options which were not there."""
    assert faults("prlhf/model/base.py", "use --lora-target all-linear") == ["--lora-target is not of train"]
    assert "--sets is not of prep" in faults("prlhf/data/custom.py", "name it with --sets 'columns={user_id: NAME}'")
    assert faults("prlhf/train/run.py", "see --set lora_target=x") == ["lora_target is not of train"]
    assert faults("prlhf/judge/run.py", "make it with prlhf prep --source FOLDER") == []


@pytest.mark.parametrize("name", ["prep", "train", "generate", "judge", "sweep"])
def test_every_switch_of_a_recipe_can_be_undone(name: str) -> None:
    """What a recipe turns on, the command line can turn off."""
    group: Any = get_command(app)
    keys = STAGES[name].model_fields.keys() | STAGES["cluster"].model_fields.keys()
    switches = [p for p in group.commands[name].params if getattr(p, "is_flag", False) and p.name in keys]
    assert [p.name for p in switches if not p.secondary_opts] == []
    assert switches


@pytest.mark.parametrize("name", ["prep", "train"])
def test_help_lists_all_data_sets(name: str) -> None:
    from prlhf.extensions import DATA_SETS

    group: Any = get_command(app)
    text = next(p.help for p in group.commands[name].params if p.name == "dataset")
    assert [known for known in DATA_SETS if not re.search(rf"(?<![\w-]){known}(?![\w-])", text)] == []
