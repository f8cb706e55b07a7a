"""Damage to bytes, values, files and folders. All randomness comes from a `random.Random`."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

DIGITS, DEEP = "<<digits>>", "<<deep>>"  # placeholders for values that json.dumps and yaml.dump cannot write
STANDS_FOR = {DIGITS: "9" * 5000, DEEP: "[" * 3000 + "]" * 3000}
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"),
    float("inf"), float("-inf"), "", " ", "\n", "0", "1e-4", "nan", "null", "true", "~", "a,b", "a=b", "a:b", "\x00",
    "\ud800", "\u2028", "\ufeffx", "é", "e\u0301", "🙂", "ﷺ" * 40, "x" * 3000, "../../x", "/dev/null", "generic",
    "ann", DIGITS,
]  # fmt: skip
CONTAINERS: list[Any] = [[], {}, [None], [[]], {"a": 1}, {"": ""}, [1, "1"], {"role": "user"}, ["x"] * 50, DEEP]
YAML_ONLY: list[Any] = [datetime.date(2026, 2, 28), datetime.datetime(2026, 2, 28, 1, 2), b"\x00\xff", {"a", "b"}]
FOREIGN = [
    b"", b"\n", b"\x00" * 64, b"<html><body>404</body></html>", b"\x89PNG\r\n\x1a\n\x00\x00", b"PK\x03\x04junk",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", b"\x1f\x8b\x08junk", b"null", b"[]",
    b"{}", b"0", b'"text"', b"\xff\xfe{\x00}\x00", b"PAR1", b"\xff" * 200,
]  # fmt: skip


def value(rng: Random, more: list[Any] | None = None) -> Any:
    """Return a value whose type, size or place is almost always wrong."""
    return rng.choice(rng.choice([SCALARS, SCALARS, CONTAINERS, *([more] if more else [])]))


# ---- trees: values of JSON and YAML ----


def tree(rng: Random, root: Any, more: list[Any] | None = None) -> tuple[Any, str]:
    """Return `root` with one node changed, and a description of the change."""
    path = _some_path(rng, root)
    if not path:
        return value(rng, more), "the whole"
    copy = json.loads(json.dumps(root)) if more is None else _copied(root)
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    return copy, f"{'.'.join(map(str, path))} {_change(rng, holder, path[-1], more)}"


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copied(inner) for key, inner in node.items()}
    return [_copied(inner) for inner in node] if isinstance(node, list) else node


def _some_path(rng: Random, node: Any) -> list[Any]:
    path: list[Any] = []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.8):
        step = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append(step)
        node = node[step]
    return path


def _change(rng: Random, holder: Any, key: Any, more: list[Any] | None) -> str:
    kind = rng.choice(["value", "value", "value", "remove", "rename", "wrap", "add", "repeat"])
    if kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice([str(key) + "s", str(key).upper(), str(key)[:-1], "", "é"])] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = rng.choice([[holder[key]], {"value": holder[key]}, str(holder[key]), [holder[key]] * 2])
    elif kind == "add" and isinstance(holder, dict):
        holder[rng.choice(["extra", "", "id", "prompt", "settings", "é", "__class__"])] = value(rng, more)
    elif kind == "repeat" and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), holder[key])
    else:
        kind, holder[key] = "value", value(rng, more)
        return f"= {holder[key]!r:.40}"
    return kind


def to_json(node: Any) -> str:
    """Return JSON text, with values that JSON can write and json.dumps cannot."""
    text = json.dumps(node, ensure_ascii=True)
    for name, meant in STANDS_FOR.items():
        text = text.replace(f'"{name}"', meant)
    return text


def to_yaml(node: Any) -> str:
    text: str = yaml.safe_dump(node, sort_keys=False, allow_unicode=True)
    for name, meant in STANDS_FOR.items():
        text = re.sub(f"['\"]?{name}['\"]?", meant, text)
    return text


# ---- bytes ----


def some_bytes(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Return `data` as a crash, a bad disk, an editor or another system would leave it."""
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice([1, 2, 8, 64, 4096]))
    changes: dict[str, Callable[[], bytes]] = {
        "cut off": lambda: data[:at],
        "begins late": lambda: data[at:],
        "bits turned": lambda: _turned(rng, data),
        "a span is gone": lambda: data[:at] + data[to:],
        "a span is zero": lambda: data[:at] + b"\0" * (to - at) + data[to:],
        "a span twice": lambda: data[:to] + data[at:to] + data[to:],
        "junk within": lambda: data[:at] + rng.randbytes(rng.choice([1, 4, 50])) + data[at:],
        "junk behind": lambda: data + rng.randbytes(rng.choice([1, 4, 50])),
        "begins with a mark": lambda: b"\xef\xbb\xbf" + data,
        "in UTF-16": lambda: data.decode("latin-1").encode("utf-16"),
        "in Latin-1": lambda: b"\xe9\xfc " + data,
        "other line ends": lambda: data.replace(b"\n", b"\r\n"),
        "twice": lambda: data + data,
        "something else": lambda: rng.choice(FOREIGN),
    }
    name = rng.choice(list(changes))
    return changes[name](), name


def _turned(rng: Random, data: bytes) -> bytes:
    copy = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if copy:
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    return bytes(copy)


# ---- files ----


def file(rng: Random, path: Path) -> str:
    """Damage one file, by its content or as a file; returns a description."""
    by_kind = CONTENT.get(path.suffix)
    if by_kind and rng.random() < 0.6:
        return f"{path.name}: {by_kind(rng, path)}"
    if rng.random() < 0.75:
        data, how = some_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {how}"
    return f"{path.name}: {_as_a_file(rng, path)}"


def _as_a_file(rng: Random, path: Path) -> str:
    how = rng.choice(["is gone", "is a folder", "is a full folder", "is a link to nothing", "is a link to itself"])
    path.unlink()
    if how.endswith("folder"):
        path.mkdir()
    if "full" in how:
        (path / "of-other-things.txt").write_text("kept\n")
    elif "link" in how:
        path.symlink_to("nowhere" if "nothing" in how else path.name)
    return how


def folder(rng: Random, place: Path, pattern: str = "*") -> str:
    """Damage one file in `place` or below, sometimes two."""
    files = [path for path in sorted(place.rglob(pattern)) if path.is_file()]
    chosen = rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2])))
    return "; ".join(file(rng, path) for path in chosen)


def _json(rng: Random, path: Path) -> str:
    changed, how = tree(rng, json.loads(path.read_text(encoding="utf-8")))
    path.write_text(to_json(changed), encoding="utf-8")
    return how


def _lines(rng: Random, path: Path) -> str:
    lines = path.read_text(encoding="utf-8").split("\n")
    at = rng.randrange(len(lines))
    kind = rng.choice(["value", "value", "value", "gone", "twice", "blank", "other"])
    if kind == "value" and lines[at]:
        changed, how = tree(rng, json.loads(lines[at]))
        lines[at] = to_json(changed)
    else:
        how = kind
        lines[at : at + 1] = {"gone": [], "twice": [lines[at]] * 2, "blank": ["", lines[at]]}.get(kind, ["null"])
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"line {at + 1}: {how}"


def _yaml(rng: Random, path: Path) -> str:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    changed, how = tree(rng, yaml.safe_load(path.read_text(encoding="utf-8")), YAML_ONLY)
    path.write_text("\n".join([*comments, to_yaml(changed)]), encoding="utf-8")
    return how


def _parquet(rng: Random, path: Path) -> str:
    from benchmarks.fuzz import tables

    return tables.parquet(rng, path)


def _tensors(rng: Random, path: Path) -> str:
    from benchmarks.fuzz import tables

    return tables.tensors(rng, path)


CONTENT: dict[str, Callable[[Random, Path], str]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".parquet": _parquet,
    ".safetensors": _tensors,
}


def fresh(good: Path, place: Path) -> Path:
    """Copy a valid file or folder, to damage it."""
    if good.is_dir():
        shutil.copytree(good, place)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(good, place)
    return place
