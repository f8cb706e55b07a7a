"""Every command follows one rule before it writes: existing files are unchanged afterwards, byte for byte."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf import files
from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir, atomic_file
from prlhf.folders import KINDS, claim, mark, replacing, unmark, what_is

OF_01: dict[str, dict[str, str]] = {  # the files of version 0.1 that show the kind
    "dataset": {
        "manifest.json": json.dumps({"dataset": "demo", "format": "plain", "content_hash": "0" * 64}),
        **dict.fromkeys(("train.parquet", "eval.parquet", "users.parquet"), ""),
    },
    "run": {"recipe.yaml": f"# prlhf train --recipe r/recipe.yaml --out NEW\n# data: {'0' * 64}\ntrain: {{}}\n"},
    "sweep": {"recipe.yaml": "# prlhf sweep\n# go on with: prlhf sweep --resume --out s\nsweep: {}\n"},
    "judgement": {"results.json": json.dumps({"judge": "rule:longer", "seed": 0, "per_sample": {}})},
    "responses": {
        "manifest.json": json.dumps(
            {"format": "jsonl", "shards": 1, "block": 1, "responses": 1, "pairs": "a", "settings": {"weights": "b"}}
        )
    },
    "model": {"model.safetensors": "", "config.json": json.dumps({"model_type": "llama"})},
}
FOREIGN = {
    **{name: {name: '{"name": "an extension"}'} for name in ("manifest.json", "results.json", "prlhf.json")},
    "list": {"manifest.json": "[1]", "results.json": "[]", "prlhf.json": "[]"},
    "recipe": {"recipe.yaml": "cake: {flour: 1}\n"},
    "model": {"model/weights.bin": "w", "checkpoints/mine": "c"},
    "hidden": {".gitkeep": ""},
    "shards": {"part-00000.parquet": "p"},
    "metrics": {"metrics.jsonl": "{}\n", "verdicts.jsonl": "{}\n", "report.html": "<p>"},
    "data": {"data/notes.txt": "n"},
}
COMMANDS = {
    "dataset": ["prep", "demo", "--users", "2", "--comparisons", "1"],
    "run": ["train", "--dataset", "{data}", "--model", "tiny"],
    "judgement": ["judge", "{a}", "{a}"],
    "sweep": ["sweep", "--set", "dataset={data}", "--space", "alpha=0.5"],
    "demo": ["demo"],
    "responses": ["generate", "{data}"],
}
OTHERS = {
    "train per user": ("run", ["train", "--dataset", "{data}", "--model", "tiny", "--per-user"]),
    "train on Ray": ("run", ["train", "--dataset", "{data}", "--model", "tiny", "--workers", "1"]),
    "judge a run": ("judgement", ["judge", "--checkpoint", "{data}", "--dataset", "{data}"]),
    "calibrate": ("judgement", ["judge", "--calibrate", "{data}"]),
    "dry run": ("run", ["train", "--dry-run", "--dataset", "{data}", "--model", "tiny"]),
}
ALL = {**{kind: (kind, words) for kind, words in COMMANDS.items()}, **OTHERS}


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"/" for p in folder.rglob("*")}


def asked(words: list[str], out: Path, tmp_path: Path, prepared: Path) -> tuple[int, str]:
    from typer.testing import CliRunner

    from prlhf_cli.main import app

    places = {"data": prepared, "a": tmp_path / "a.jsonl"}
    done = CliRunner().invoke(app, [*(word.format(**places) for word in words), "--out", str(out)])
    return done.exit_code, done.stderr


@pytest.mark.parametrize("command", ALL)
def test_nothing_that_is_there_is_touched(command: str, tmp_path: Path, prepared: Path) -> None:
    kind, words = ALL[command]
    places = {f"0.1 {name}": files for name, files in OF_01.items() if name != kind}
    places |= {f"marked {name}": {"prlhf.json": json.dumps({"kind": name, "version": 1})} for name in KINDS}
    del places[f"marked {kind}"]
    places |= {f"foreign {name}": files for name, files in FOREIGN.items()}
    if KINDS[kind].replaced:
        places["ours with a stranger"] = OF_01[kind] | {"thesis.txt": "years of work"}
    if KINDS[kind].resumed:
        places["ours without --resume"] = OF_01[kind]
    for name, content in places.items():
        out = lay(tmp_path / name, content)
        before = contents(out)
        code, said = asked(words, out, tmp_path, prepared)
        assert (code, said.count("\n")) == (2, 1), f"{command}, {name}: {said}"
        assert str(out) in said, f"{command}, {name}: {said}"
        assert contents(out) == before, f"{command}, {name}: {said}"


@pytest.mark.parametrize("command", ALL)
def test_odd_places_are_one_line(command: str, tmp_path: Path, prepared: Path) -> None:
    lay(tmp_path, {"file": "kept"})
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(lay(tmp_path / "thesis", {"chapter": "1"}))
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    before = contents(tmp_path)
    for out in ("file", "file/below", "dangling", "link", "loop", "x" * 300, "/"):
        code, said = asked(ALL[command][1], tmp_path / out, tmp_path, prepared)
        assert (code, said.count("\n")) == (2, 1), f"{command}, {out}: {said}"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", OF_01)
def test_legacy_folders_are_known_by_what_they_hold(kind: str, tmp_path: Path) -> None:
    assert what_is(lay(tmp_path / "old", OF_01[kind])) == kind


@pytest.mark.parametrize("name", FOREIGN)
def test_names_alone_tell_nothing(name: str, tmp_path: Path) -> None:
    assert what_is(lay(tmp_path / "other", FOREIGN[name])) is None


def test_one_of_the_same_kind_is_replaced_with_what_is_ours(tmp_path: Path) -> None:
    for name in ("results.json", "report.html"):
        with replacing(tmp_path / "j", "judgement") as folder:
            (folder / name).write_text("{}")
    assert sorted(contents(tmp_path / "j")) == ["prlhf.json", "report.html"]
    (tmp_path / "j/verdicts.jsonl").write_text("mine")  # a file with one of our names that we did not write
    with pytest.raises(PrlhfError, match=r"with verdicts\.jsonl in it, which prlhf did not write"):
        claim(tmp_path / "j", "judgement")


def test_a_start_that_came_to_nothing_may_be_made_again(tmp_path: Path) -> None:
    mark(tmp_path / "r", "run")
    assert claim(tmp_path / "r", "run", resume=False) is False
    unmark(tmp_path / "r", ["recipe.yaml"])
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_replaced_holds_no_other_and_no_input(tmp_path: Path) -> None:
    lay(tmp_path / "d", OF_01["dataset"])
    with pytest.raises(PrlhfError, match=r"lies in .*/d, a prepared data set"):
        claim(tmp_path / "d/run", "run")
    with pytest.raises(PrlhfError, match="which would be replaced"):
        claim(tmp_path / "d", "dataset", inputs=[tmp_path / "d/train.parquet"])


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        with pytest.raises(PrlhfError):
            claim(Path(out), "dataset")


# ---- leftovers ----


def gone_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead, alive = f".x.{gone_pid()}.partial", f".x.{os.getppid()}.partial"
    lay(tmp_path, {f"{dead}/a": "", f"{alive}/a": "", ".y.1.txt": "", ".x.partial": ""})
    with atomic_dir(tmp_path / "x"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([alive, ".x.partial", ".y.1.txt", "x"])


def test_what_is_being_written_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_alive", lambda pid: False)  # as if of a process on another machine
    with atomic_dir(tmp_path / "x") as beside:
        monkeypatch.setattr(files.os, "getpid", lambda: 1)
        assert files.leftovers(tmp_path / "x") == []
        assert beside.is_dir()


def test_an_old_folder_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    old = lay(tmp_path / f".j.{gone_pid()}.old", OF_01["judgement"])
    assert claim(tmp_path / "j", "judgement") is True
    assert contents(tmp_path / "j")
    assert not old.exists()


# ---- errors of other files ----


def read_elsewhere(beside: Path) -> None:
    (beside.parent.parent / "missing").read_text()


def full(beside: Path) -> None:
    raise OSError(28, "No space left on device")


def rust(beside: Path) -> None:
    raise RuntimeError("I/O error: File too large (os error 27)")


@pytest.mark.parametrize(
    ("body", "expected"),
    [(read_elsewhere, FileNotFoundError), (full, "No space left"), (rust, "File too large")],
)
def test_a_full_disk_differs_from_other_errors(body: Callable[[Path], None], expected: object, tmp_path: Path) -> None:
    kind = PrlhfError if isinstance(expected, str) else expected
    with pytest.raises(kind) as caught, atomic_file(tmp_path / "a/x") as beside:  # type: ignore[call-overload]
        body(beside)
    assert not isinstance(expected, str) or f"cannot write {tmp_path}/a/x: {expected}" in str(caught.value)
    shutil.rmtree(tmp_path / "a", ignore_errors=True)


# ---- data prepared with other options, and default folders ----


def typed(line: str) -> tuple[int, str]:
    """Run a command line; returns its exit code and errors."""
    from typer.testing import CliRunner

    from prlhf_cli.main import app

    done = CliRunner().invoke(app, shlex.split(line)[1:])
    return done.exit_code, done.stderr


def test_data_made_with_other_options_are_not_used_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prlhf.data import locate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("prep: {dataset: demo, users: 3, comparisons: 2}\ntrain: {max_steps: 1}\n")
    assert typed("prlhf prep demo --users 2 --comparisons 1")[0] == 0
    train = "prlhf train --dry-run --recipe r.yaml --dataset"
    code, said = typed(f"{train} demo")
    command = "prlhf prep demo --users 3 --comparisons 2 --out data/demo-2"
    assert "data/demo was prepared with users = 2, not 3; " in said
    assert f"run `{command}` and add --dataset data/demo-2, or add --dataset data/demo to use it as it is" in said
    assert typed(f"{train} data/demo")[0] == 0
    assert typed(command)[0] == 0
    assert typed(f"{train} data/demo-2")[0] == 0
    code, said = typed(f"{train} demo")
    assert code == 2
    assert "not 3; add --dataset data/demo-2, or" in said
    assert locate("demo", {"prep": {"dataset": "demo", "users": 2, "comparisons": 1}}) == Path("data/demo")
    code, said = typed("prlhf sweep --recipe r.yaml --space alpha=0.5 --set dataset=demo")
    assert "add --set dataset=data/demo-2, or add --set dataset=data/demo to" in said


def test_every_setting_of_prep_can_be_typed() -> None:
    from typer.main import get_command

    from prlhf.config import PrepConfig
    from prlhf.recipes import option_of
    from prlhf_cli.main import app

    group: Any = get_command(app)
    has = {option for param in group.commands["prep"].params for option in param.opts + param.secondary_opts}
    keys = PrepConfig.model_fields.keys() - {"dataset", "columns"}  # custom data, which have no known name
    assert {option for key in keys for option in option_of(PrepConfig, key).split("/")} <= has


def rows_of(path: Path, user: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"p{i}", "chosen": "a b", "rejected": "a", "user_id": user} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_default_folder_keeps_the_data_of_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = rows_of(tmp_path / "x/prefs.jsonl", "ann"), rows_of(tmp_path / "y/prefs.jsonl", "bob")
    assert typed("prlhf prep x/prefs.jsonl")[0] == 0
    before = contents(tmp_path / "data")
    code, said = typed("prlhf prep y/prefs.jsonl")
    assert (code, said.count("\n")) == (2, 1)
    assert f"data/prefs-jsonl holds the data of {x}, not of {y}; add --out data/prefs-jsonl-2, or" in said
    assert contents(tmp_path / "data") == before
    for again in ("x/prefs.jsonl", "./x/prefs.jsonl", str(x)):
        assert typed(f"prlhf prep {again}")[0] == 0, again
    for words in ("--seed 1", "--skip-bad", "--eval-fraction 0.5"):
        code, said = typed(f"prlhf prep x/prefs.jsonl {words}")
        assert (code, said.count("\n")) == (2, 1), words
        assert "was prepared with " in said
    assert typed("prlhf prep y/prefs.jsonl --out data/prefs-jsonl-2")[0] == 0
    assert typed("prlhf prep y/prefs.jsonl --out data/prefs-jsonl")[0] == 0  # given explicitly
    (tmp_path / "data/prefs-jsonl/manifest.json").write_text("{")
    assert typed("prlhf prep x/prefs.jsonl")[0] == 0  # damaged data may be replaced


def test_default_places_of_two_sources_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prlhf.config import PrepConfig

    monkeypatch.chdir(tmp_path)
    lay(tmp_path, {"prefs.jsonl": "", "prefs.csv": "", "prefs/a.jsonl": ""})
    sources = ["alice/prefs", "bob/prefs", "org/prefs-v1.5", "org/prefs-v1", "prefs.jsonl", "prefs.csv", "prefs"]
    folders = [str(PrepConfig(dataset=source).folder) for source in sources]
    assert folders == [
        "data/alice-prefs", "data/bob-prefs", "data/org-prefs-v1.5", "data/org-prefs-v1",
        "data/prefs-jsonl", "data/prefs-csv", "data/prefs",
    ]  # fmt: skip


@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_the_home_folder_in_settings(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prlhf.config import JudgeConfig, TrainConfig

    monkeypatch.setenv("HOME", "/home/ann")
    config = TrainConfig(out=Path(f"{home}/r"), dataset=f"{home}/d")
    assert (config.folder, config.dataset) == (Path("/home/ann/r"), "/home/ann/d")
    assert JudgeConfig(judge=f"reward:{home}/r,oracle:{home}/d").judge == "reward:/home/ann/r,oracle:/home/ann/d"
    assert TrainConfig(dataset="a~/b").dataset == "a~/b"


HOME = {
    "generate RUN": "generate ~/run --out ~/new.jsonl --users generic --max-prompts 1 --max-new-tokens 1",
    "generate --reward": "generate ~/run --out $HOME/new.jsonl --users generic --max-prompts 1 --max-new-tokens 1 "
    "--best-of 2 --reward ~/run --dataset ${HOME}/data",
    "generate --prompts": "generate ~/run --prompts ~/p.txt --out ~/new.jsonl --users generic --max-new-tokens 1",
    "judge A B": "judge ~/a.jsonl $HOME/a.jsonl --judge rule:shorter,reward:~/run --out ~/judged",
    "judge --checkpoint": "judge --checkpoint ~/run --dataset ~/data --out ~/judged",
    "judge --calibrate": "judge --calibrate ~/data --judge rule:shorter --recipe ~/r.yaml --set out=~/judged",
    "prep --source": "prep psoups --source ~/nowhere",
    "sweep --against": "sweep --against ~/nowhere --metric judge/winrate --judge rule:shorter "
    "--set dataset=~/data --space alpha=0.5 --out ~/sweep",
    "train --recipe": "train --dry-run --recipe ~/r.yaml --model ~/nowhere --dataset ~/data",
}


@pytest.mark.parametrize("name", HOME)
def test_the_home_folder_on_the_command_line(
    name: str, tmp_path: Path, prepared: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setenv("HOME", str(tmp_path))
    lay(tmp_path / "cwd", {"x": ""})
    monkeypatch.chdir(tmp_path / "cwd")
    for link, to in (("run", trained), ("data", prepared)):
        (tmp_path / link).symlink_to(to)
    prompt = pq.read_table(prepared / "eval.parquet")["prompt"][0].as_py()
    row = {"prompt": prompt, "user_id": "ann", "response": " boats."}
    lay(tmp_path, {"a.jsonl": json.dumps(row) + "\n", "p.txt": "a prompt\n", "r.yaml": "judge: {seed: 1}\n"})
    code, said = typed(f"prlhf {HOME[name]}")
    assert os.listdir(tmp_path / "cwd") == ["x"]
    if "nowhere" in HOME[name]:
        assert (code, f"{tmp_path}/nowhere" in said) == (2, True), said
    else:
        assert code == 0, said
        assert (tmp_path / "new.jsonl").exists() or (tmp_path / "judged/results.json").exists()


@pytest.mark.parametrize("damage", ["[1]", "{}", '{"content_hash": 1}', "{"])
def test_a_damaged_manifest_is_one_line(damage: str, tmp_path: Path, make_prepared: Callable[[Path], Path]) -> None:
    from prlhf.dataset import read_prepared

    folder = make_prepared(tmp_path / "d")
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(PrlhfError, match=r"manifest\.json is damaged"):
        read_prepared(folder)


@pytest.mark.parametrize("index", [-1, 4, 99])
def test_an_index_without_a_user_is_one_line(index: int, tmp_path: Path, make_prepared: Callable[[Path], Path]) -> None:
    spoil(make_prepared(tmp_path / "d") / "train.parquet", "user_index", index)
    with pytest.raises(
        PrlhfError, match=rf"train\.parquet: user_index = {index} of the row 'train-0', and there are 3"
    ):
        read_prepared_of(tmp_path / "d")


@pytest.mark.parametrize("column", ["prompt", "chosen", "user_id", "user_index", "seen"])
@pytest.mark.parametrize("part", ["train", "eval"])
def test_an_empty_cell_is_one_line(
    part: str, column: str, tmp_path: Path, make_prepared: Callable[[Path], Path]
) -> None:
    spoil(make_prepared(tmp_path / "d") / f"{part}.parquet", column, None)
    with pytest.raises(PrlhfError, match=rf"{part}\.parquet has an empty cell in the column '{column}'"):
        read_prepared_of(tmp_path / "d")


def spoil(path: Path, column: str, value: object) -> None:
    """Put `value` into the column `column` of the first row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def read_prepared_of(folder: Path) -> object:
    from prlhf.dataset import read_prepared

    return read_prepared(folder)


def test_a_card_names_no_place_on_this_machine(trained: Path, tiny_base: Path, prepared: Path) -> None:
    card = (trained / "model/README.md").read_text()
    assert not [place for place in (tiny_base, prepared, trained) if str(place.parent) in card]
    assert f"- Base: `{tiny_base.name}` (" in card
    assert "base_model" not in card  # otherwise a name on the hub
    assert f"- Data: `{prepared.name}`" in card
