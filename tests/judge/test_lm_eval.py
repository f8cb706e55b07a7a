"""General ability beside lm-evaluation-harness itself, where it is installed: the same files, the same readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from prlhf.config import JudgeConfig
from prlhf.export.run import export
from prlhf.generate.readers import Reader
from prlhf.judge.general.items import read_general
from prlhf.judge.general.likelihoods import Ids
from prlhf.judge.general.run import judge_general
from prlhf.model.checkpoint import load_policy
from prlhf.model.rewards import engine_of
from prlhf.progress import SILENT
from prlhf.train.run import train

lm_eval = pytest.importorskip("lm_eval", reason="it compares with the package lm-eval")

MakeConfig = Callable[..., Any]
Row = dict[str, Any]
TASKS = Path(lm_eval.__file__).parent / "tasks"
QUERIES = {
    "output_type": "multiple_choice",
    "doc_to_text": "query",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TEXTS = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
LAYOUTS: dict[str, tuple[Row, list[Row]]] = {  # task -> (its settings, rows that it reads)
    "arc": (
        {"include": str(TASKS / "arc/arc_easy.yaml")},
        [
            {"question": "who sold boats?", "choices": {"text": ["my sister", "my boss and my uncle", "the nurse"],
             "label": ["A", "B", "C"]}, "answerKey": "B"},
            {"question": "what did she hide?", "choices": {"text": ["rings", "a vase", "42 €", "no"],
             "label": ["1", "2", "3", "4"]}, "answerKey": "4"},
        ],
    ),
    "hellaswag": (
        {"include": str(TASKS / "hellaswag/hellaswag.yaml")},
        [
            {"activity_label": "Boats", "ctx_a": "my boss sold boats.", "ctx_b": "the Nurse",
             "ctx": "my boss sold boats. the Nurse", "label": "2",
             "endings": ["found cars.", "lost lamps.", "hid rings.", "moved."]},
            {"activity_label": "Home", "ctx_a": "[header] how to sell a boat [title] find  a pilot. [step] he moved.",
             "ctx_b": "", "ctx": "[header] how to sell a boat [title] find  a pilot. [step] he moved.", "label": "0",
             "endings": ["[substeps] he lost it.", "he hid [title] rings.", "no.", "my sister found the clocks."]},
        ],
    ),
    "queries": (
        QUERIES,
        [
            {"query": "my uncle lost", "choices": ["cars.", "boats and lamps and rings."], "gold": 0},
            {"query": "my sister", "choices": ["found doors.", "broke", "fixed my tables"], "gold": 2},
        ],
    ),
    "spaces": (
        QUERIES | {"target_delimiter": ""},
        [
            {"query": "my uncle lost ", "choices": ["cars.", "boats and lamps and rings."], "gold": 0},
            {"query": "my boss sold:\n", "choices": ["cars.", "lamps and rings."], "gold": 1},
        ],
    ),
    "texts": (
        TEXTS,
        [
            {"text": "my boss sold boats. my uncle lost cars."},
            {"text": "  a café,\n\n 42 € — the nurse hid lamps. "},
            {"text": "my boss sold boats. my uncle lost cars. the nurse hid lamps. " * 13},
        ],
    ),
}  # fmt: skip


class Theirs(NamedTuple):
    """What lm-evaluation-harness makes of a task: its metrics, and of each row the log-probs of choices or a text."""

    metrics: dict[str, float]
    log_probs: list[list[float]]


def theirs(folder: Path, task: str, **model: Any) -> Theirs:
    """A task of LAYOUTS, written into `folder` and run by lm-evaluation-harness with its model `hf`."""
    import datasets
    from lm_eval.tasks import TaskManager

    settings, rows = LAYOUTS[task]
    data = folder / f"{task}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"training_split": None, "validation_split": None, "test_split": "train"}
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": str(data)}}
    (folder / f"{task}.yaml").write_text(json.dumps(settings | splits | source | {"task": f"local_{task}", "tag": []}))
    datasets.disable_progress_bars()
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"dtype": "float32"} | model,
        tasks=[f"local_{task}"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    values = [
        [one[0] if isinstance(one, tuple | list) else one for one in sample["filtered_resps"]]
        for sample in sorted(found["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    ]
    metrics = found["results"][f"local_{task}"]
    return Theirs({name.removesuffix(",none"): value for name, value in metrics.items()}, values)


class Person(NamedTuple):
    """Someone of a run, and the arguments with which lm-evaluation-harness reads them."""

    run: Path
    user: str  # "base": the base alone
    model: dict[str, Any]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, tiny_base: Path) -> dict[str, Person]:
    """The base alone, users with gates, and a user with vectors, each exported for PEFT."""
    folder = tmp_path_factory.mktemp("people")
    settings = {"user_text": False, "max_steps": 20}
    base = {"pretrained": str(tiny_base)}
    room = 127  # tokens: the context less the last one, which lm-eval does not count
    found = {}
    for place in ("adapter", "prompt"):
        train(make_config(folder / place, user_in=place, **settings))
        export(folder / place, ["ann", "generic"], "peft", folder / f"{place}-peft", None, False, SILENT)
    adapters, vectors = folder / "adapter-peft", folder / "prompt-peft"
    for user in ("ann", "generic"):
        found[f"gates of {user}"] = Person(
            folder / "adapter", user, base | {"peft": str(adapters / user), "max_length": room}
        )
    found["base"] = Person(folder / "adapter", "base", base | {"max_length": room})
    found["vectors of ann"] = Person(
        folder / "prompt", "ann",
        {"pretrained": str(vectors / "model"), "peft": str(vectors / "users/ann"), "max_length": room - 2},
    )  # fmt: skip
    return found


def ours(person: Person, path: Path) -> list[list[float]]:
    """Log-probs of choices, or of a text, of each row of a file."""
    policy = load_policy(person.run, "cpu")
    index = policy.index_of().get(person.user, 0)
    reader, ids, engine = Reader(person.user, index, ""), Ids(policy.encoder()), engine_of(policy)
    values = engine.reference if person.user == "base" else engine.values
    policy.model.eval()
    questions, documents = read_general(path)
    with torch.no_grad():
        choices = [values(ids.choices(one, reader)).tolist() for one in questions]
        return choices + [[values(ids.windows(one, reader)).sum().item()] for one in documents]


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("name", ["base", "gates of ann", "gates of generic", "vectors of ann"])
def test_log_probs_and_measures_are_theirs(name: str, task: str, people: dict[str, Person], tmp_path: Path) -> None:
    person = people[name]
    expected = theirs(tmp_path, task, **person.model)
    data = tmp_path / f"{task}.jsonl"
    assert ours(person, data) == [pytest.approx(row, rel=1e-4) for row in expected.log_probs]
    config = JudgeConfig(out=tmp_path / "judged", general=data, bootstrap=2, device="cpu", general_users=9)
    found = judge_general(person.run, config)
    measures = (found.readings | found.by_user)[person.user]
    names = expected.metrics.keys() & {"acc", "acc_norm", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert {key: measures[key]["value"] for key in names} == pytest.approx(
        {key: expected.metrics[key] for key in names}, rel=1e-4
    )
    assert names
