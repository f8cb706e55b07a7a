"""Responses, prompts and answers of judges: files of other programs, and texts of language models."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st
from prism_raw import JSON  # tests/data/

from benchmarks.fuzz import damage
from benchmarks.fuzz.cases import Case, Wrong
from benchmarks.fuzz.kinds.material import Material, lines

PROMPTS = ["Why?", "Who is there?", "Explain tides.\tNow."]


def responses(rng: Random, work: Path, material: Material) -> Case:
    """Damaged responses, read and paired with valid ones; one in ten is judged up to the report."""
    from prlhf.config import JudgeConfig
    from prlhf.judge.run import judge_responses
    from prlhf.judge.verdicts import pair
    from prlhf.responses import read_responses

    name = rng.choice(["responses.jsonl", "responses.jsonl", "responses.parquet", "shards"])
    good, place = material.responses / name, work / name
    damage.fresh(good, place)
    how = damage.folder(rng, place) if place.is_dir() else damage.file(rng, place)
    if rng.random() < 0.1:
        out = work / "judged"
        config = JudgeConfig(out=out, bootstrap=2)
        return Case(
            f"judged: {how}", lambda: judge_responses(place, good, config), [place], [out], lambda said: _judged(out)
        )
    return Case(f"read: {how}", lambda: pair(read_responses(place), read_responses(good)), [place])


def _judged(out: Path) -> None:
    if {path.name for path in out.iterdir() if not path.name.startswith(".")} != {
        "results.json",
        "verdicts.jsonl",
        "report.html",
    }:
        raise Wrong(f"the judgement holds {sorted(path.name for path in out.iterdir())}")
    json.loads((out / "results.json").read_text())


def prompts(rng: Random, work: Path, material: Material) -> Case:
    from prlhf.generate.pairs import shared_prompts

    path = work / f"prompts{rng.choice(['.txt', '.jsonl', '.json', '.parquet', '.csv', ''])}"
    _write_prompts(rng, path)
    how = damage.file(rng, path)
    config = material.write(work / "out.jsonl", prompts=str(path))

    def read() -> None:
        for prompt in shared_prompts(None, config):
            json.dumps(prompt).encode()
            text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
            text.encode()  # half a surrogate pair cannot be tokenized or written to a file

    return Case(how, read, [path])


def _write_prompts(rng: Random, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = rng.random() < 0.3
    rows = [{"prompt": [{"role": "user", "content": text}] if messages else text} for text in PROMPTS]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text(lines(rows))
    elif path.suffix == ".csv":
        path.write_text("id,prompt\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(PROMPTS)))
    else:
        path.write_text("\n".join(PROMPTS) + "\n")


# ---- judges ----

LABELS: dict[str, Any] = {"B2C": "A", "D3F": "B", "G4H": "tie"}
SAID = [
    '{"reason": "because", "verdict": "B2C"}', '```json\n{"verdict": "D3F"}\n```', "I think so.\nverdict: G4H", "B2C",
    "<think>\nHm: B2C or D3F?\n</think>\n{\"verdict\": \"D3F\"}", "verdict: B2C\nverdict: D3F", "**Verdict**: D3F", "",
    '{"verdict": {"verdict": "B2C"}}', "[1]", "null", "9" * 5000, "[" * 3000, '{"verdict": ' + "9" * 5000 + "}",
    '{"a":' * 2000 + "1" + "}" * 2000, "```" * 500, "verdict" * 2000, "verdict: " + "!" * 20000, "\n" * 20000,
    "```json\n" + "\n" * 20000, "<think>" * 3000, "\ud800",
]  # fmt: skip


def verdict(rng: Random, work: Path, material: Material) -> Case:
    """The verdict of a text: one of the three, or none."""
    from prlhf.judge.llm.answers import verdict_in

    text = rng.choice(SAID)
    for _ in range(rng.choice([0, 1, 1, 2])):
        data, _how = damage.some_bytes(rng, text.encode("utf-8", "surrogatepass"))
        text = data.decode("utf-8", rng.choice(["replace", "surrogateescape"]))
    return Case(f"{text!r:.80}", lambda: _one_of_four(verdict_in(text, LABELS)))


def any_verdict(draw: Any, work: Path, material: Material) -> Case:
    """The same for any text, and for any JSON as text."""
    from prlhf.judge.llm.answers import verdict_in

    pieces = st.sampled_from(
        [*SAID[:8], "verdict", ":", "\n", "{", "}", '"', "`", "```", "<think>", "</think>", "B2C", " "]
    )
    text = draw(
        st.one_of(st.text(), JSON.map(json.dumps), st.lists(pieces | st.text(max_size=3), max_size=8).map("".join))
    )
    return Case(f"{text!r:.80}", lambda: _one_of_four(verdict_in(text, LABELS)))


def _one_of_four(found: Any) -> None:
    if found not in ("A", "B", "tie", None):
        raise Wrong(f"a verdict {found!r}")


def answers(rng: Random, work: Path, material: Material) -> Case:
    """Damaged answers in the cache: valid ones are used, the others are asked again, and no paid answer is lost."""
    from prlhf.judge.llm.cache import Answer, AnswerCache

    path = work / "answers.jsonl"
    good = AnswerCache(path)
    for number in range(6):
        good.add(f"key{number}", Answer('{"verdict": "B2C"}', 10, 2, 0.1, "stop"))
    how = damage.file(rng, path)

    def read() -> None:
        kept = AnswerCache(path)
        for answer in kept.known.values():
            _one_of_four(__import__("prlhf.judge.llm.answers", fromlist=["x"]).verdict_in(answer.text, LABELS))
            _ = answer.prompt_tokens + answer.completion_tokens + answer.seconds
        kept.add("new", Answer("B2C", 1, 1, 0.1))
        if path.is_file() and "new" not in AnswerCache(path).known:  # otherwise nothing is kept, with a message
            raise Wrong("a new answer is not found again")

    return Case(how, read)


def judge_files(rng: Random, work: Path, material: Material) -> Case:
    """A user's own prices and prompts of a judge."""
    from prlhf.config import JudgeConfig
    from prlhf.judge.run import dry_run

    kind = rng.choice(["prices.yaml", "prompt.jinja"])
    path = work / kind
    path.write_text(PRICES if kind == "prices.yaml" else PROMPT)
    how = damage.file(rng, path)
    option = {"prices": path} if kind == "prices.yaml" else {"prompt": path}
    values = {"judge": "llm:m", "base_url": "http://127.0.0.1:9/v1", "protocol": "plain", **option}
    a, b = material.responses / "responses.jsonl", work / "b.jsonl"
    b.write_text(a.read_text().replace('"response": "', '"response": "b '))
    return Case(how, lambda: dry_run(a, b, JudgeConfig.model_validate(values)), [path])


PRICES = "batch: 0.5\nmodels:\n  m: {input: 1.0, output: 2.0}\n  n: {input: 0, output: 0}\n"
PROMPT = """{% block system %}You are {{ text or "a reader" }}. {{ rules }}{% endblock %}
{% block user %}{{ request }}
{% for example in examples %}{{ example }}{% endfor %}
{{ first }}
{{ second }}
{{ question }}{% endblock %}
"""
