"""Checkpoints of many users: a few of them are loaded without the others, and what is loaded is what was saved."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from prlhf.config import GenerateConfig
from prlhf.errors import PrlhfError
from prlhf.generate.run import generate
from prlhf.model import user_store as blocks
from prlhf.model.base import load_base
from prlhf.model.checkpoint import Policy, assemble, load_policy, save_policy
from prlhf.model.user_store import read_users

USERS = 1500
BLOCK = 4096  # bytes: 16 rows of individual users


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)


def save(folder: Path, make_config: Callable[..., Any], tiny_base: Path, **options: Any) -> Policy:
    start = {} if options.get("user_tokens") == 0 or options.get("user_in") == "adapter" else {"user_init": "random"}
    config = make_config(folder, **({"user_model": "individual"} | start | options))
    ids = [f"u{i}" for i in range(1, USERS + 1)]
    policy = assemble(load_base(str(tiny_base)), config, ids, {"u7": "naïve ✓", "u1500": "the last"})
    folder.mkdir(parents=True)
    save_policy(policy, folder)
    return policy


@pytest.fixture(scope="module")
def individual(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any], tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("many") / "individual"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", BLOCK)
        save(folder, make_config, tiny_base)
    return folder


@pytest.fixture
def copy(individual: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(individual, tmp_path / "copy"))


def vectors(policy: Policy, users: list[int]) -> Tensor:
    """Those in front of the prompt and the gates, [B, numbers]."""
    model = policy.model.users
    parts = [model, model.gates] if model.gates else [model]
    return torch.cat([part(torch.tensor(users)).detach().flatten(1) for part in parts], 1)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def row_at(folder: Path, user: int) -> int:
    """Where in the file the row of an individual user begins."""
    size = (folder / "user_model.safetensors").stat().st_size
    return size - (USERS + 1 - user) * 2 * 32 * 4  # the table stands last


@pytest.mark.parametrize(
    "options", [{}, {"user_model": "cluster", "k": 7}, {"user_model": "cluster", "cluster_weights": "linear"},
                {"user_model": "uniform"}, {"user_model": "uniform", "user_tokens": 0}, {"full_finetune": True},
                {"user_in": "adapter"}, {"user_in": "both", "user_model": "cluster", "k": 7}]
)  # fmt: skip
def test_some_users_are_loaded_as_they_were_saved(
    tmp_path: Path, make_config: Callable[..., Any], tiny_base: Path, options: dict[str, Any]
) -> None:
    saved = save(tmp_path / "run", make_config, tiny_base, **options)
    whole = load_policy(tmp_path / "run", "cpu")
    some = load_policy(tmp_path / "run", "cpu", users=["u1500", "u7", "nobody"])
    assert (some.user_ids, some.user_texts) == (["u7", "u1500"], {"u7": "naïve ✓", "u1500": "the last"})
    assert some.index_of() == {"u7": 7, "u1500": 1500}
    assert (whole.user_ids, whole.user_texts) == (saved.user_ids, saved.user_texts)
    assert whole.index_of() == saved.index_of()
    for users in ([0, 7, 1500], [7], [0]):
        assert torch.equal(vectors(some, users), vectors(saved, users))
        assert torch.equal(vectors(whole, users), vectors(saved, users))
    assert some.config == saved.config.model_copy(update={"out": None})
    nobody = load_policy(tmp_path / "run", "cpu", users=[])
    assert nobody.index_of() == {}
    assert torch.equal(vectors(nobody, [0]), vectors(saved, [0]))


def test_the_file_is_safetensors_like_any_other(individual: Path) -> None:
    with safe_open(individual / "user_model.safetensors", framework="pt") as file:
        assert file.get_slice("offsets.weight").get_shape() == [USERS, 2 * 32]
    sums = (individual / "user_model.sha256").read_text().split()
    assert len(sums) == -(-(individual / "user_model.safetensors").stat().st_size // BLOCK)


def test_few_users_are_loaded_whole(trained: Path) -> None:
    """As from a checkpoint of before there were parts: the same files, whoever is asked for."""
    assert not (trained / "model/users.sqlite").exists()
    assert load_policy(trained, "cpu", users=["bob"]).index_of() == {"ann": 1, "bob": 2, "cat": 3}


def test_many_users_of_an_old_checkpoint(copy: Path) -> None:
    """users.json, and one checksum for the whole user model."""
    whole = load_policy(copy, "cpu")
    (copy / "users.json").write_text(json.dumps({"ids": whole.user_ids, "texts": whole.user_texts}))
    (copy / "users.sqlite").unlink()
    about = json.loads((copy / "prlhf.json").read_text())
    import hashlib

    del about["sha256"]["user_model.sha256"]
    raw = (copy / "user_model.safetensors").read_bytes()
    about["sha256"]["user_model.safetensors"] = hashlib.sha256(raw).hexdigest()
    (copy / "user_model.sha256").unlink()
    (copy / "prlhf.json").write_text(json.dumps(about))
    old = load_policy(copy, "cpu", users=["u3"])
    assert old.index_of() == whole.index_of()
    assert torch.equal(vectors(old, [0, 3, 1500]), vectors(whole, [0, 3, 1500]))


# ---- what is read ----


def test_only_blocks_of_the_row_are_read(individual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    checked = blocks.CheckedFile._checked

    def counted(self: Any, number: int) -> bytes:
        read.append(number)
        return checked(self, number)

    monkeypatch.setattr(blocks.CheckedFile, "_checked", counted)
    load_policy(individual, "cpu", users=["u1000"])
    assert set(read) == {0, *range(row_at(individual, 1000) // BLOCK, (row_at(individual, 1001) - 1) // BLOCK + 1)}


def test_a_table_larger_than_memory(tmp_path: Path, copy: Path) -> None:
    """64 GiB, of which the file system stores a few blocks and a reader has none but the last user's."""
    header = {"generic": [2, 32], "offsets.weight": [2**28, 64]}
    ends, at = {}, 0
    for name, (rows, width) in header.items():
        ends[name] = (at, at + 4 * rows * width)
        at = ends[name][1]
    text = json.dumps(
        {n: {"dtype": "F32", "shape": shape, "data_offsets": ends[n]} for n, shape in header.items()}
    ).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
        file.seek(-4, 2)
        file.write(torch.tensor([1.5]).numpy().tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sums = AnySum(path)
    found = blocks.read_rows(path, sums, {"offsets.weight": blocks.RowSelection([5, 2**28 - 1], 2**28)})
    assert found["offsets.weight"][:, -2:].tolist() == [[0, 0], [0, 1.5]]
    assert found["generic"].shape == (2, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


class AnySum(list[str]):
    """The checksums of a file, taken as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, number: Any) -> Any:
        import hashlib

        with self.path.open("rb") as file:
            file.seek(number * BLOCK)
            return hashlib.sha256(file.read(BLOCK)).hexdigest()


# ---- generating ----


@pytest.mark.parametrize("who", ["u1000", "u1000,generic", "generic"])
def test_generating_for_one_user_is_as_with_all_users(
    individual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("my boss lost boats\n")
    rows = {}
    for name, wanted in (("some", None), ("whole", "all")):
        if wanted:  # as if a group were asked for
            monkeypatch.setattr("prlhf.generate.writer.named_users", lambda config: None)
        out = tmp_path / f"{name}.jsonl"
        generate(individual, GenerateConfig(prompts=str(prompts), users=who, out=out, max_new_tokens=6, device="cpu"))
        rows[name] = out.read_text()
    assert rows["some"] == rows["whole"]
    assert [json.loads(line)["user_index"] for line in rows["some"].splitlines()] == [
        1000 if name == "u1000" else 0 for name in who.split(",")
    ]


def test_an_unknown_user_of_many(individual: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("my boss lost boats\n")
    config = GenerateConfig(prompts=str(tmp_path / "p.txt"), users="u1501", out=tmp_path / "o.jsonl", device="cpu")
    with pytest.raises(PrlhfError, match="user 'u1501' is unknown to this model"):
        generate(individual, config)
    generate(individual, config.model_copy(update={"unknown_as_generic": True, "max_new_tokens": 3}))
    assert json.loads((tmp_path / "o.jsonl").read_text())["user_index"] == 0


# ---- damage ----


def refusal(folder: Path, users: list[str] | None) -> str:
    with pytest.raises(PrlhfError) as error:
        load_policy(folder, "cpu", users=users)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_changed_row_is_noticed_when_it_is_read(copy: Path) -> None:
    path = copy / "user_model.safetensors"
    flip(path, row_at(copy, 1000) + 5)
    assert f"{path} was changed or cut short" in refusal(copy, ["u1000"])
    assert f"{path} was changed or cut short" in refusal(copy, None)
    assert load_policy(copy, "cpu", users=["u1"]).index_of() == {"u1": 1}  # elsewhere in the file


@pytest.mark.parametrize("users", [["u1"], None])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw + b"\0",
        lambda raw: raw[:2] + bytes([raw[2] ^ 1]) + raw[3:],
        lambda raw: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
    ],
    ids=["half", "empty", "longer", "length", "header"],
)
def test_damaged_blocks(copy: Path, users: list[str] | None, damage: Callable[[bytes], bytes]) -> None:
    path = copy / "user_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} was changed or cut short" in refusal(copy, users)


@pytest.mark.parametrize("users", [["u1"], None])
@pytest.mark.parametrize("name", ["user_model.safetensors", "user_model.sha256"])
def test_missing_files(copy: Path, users: list[str] | None, name: str) -> None:
    (copy / name).unlink()
    assert f"lacks {name}" in refusal(copy, users)


def test_checksums_that_were_changed(copy: Path) -> None:
    flip(copy / "user_model.sha256", 3)
    assert "user_model.sha256 was changed or cut short" in refusal(copy, ["u1"])


@pytest.mark.parametrize("users", [["u1"], None])
@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"x" * 4096])
def test_a_damaged_index(copy: Path, users: list[str] | None, content: bytes) -> None:
    (copy / "users.sqlite").write_bytes(content)
    assert "users.sqlite is damaged" in refusal(copy, users)


@pytest.mark.parametrize("users", [["u1"], None])
def test_fewer_users_than_rows(copy: Path, users: list[str] | None) -> None:
    with sqlite3.connect(copy / "users.sqlite") as database:
        database.execute("DELETE FROM users WHERE position = 1500")
    database.close()
    assert "damaged" in refusal(copy, users)


def test_the_index_leaves_nothing_beside_it(copy: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    read_users(copy, ["u1"])
    assert sorted(path.name for path in copy.iterdir()) == before
