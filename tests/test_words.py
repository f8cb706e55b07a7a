"""Plain English: pages, docstrings, comments and messages avoid expressions that slow a reader down."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "mkdocs.yml",
    "docs",
    "recipes",
    ".github",
    ".ci",
    "benchmarks",
    "prlhf",
)
CODE = (  # whose Python is held to the same
    "docs", "benchmarks", "prlhf", "prlhf_cli",
    "tests/cli", "tests/data", "tests/generate", "tests/judge", "tests/kernels", "tests/model", "tests/train",
)  # fmt: skip
ENDINGS = {".md", ".yaml", ".yml", ".jinja", ".ipynb", ""}
FROM_CODE = {"ARCHITECTURE.md", "CLI.md"}  # whose words stand in the code

BETTER = {  # what to avoid -> what to write
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer|more|less|fewer|greater)": "is not a",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bheed(s|ed|ing|less)?\b": "follow, consider",
    r"\bfor ever\b": "without limit",
    r"\bOf whom\b": "whose",
    r"\bwhat of (it|them)\b": "which of its parts",
    r"\bas good as not\b": "like a missing one",
    r"\b(nought|hitherto|whilst|amongst|thereof|whereof)\b": "a common word",
    r"\b(is|are|was|were|be|being|been) told\b": "is reported, knows, gets",
    r"\b(told|asked) of\b": "told about",
    r"\banew\b": "again",
    r"\b(go|goes|going|gone|went) on with\b": "continue",
    r"\bbut for (?!the|those|that)\w+": "except for",
    r"\bbut for (the|those|that)\b": "except for",
    r"\b(has|have|had) not (a|an|the|any|what|enough)\b": "does not have",
    r"\bknows? no\b": "does not know",
    r"\b(object|line|row|column|comparisons?|tokens) an? (user|line|row|trial|step|second|prompt|response)\b": "per",
    r"\bcome by\b": "get",
    r"\bwant of\b": "lack of",
    r"\bsome \d": "about",
    r"\b(DESIGN|REVIEW)\.md\b|\.\./shared|\bworkplace\b": "nothing outside the repository",
    # American spelling
    r"\b(summar|token|recogn|normal|initial|optim|quant|organ|serial|material|penal|random|synchron|custom|minim|maxim)"
    r"is(e|es|ed|er|ing|ation)\b": "-ize",
    r"\b(colour|behaviour|favour|neighbour|honour|centre|catalogue|dequantised|labelled|modelling)\w*": "color",
}
ON_PAGES = {  # true of the software, not of the day on which it was written
    r"(?<!_)\btargets?\b": "criterion, expected",
    r"\b(today|yesterday|as of now|lent)\b": "what holds at any time",
}


def prose_of_page(text: str) -> str:
    """A page without code (blocks, indented lines, backticks) and without what models wrote; line numbers stay."""
    for left_out in (r"^```.*?^```", r"<summary>Examples: .*?</details>"):
        text = re.sub(left_out, lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`|{[{%].*?[%}]}", "CODE", text)
    return "\n".join("" if line.startswith("    ") else line for line in text.split("\n"))


def prose_of_python(text: str) -> list[tuple[int, str]]:
    """Line numbers, and the docstrings, other strings and comments that stand there."""
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return found + [(each.start[0], each.string) for each in tokens if each.type == tokenize.COMMENT]


def passages(path: Path) -> list[tuple[int, str]]:
    """What a reader reads in a file, by line; a line break is one character, however the next line begins."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = prose_of_python(text)
    elif path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        found = [(number, prose_of_page("".join(cell["source"]))) for number, cell in enumerate(cells, 1)]
    else:
        found = [(1, prose_of_page(text) if path.suffix in (".md", ".jinja") else text)]
    return [(line, re.sub(r"[ \t]*\n[ \t#]*(?=\S)", "\n", passage)) for line, passage in found]


def files(places: tuple[str, ...], endings: set[str]) -> Iterator[Path]:
    for place in places:
        for path in sorted((ROOT / place).rglob("*")) if (ROOT / place).is_dir() else [ROOT / place]:
            if path.is_file() and path.suffix in endings and path.name not in FROM_CODE:
                yield path


def faults(path: Path, avoid: dict[str, str]) -> list[str]:
    """`line: expression -> better`, for each expression of `avoid` in `path`."""
    return [
        f"{path.relative_to(ROOT)}:{line + passage[: found.start()].count(chr(10))}: {found[0]!r} -> {better}"
        for line, passage in passages(path)
        for pattern, better in avoid.items()
        for found in re.finditer(pattern.replace(" ", r"\s"), passage)
    ]


@pytest.mark.parametrize("path", files(PAGES, ENDINGS), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_plain(path: Path) -> None:
    assert faults(path, BETTER | (ON_PAGES if path.suffix in (".md", ".jinja", ".ipynb") else {})) == []


@pytest.mark.parametrize("path", files(CODE, {".py"}), ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_plain(path: Path) -> None:
    assert faults(path, BETTER) == []


def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_words.ROOT", tmp_path)
    page, code = tmp_path / "page.md", tmp_path / "code.py"
    page.write_text("It is no\nmodel.\n\n    it is no code\n\nThere is no fault, `mend` neither. The target is met.\n")
    code.write_text('"""Is\nmended."""\n\nmend = f"{1} is told"  # Of whom\n')
    assert [each.split(" ->")[0] for each in faults(page, BETTER | ON_PAGES)] == [
        "page.md:1: 'is no\\n'",
        "page.md:6: 'target'",
    ]
    assert sorted(each.split(" ->")[0] for each in faults(code, BETTER)) == [
        "code.py:2: 'mended'",
        "code.py:4: 'Of whom'",
        "code.py:4: 'is told'",
    ]
