import subprocess
import sys
from pathlib import Path

import pytest

from prlhf.demo.figure import COLORS, LEGEND, LengthBar, _kinds, draw_lengths
from prlhf.errors import PrlhfError

BARS = [
    LengthBar("base", "base", 11.2, 0.6),
    LengthBar("generic", "generic", 15.3, 0.5),
    LengthBar("1", "user", 16.0, 0.4),
    LengthBar("4", "minority", 0.0, 0.0),
]


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


@pytest.mark.parametrize(
    "bars",
    [BARS, BARS[3:], [LengthBar("a label of some length", "user", 3, 0)], [LengthBar("w", "user", 9, 1)] * 200],
)
def test_a_png_is_drawn_whatever_the_bars(bars: list[LengthBar], tmp_path: Path) -> None:
    path = tmp_path / "new" / "lengths"
    draw_lengths(bars, path)
    width, height = size(path)
    assert 600 <= width <= 4000
    assert 500 <= height <= 700
    assert [p.name for p in path.parent.iterdir()] == ["lengths"]


def test_the_same_bars_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_lengths(BARS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_legend_names_only_what_is_drawn() -> None:
    assert list(_kinds(BARS).values()) == ["majority user", "minority user", "generic user", "base model"]
    assert _kinds(BARS[:3])["user"] == "user"  # without a minority there is no majority
    assert list(COLORS) == list(LEGEND)
    assert len(set(COLORS.values())) == len(COLORS)


def test_no_bars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match="nothing to draw"):
        draw_lengths([], tmp_path / "lengths.png")
    assert not list(tmp_path.iterdir())


def test_importing_does_not_load_matplotlib() -> None:
    code = "import sys, prlhf.demo.figure; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0
