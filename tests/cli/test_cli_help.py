"""Help: quick, with examples that are true, and the same as docs/CLI.md."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from prlhf_cli import docs
from prlhf_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "transformers", "datasets", "numpy", "pyarrow", "pydantic", "yaml", "openai", "matplotlib")

SHOW_HELP = """
import json, sys
from prlhf_cli.main import app
for args in json.loads(sys.argv[1]):
    try:
        app(args)
    except SystemExit as exit:
        assert exit.code == 0, args
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def commands() -> dict[str, Any]:
    group: Any = get_command(app)
    return dict(group.commands)


def test_help_imports_nothing_heavy() -> None:
    lines = json.dumps([[], ["--help"], *([name, "--help"] for name in docs.COMMANDS)])
    done = subprocess.run([sys.executable, "-c", SHOW_HELP, lines], capture_output=True, text=True, check=True)
    imported = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in HEAVY if name in imported] == []


@pytest.mark.parametrize("command", docs.COMMANDS)
def test_examples_parse(command: str) -> None:
    found = re.findall(r"^(prlhf .*)$", commands()[command].help, re.M)
    assert found, "every command's help has an example"
    for line in found:
        assert line.startswith(f"prlhf {command}")
        docs.check_command(line)


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_commands_in_documents_parse(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"```text.*?```", "", text, flags=re.S)  # help as shown, with its lines wrapped
    for line in re.findall(r"^ *(?:\$ )?(prlhf [a-z]+ .*)$", text, re.M):
        docs.check_command(line)


def test_nothing_is_taken_for_markup() -> None:
    """rich takes `[default: x]` for a style and swallows it."""
    texts = [option.help or "" for command in commands().values() for option in command.params]
    assert [text for text in texts if "[" in text] == []


def test_page_is_current() -> None:
    assert (ROOT / "docs/CLI.md").read_text(encoding="utf-8") == docs.page(), f"stale; run: {docs.COMMAND}"


def run_in_bash(line: str, **variables: str) -> str:
    """typer finds the shell by its process, so there has to be one (and `exit` keeps bash from replacing itself)."""
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit $?"], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_completion() -> None:
    console_script = f"{Path(sys.executable).parent}/prlhf"
    script = run_in_bash(f"{console_script} --show-completion bash")
    assert "complete -o default -F _prlhf_completion prlhf" in script
    for words, answers in (("prlhf tr", "train"), ("prlhf train --user-model cl", "cluster")):
        position = str(len(words.split()) - 1)
        out = run_in_bash(console_script, _PRLHF_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
        assert out.split() == [answers]


@pytest.mark.slow
def test_help_is_quick() -> None:
    """At most 1.5 times importing typer and rich: help is plain, and neither rich's parts nor the library are read."""

    def seconds(*args: str) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run([sys.executable, *args], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    yardstick = seconds("-c", "import typer, rich")
    assert seconds("-m", "prlhf_cli.main", "--help") <= 1.5 * yardstick
    assert seconds("-m", "prlhf_cli.main", "train", "--help") <= 1.5 * yardstick
