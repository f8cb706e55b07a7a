"""Reference log-probs on disk: keys by content, and segments that nothing breaks, other writers included."""

from __future__ import annotations

import errno
import multiprocessing
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prlhf.model import base_cache
from prlhf.model.base import load_base, make_trainable
from prlhf.model.base_cache import BaseCache, base_key, pair_key
from prlhf.model.encoding import Encoded
from prlhf.model.readings import Reading
from prlhf.model.reference import Reference, open_cache
from prlhf.progress import Silent

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def entries(first: int, count: int) -> dict[bytes, float]:
    return {pair_key([i], [i + 1]): -i / 7 for i in range(first, first + count)}


def found(folder: Path, keys: Any) -> list[float | None]:
    """What a process that starts now finds."""
    values = BaseCache(folder).find(list(keys)).tolist()
    return [None if value != value else value for value in values]


# ---- keys ----


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(IDS, IDS, st.integers(0, 12), IDS, IDS)
def test_only_equal_pairs_have_equal_keys(p: list[int], r: list[int], cut: int, q: list[int], s: list[int]) -> None:
    """Against other pairs, and against the same tokens split elsewhere."""
    whole = p + r
    for other in ((q, s), (whole[:cut], whole[cut:])):
        assert (pair_key(p, r) == pair_key(*other)) == ((p, r) == other)
    assert len(pair_key(p, r)) == 16


def test_any_change_of_any_weight_is_another_base(tiny_base: Path) -> None:
    """The least change of the last value of each parameter and buffer."""
    lm = load_base(str(tiny_base)).lm
    before = base_key(lm)
    weights = [*lm.named_parameters(), *lm.named_buffers()]
    assert len(weights) > 20
    for name, value in weights:
        last = value.detach().flatten()[-1:]
        kept = last.clone()
        last.copy_(torch.nextafter(kept, torch.tensor([torch.inf])))
        assert base_key(lm) != before, name
        last.copy_(kept)
    assert base_key(lm) == before


def test_the_key_of_a_base_does_not_depend_on_its_place(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "moved")
    assert base_key(load_base(str(tmp_path / "moved")).lm) == base_key(load_base(str(tiny_base)).lm)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj"])
def test_an_adapter_does_not_count(tiny_base: Path, make_config: Any, tmp_path: Path, targets: str) -> None:
    base = load_base(str(tiny_base)).lm
    before = base_key(base)
    lm = make_trainable(base, make_config(tmp_path, lora_targets=targets))
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1)
    assert base_key(lm) == before


def test_precision_and_config_count(tiny_base: Path) -> None:
    base = load_base(str(tiny_base)).lm
    keys = {base_key(base), base_key(load_base(str(tiny_base), dtype=torch.bfloat16).lm)}
    base.config.rms_norm_eps *= 2
    assert len(keys | {base_key(base)}) == 3


# ---- segments ----


def test_what_is_added_is_found(tmp_path: Path) -> None:
    """Bit for bit, also after a restart; an infinite log-prob is a value like others."""
    cache = BaseCache(tmp_path / "deep/er")
    values = entries(0, 100) | {pair_key([], []): float("-inf"), pair_key([7], []): 0.1}
    assert found(cache.folder, values) == [None] * 102
    cache.add(values)
    assert found(cache.folder, values) == list(values.values()) == cache.find(list(values)).tolist()
    assert found(cache.folder, entries(100, 3)) == [None] * 3


def test_half_a_key_finds_nothing(tmp_path: Path) -> None:
    low, here, high = (struct.pack("<QQ", 5, i) for i in (1, 2, 3))
    BaseCache(tmp_path).add({here: -1.0})
    assert found(tmp_path, [low, here, high]) == [None, -1.0, None]


def test_the_format_on_disk(tmp_path: Path) -> None:
    """As written by all versions so far: a row for each half of the keys, and a row of values."""
    BaseCache(tmp_path).add({struct.pack("<QQ", 7, 8): -2.0, struct.pack("<QQ", 5, 6): -1.5})
    (path,) = tmp_path.iterdir()
    stored = np.load(path)
    assert stored[:2].tolist() == [[5, 7], [6, 8]]
    assert stored[2].view("<f8").tolist() == [-1.5, -2.0]


def test_many_small_segments_become_one(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path)
    for i in range(40):
        cache.add(entries(i, 2))  # each shares an entry with the next
        assert len(list(tmp_path.iterdir())) <= base_cache.MANY_SEGMENTS + 1
    values = entries(0, 41)
    assert found(tmp_path, values) == list(values.values()) == cache.find(list(values)).tolist()


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_cache, "SMALL", 9)
    monkeypatch.setattr(base_cache, "MANY_SEGMENTS", 2)
    cache = BaseCache(tmp_path)
    cache.add(entries(100, 3))
    large = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    for i in range(3):
        cache.add(entries(i, 1))
    assert len(list(tmp_path.iterdir())) == 2
    assert {path: path.stat().st_ino for path in large} == large


def test_merged_into_what_one_of_them_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others hold no more than the first: the new segment's name is the first's, which must not go."""
    monkeypatch.setattr(base_cache, "MANY_SEGMENTS", 2)
    cache = BaseCache(tmp_path)
    for count in (3, 2, 1):
        cache.add(entries(0, count))
    assert len(list(tmp_path.iterdir())) == 1
    assert found(tmp_path, entries(0, 3)) == list(entries(0, 3).values())


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("values", [(-1.5, -1.25), (-1.25, -1.5)])
def test_of_two_values_the_smaller_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[float, float], merges: bool
) -> None:
    if merges:
        monkeypatch.setattr(base_cache, "MANY_SEGMENTS", 1)
    for value in values:
        BaseCache(tmp_path).add({pair_key([1], [2]): value})
    assert len(list(tmp_path.iterdir())) == 2 - merges
    assert found(tmp_path, [pair_key([1], [2])]) == [-1.5]


def write_and_read(folder: Path, mine: int, barrier: Any) -> None:
    base_cache.MANY_SEGMENTS = 3  # merge all the time
    cache = BaseCache(folder)
    barrier.wait()
    for i in range(60):
        cache.add(entries(1000 * mine + 5 * i, 5) | entries(10_000 + i, 1))
        for other in (0, 1):
            known = entries(1000 * other, 300)
            for value, expected in zip(cache.find(list(known)), known.values(), strict=True):
                assert value == expected or value != value


def test_two_processes_write_and_merge_at_once(tmp_path: Path) -> None:
    """Nothing is lost, nothing wrong is read, and nothing is left over."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=write_and_read, args=(tmp_path, mine, barrier)) for mine in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    values = entries(0, 300) | entries(1000, 300) | entries(10_000, 60)
    assert found(tmp_path, values) == list(values.values())
    assert len(list(tmp_path.iterdir())) < 10


# ---- what goes wrong ----


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, one_bit, emptied])
def test_a_damaged_segment_is_computed_again(tmp_path: Path, damage: Any) -> None:
    first, second = entries(0, 3), entries(3, 3)
    BaseCache(tmp_path).add(first)
    damage(next(tmp_path.iterdir()))
    BaseCache(tmp_path / "apart").add(second)
    shutil.copy(next((tmp_path / "apart").iterdir()), tmp_path)
    notes = Notes()
    cache = BaseCache(tmp_path, notes)
    assert found(tmp_path, [*first, *second]) == [None] * 3 + list(second.values())
    cache.add(first)
    assert cache.find([*first, *second]).tolist() == [*first.values(), *second.values()]
    assert len(notes.lines) == 1
    assert notes.lines[0].endswith("is damaged: its values are computed again")


@pytest.mark.parametrize("gone", ["at once", "each time"])
def test_a_reader_that_loses_the_race_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """A segment that is listed and then missing was merged into another, or can be computed again."""
    BaseCache(tmp_path).add(entries(0, 1))
    listed, times = Path.glob, []

    def late(self: Path, pattern: str) -> list[Path]:
        times.append(1)
        return [*listed(self, pattern), *([self / "gone.npy"] if gone == "each time" or len(times) == 1 else [])]

    monkeypatch.setattr(Path, "glob", late)
    expected = [0.0] if gone == "at once" else [None]
    assert found(tmp_path, entries(0, 1)) == expected


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    cache = BaseCache(tmp_path / "file/reference/base", notes)
    cache.add(entries(0, 1))
    cache.add(entries(1, 1))
    assert len(found(cache.folder, entries(0, 1))) == 1
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith("note: nothing more is written to the reference cache: cannot write")
    assert "is a file, not a folder" in notes.lines[0]


def test_a_full_disk_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    cache = BaseCache(tmp_path, notes)
    cache.add(entries(0, 2))

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.add(entries(2, 2))
    assert cache.find(list(entries(0, 2))).tolist() == list(entries(0, 2).values())
    assert len(list(tmp_path.iterdir())) == 1
    assert [line.rpartition(": ")[2] for line in notes.lines] == ["No space left on device"]


# ---- the Reference on top ----


class Base:
    """In place of an Engine: log-probs are minus the number of tokens, nan where 13 is among them."""

    def reference(self, readings: list[Reading]) -> Tensor:
        return torch.tensor(
            [torch.nan if 13 in r.before + r.response else -float(len(r.before + r.response)) for r in readings]
        )


def comparison(i: int, bad: int = 3) -> Encoded:
    return Encoded([9], [1, i], [4] * (i + 1), [bad], user_index=i)


def test_a_second_reference_computes_nothing(tmp_path: Path) -> None:
    data = [comparison(i) for i in range(5)]
    first = Reference(Base(), BaseCache(tmp_path))  # type: ignore[arg-type]
    values = first.log_probs(data)
    assert (first.cached, first.computed) == (0, 10)
    assert not list(tmp_path.iterdir())
    first.save()
    second = Reference(Base(), BaseCache(tmp_path))  # type: ignore[arg-type]
    assert torch.equal(second.log_probs(data), values)
    assert torch.equal(second.log_probs(data), values)
    assert (second.cached, second.computed) == (10, 0)
    second.log_probs([*data, comparison(5)])
    assert (second.cached, second.computed) == (10, 2)


def test_it_is_saved_when_the_reference_ends(tmp_path: Path) -> None:
    reference = Reference(Base(), BaseCache(tmp_path))  # type: ignore[arg-type]
    reference.log_probs([comparison(1)])
    del reference
    assert found(tmp_path, [pair_key([1, 1], [4, 4])]) == [-4.0]


def test_it_is_saved_after_a_number_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prlhf.model.reference.SAVE_EVERY", 4)
    reference = Reference(Base(), BaseCache(tmp_path))  # type: ignore[arg-type]
    for i, files in ((0, 0), (1, 1), (2, 1), (1, 1), (3, 2)):
        reference.log_probs([comparison(i)])
        assert len(list(tmp_path.iterdir())) == files


def test_nan_is_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        reference = Reference(Base(), BaseCache(tmp_path))  # type: ignore[arg-type]
        values = reference.log_probs([comparison(1, bad=13)])
        assert (values[0].item(), values[1].isnan().item()) == (-4.0, True)
        reference.save()
    assert (reference.cached, reference.computed) == (1, 1)


def test_another_base_finds_nothing(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path))
    lm = load_base(str(tiny_base)).lm
    open_cache(lm).add(entries(0, 1))
    assert open_cache(lm).find(list(entries(0, 1))).tolist() == [0.0]
    lm.lm_head.weight.data[5, 5] += 1e-3
    assert open_cache(lm).find(list(entries(0, 1))).tolist() != [0.0]
    assert len(list((tmp_path / "reference").iterdir())) == 1
