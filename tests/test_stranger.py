"""tests/package adds an extension of each kind to prlhf, as CONTRIBUTING says, and runs every stage with them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prlhf import extensions
from prlhf.config import GenerateConfig, JudgeConfig, PrepConfig, TrainConfig
from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError
from prlhf.extensions import Registry
from prlhf_cli.main import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests/package"
KINDS: list[Registry[Any]] = [each for each in vars(extensions).values() if isinstance(each, Registry)]

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test registers is not there for the next."""
    extensions._installed.cache_clear()
    yield
    extensions._installed.cache_clear()
    for kind in KINDS:
        kind._found = {name: extension for name, extension in kind._found.items() if name in kind.ours}
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))


@pytest.fixture
def entry_points() -> ConfigParser:
    found = ConfigParser()
    found.read(PACKAGE / "stranger-1.0.dist-info/entry_points.txt")
    return found


@pytest.fixture
def prlhf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """prlhf("train", …): what --json says, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*args: Any) -> Any:
        done = CliRunner().invoke(app, [*map(str, args), "--json"])
        assert done.exit_code == 0, (done.stderr, done.exception)
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.usefixtures("installed")
def test_every_stage_with_extensions_alone(prlhf: Run, tiny_base: Path) -> None:
    prepared = prlhf("prep", "signs", "--users", 3, "--out", "d")
    assert (prepared["dataset"], prepared["users"]["seen"]) == ("signs", 3)

    train = ["train", "--dataset", "d", "--model", tiny_base, "--out", "r", "--user-model", "shared-rank", "--k", 2]
    train += ["--user-tokens", 2, "--user-lr", 0.3, "--alpha", 0.8, "--loss", "squared-hinge"]
    train += ["--label-smoothing", 0.1, "--lora-r", 2, "--nll", 0, "--max-steps", 3]
    plan = prlhf(*train, "--dry-run")
    assert plan["parameters"]["user_model"] == (2 + 2 * 2) * 32 + 3 * 2  # e_0 and B of width 32, and a_i of three users
    run = prlhf(*train)
    assert run["steps"] == 3
    assert run["eval"]["accuracy_by_user"].keys() == {"u0", "u1", "u2"}
    about = Path("r/model/README.md").read_text()
    assert "loss = squared-hinge, label smoothing = 0.1" in about
    first = json.loads(Path("r/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(1.0, abs=0.05)  # D is near 0, where DPO's loss is 0.69

    short = ["--max-new-tokens", 6, "--temperature", 0, "--users", "all"]
    assert prlhf("generate", "r", *short, "--out", "ours.jsonl")["users"] == 4  # with the generic user
    assert prlhf("generate", "r", *short, "--baseline", "named", "--out", "named.jsonl")["responses"] == 8
    ours, named = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("ours.jsonl", "named.jsonl")
    )
    assert {row["settings"]["baseline"] for row in named} == {"named"}
    assert len({row["response"] for row in named if row["prompt"] == named[0]["prompt"]}) > 1  # each saw another name

    judged = prlhf("judge", "ours.jsonl", "named.jsonl", "--judge", "letter:e", "--out", "j")
    assert judged["judge"] == "letter:e"
    letters = [
        {(row["prompt_id"], row["user_id"]): row["response"].count("e") for row in side} for side in (ours, named)
    ]
    more = [count - letters[1][key] for key, count in letters[0].items() if key[1] != GENERIC]
    assert (judged["wins"], judged["losses"]) == (sum(n > 0 for n in more), sum(n < 0 for n in more))
    assert judged["n_samples"] == 6 > judged["ties"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: TrainConfig(user_model="shared-rank", cluster_lr=0.1),
            "not used with user_model = shared-rank; leave cluster_lr out, or set user_model to cluster",
        ),
        (
            lambda: TrainConfig(user_model="shared-rnak"),
            "user_model = 'shared-rnak' is not known; did you mean 'shared-rank'?",
        ),
        (lambda: TrainConfig(loss="squared-hing"), "did you mean 'squared-hinge'?"),
        (
            lambda: GenerateConfig(baseline="named", examples=2),
            "examples = 2 is not used with baseline = named; leave examples out, or set baseline to in-context",
        ),
        (lambda: PrepConfig(dataset="signs", noise=0.1), "noise = 0.1 is not used with dataset = signs"),
    ],
)  # fmt: skip
def test_what_an_extension_does_not_read_is_refused(build: Run, said: str) -> None:
    with pytest.raises(PrlhfError) as caught:
        build()
    assert said in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_what_an_extension_reads_is_accepted() -> None:
    assert TrainConfig(user_model="shared-rank", k=3).k == 3
    assert TrainConfig(loss="squared-hinge", label_smoothing=0.1).label_smoothing == 0.1
    assert GenerateConfig(baseline="named", users="u1", max_new_tokens=3).baseline == "named"
    assert PrepConfig(dataset="signs", users=3).users == 3


def test_a_decorator_is_enough_in_a_process(monkeypatch: pytest.MonkeyPatch, entry_points: ConfigParser) -> None:
    """Without entry points, as in a notebook: whoever imports the files has the names, and others do not."""
    from prlhf.data import find_loader
    from prlhf.generate.baselines import baseline_of
    from prlhf.judge.judges import find_judges
    from prlhf.model.user_models import user_model_of
    from prlhf.train.losses import preference_loss

    with pytest.raises(PrlhfError, match="loss = 'squared-hinge' is not known"):
        TrainConfig(loss="squared-hinge")
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.setattr(extensions, "_installed", lambda group: {})
    modules = {
        name: importlib.import_module(value.partition(":")[0])
        for group in entry_points.sections()
        for name, value in entry_points.items(group)
    }
    config = TrainConfig(user_model="shared-rank", loss="squared-hinge", label_smoothing=0.25)
    assert user_model_of(config) is modules["shared-rank"].SharedRank
    lengths = torch.full((2, 1), 4)
    loss = preference_loss(config.loss, torch.tensor([[8.0], [0.0]]), lengths, 0.25, config.label_smoothing)
    assert loss.item() == pytest.approx(0.75 * 0.5**2 + 0.25 * 1.5**2)  # beta D = 0.25 x 8 / 4
    assert isinstance(baseline_of(GenerateConfig(baseline="named")), modules["named"].Named)
    assert isinstance(find_judges(JudgeConfig(judge="letter:s"))["letter:s"], modules["letter"].Letter)
    assert find_loader("signs") is modules["signs"].load


def test_the_table_of_contributing_names_what_the_package_does(entry_points: ConfigParser) -> None:
    """One kind of extension, one group of entry points, one decorator in one file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {kind.group for kind in KINDS} == set(entry_points.sections())
    for kind in KINDS:
        assert f"`{kind.group}`" in text
        ((name, value),) = entry_points.items(kind.group)
        decorator = f'@{kind.kind.replace(" ", "_")}("{name}"'
        source = PACKAGE / f"{value.partition(':')[0].replace('.', '/')}.py"
        assert decorator in source.read_text(encoding="utf-8")
        row = next(line for line in text.splitlines() if line.startswith(f"| a {kind.kind}"))
        assert f'`@{kind.kind.replace(" ", "_")}("NAME")`' in row
