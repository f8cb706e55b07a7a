"""Raw rows for every data set of `prlhf prep`: damaged files, and with hypothesis any JSON value in any place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from few_shot_raw import rated, rewardbench_rows, scored  # tests/data/
from hypothesis import strategies as st
from prism_raw import JSON, SURVEY, talk, turn  # tests/data/

from benchmarks.fuzz import damage
from benchmarks.fuzz.cases import Case, Wrong
from benchmarks.fuzz.kinds.material import Material, lines

CUSTOM = [
    {
        "user_id": user,
        "prompt": f"Why {i}?",
        "chosen": "Because.",
        "rejected": "No idea.",
        "user_text": "",
        "id": f"r{i}",
    }
    for i, user in enumerate(("ann", "bob", "ann", "cy", "bob", "ann"))
]
TALKS = [
    row
    | {
        name: [{"role": role, "content": row[name]}]
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    }
    for row in CUSTOM
]
TLDR = [
    {
        "info": {"id": "t3_1", "post": f"My post {i}.", "title": "A title", "subreddit": "tifu", "article": None},
        "summaries": [{"text": " a long one", "policy": "sup1", "note": None}, {"text": " short", "policy": "sup4"}],
        "choice": i % 2,
        "worker": f"w{i % 3}",
        "split": "train",
    }
    for i in range(6)
]
PROFILES = {
    "P1A": "elementary",
    "P1B": "PhD",
    "P2A": "concise",
    "P2B": "informative",
    "P3A": "witty",
    "P3B": "unfriendly",
}
PSOUPS = {
    profile: [
        {
            "user_input": f"Question {i}? Generate a response that is {word}.",
            "completion_a": "good",
            "completion_b": "bad",
        }
        for i in range(4)
    ]
    for profile, word in PROFILES.items()
}
SURVEYS = [SURVEY | {"user_id": user} for user in ("ann", "bob", "cy")]
DIALOGUES = [
    talk(f"c{i}", user, turn(0, "yes", "no"), turn(1, "perhaps", "never", "always", chosen=i % 3))
    for i, user in enumerate(("ann", "bob", "ann", "cy", "bob", "cy"))
]
FEW_SHOT: dict[str, dict[str, list[dict[str, Any]]]] = {
    "personalllm": {name: [scored(n) for n in range(6)] for name in ("train", "test")},
    "personalrewardbench": rewardbench_rows(),
    "ultrafeedback": {"flan": [rated(n) for n in range(6)]},
}
SMALL: dict[str, dict[str, Any]] = {  # settings with which a few rows are enough
    "personalllm": {"users": 4, "comparisons": 2, "shots": 1},
    "personalrewardbench": {},
    "ultrafeedback": {"shots": 1},
}
OPTIONS: list[dict[str, Any]] = [
    {}, {"bad_rows": "skip"}, {"eval_fraction": 0}, {"eval_fraction": 0.9}, {"seed": 7}, {"top_users": 1},
    {"simulate": "length"}, {"unseen_fraction": 0.9}, {"prefs": "order"}, {"text": True}, {"judging_users": 0},
]  # fmt: skip


def custom(rng: Random, work: Path, material: Material) -> Case:
    form = rng.choice(["jsonl", "jsonl", "json", "parquet", "folder", "csv"])
    rows = rng.choice([CUSTOM, TALKS])
    path = work / f"mine.{form}"
    if form == "folder":
        path = work / "mine"
        for name in ("train", "eval"):
            _write(path / f"{name}.jsonl", rows)
        how = damage.folder(rng, path)
    else:
        _write(path, rows)
        how = damage.file(rng, path)
    options = dict(rng.choice(OPTIONS[:5]))
    if rng.random() < 0.2:
        options["columns"] = rng.choice(
            [{"user_id": "id"}, {"prompt": "nothing"}, {"wrong": "id"}, {"id": "user_id"}, {"prompt": ""}]
        )
    return _prep(str(path), work, f"{form} {how} {options}", inputs=path, **options)


def tldr(rng: Random, work: Path, material: Material) -> Case:
    for name in ("train", "validation"):
        _write(work / "raw" / f"{name}.{rng.choice(['jsonl', 'jsonl', 'json', 'parquet'])}", TLDR)
    return _known("tldr", rng, work)


def psoups(rng: Random, work: Path, material: Material) -> Case:
    for profile, rows in PSOUPS.items():
        _write(work / "raw" / "rm_training" / f"{profile}.json", rows)
    _write(work / "raw" / "koala_eval_50.json", [{"id": "0", "prompt": "Why?"}])
    return _known("psoups", rng, work)


def prism(rng: Random, work: Path, material: Material) -> Case:
    _write(work / "raw" / "survey.jsonl", SURVEYS)
    _write(work / "raw" / "conversations.jsonl", DIALOGUES)
    return _known("prism", rng, work)


def few_shot(rng: Random, work: Path, material: Material) -> Case:
    """One of the benchmarks of new users."""
    name = rng.choice(sorted(FEW_SHOT))
    for file, rows in FEW_SHOT[name].items():
        _write(work / "raw" / f"{file}.{rng.choice(['jsonl', 'parquet'])}", rows)
    return _known(name, rng, work, [SMALL[name] | more for more in ({}, {"bad_rows": "skip"}, {"seed": -7})])


def _known(name: str, rng: Random, work: Path, choices: Sequence[dict[str, Any]] = OPTIONS) -> Case:
    how = damage.folder(rng, work / "raw")
    options = rng.choice(choices)
    return _prep(name, work, f"{how} {options}", inputs=work / "raw", source=str(work / "raw"), **options)


def _write(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        names = list(rows[0])
        path.write_text(
            "\n".join([",".join(names), *(",".join(json.dumps(row[n]) for n in names) for row in rows)]) + "\n"
        )
    else:
        path.write_text(lines(rows))


def _prep(dataset: str, work: Path, about: str, inputs: Path, **options: Any) -> Case:
    from prlhf.config import PrepConfig
    from prlhf.data import prepare
    from prlhf.recipes import resolve

    out = work / "out"
    return Case(
        f"{dataset if '/' not in dataset else 'custom'}: {about}",
        lambda: prepare(resolve(PrepConfig, {"dataset": dataset, "out": out, **options})),
        [inputs],
        [out],
        lambda manifest: whole(out, manifest),
    )


def whole(out: Path, manifest: dict[str, Any]) -> None:
    """Check that the prepared data read back with the same counts, and that every row can be trained on."""
    from prlhf.dataset import content_hash, read_prepared

    data = read_prepared(out)
    if (len(data.train), len(data.eval)) != (manifest["kept"]["train"], manifest["kept"]["eval"]):
        raise Wrong("counts differ from the manifest's")
    if content_hash(data.train, data.eval, data.choices) != manifest["content_hash"]:
        raise Wrong("the content is not what the hash says")
    indices = {user.id: user.user_index for user in data.users}
    for row in (*data.train, *data.eval):
        if indices[row.user_id] != row.user_index or not row.prompt or row.chosen == row.rejected:
            raise Wrong(f"row {row.id} does not fit: {row}")


# ---- hypothesis: any JSON value in any place ----

ROWS: dict[str, Any] = {
    "custom": CUSTOM[0],
    "talks": TALKS[0],
    "tldr": TLDR[0],
    "prism": DIALOGUES[0],
    "psoups": PSOUPS["P1A"][0],
    **{name: next(iter(files.values()))[0] for name, files in FEW_SHOT.items()},
}


def any_rows(draw: Any, work: Path, material: Material) -> Case:
    """Rows in which every value may be any JSON."""
    name = draw(st.sampled_from(sorted(ROWS)))
    keys = st.sampled_from(sorted(ROWS[name]))
    changes = st.dictionaries(keys, JSON, max_size=2)
    odd = [ROWS[name] | change for change in draw(st.lists(changes, min_size=1, max_size=3))]
    odd += draw(st.lists(JSON, max_size=1))
    skip = draw(st.booleans())
    options: dict[str, Any] = {"bad_rows": "skip" if skip else "strict"}
    if name in ("custom", "talks"):
        good = CUSTOM if name == "custom" else TALKS
        _write(work / "mine.jsonl", [*good, *odd])
        return _prep(str(work / "mine.jsonl"), work, f"{odd!r:.80}", inputs=work / "mine.jsonl", **options)
    if name == "tldr":
        _write(work / "raw" / "train.jsonl", [*TLDR, *odd])
        _write(work / "raw" / "validation.jsonl", TLDR)
    elif name == "prism":
        _write(work / "raw" / "survey.jsonl", SURVEYS)
        _write(work / "raw" / "conversations.jsonl", [*DIALOGUES, *odd])
    elif name in FEW_SHOT:
        first = next(iter(FEW_SHOT[name]))
        for file, rows in FEW_SHOT[name].items():
            _write(work / "raw" / f"{file}.jsonl", rows + (odd if file == first else []))
        options |= SMALL[name]
    else:
        for profile, rows in PSOUPS.items():
            _write(work / "raw" / "rm_training" / f"{profile}.json", rows + (odd if profile == "P1A" else []))
        _write(work / "raw" / "koala_eval_50.json", [{"id": "0", "prompt": "Why?"}])
    return _prep(name, work, f"{odd!r:.80}", inputs=work / "raw", source=str(work / "raw"), **options)
