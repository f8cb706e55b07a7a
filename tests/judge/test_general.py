"""General ability: questions and texts as lm-evaluation-harness reads them, and what personalization costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError
from prlhf.generate.readers import Reader
from prlhf.judge.general.costs import costs
from prlhf.judge.general.items import Document, MultipleChoice, item_of, read_general
from prlhf.judge.general.likelihoods import Ids, Scores, best
from prlhf.judge.general.run import judge_general
from prlhf.model.checkpoint import load_policy
from prlhf.model.fitting import TooLong
from prlhf.source.values import Malformed
from prlhf.train.run import train
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]
GENERIC = Reader("generic", 0, "")

ARC = {
    "question": "who sold boats?",
    "choices": {"text": ["my sister", "my boss and my uncle", "the nurse"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
HELLASWAG = {
    "ctx": "my boss [header] sold boats. [title] he",
    "activity_label": "Boats",
    "endings": ["found cars.", "lost lamps.", "hid rings.", "moved."],
    "label": "2",
}
PLAIN = {"query": "my uncle lost", "choices": ["cars.", "boats and lamps and rings."], "gold": 0}
TEXT = {"text": "my boss sold boats. my uncle lost cars. the nurse hid lamps. " * 8}


@pytest.mark.parametrize(
    ("row", "item"),
    [
        (ARC, MultipleChoice("r", "Question: who sold boats?\nAnswer:", tuple(ARC["choices"]["text"]), 1)),  # type: ignore[index]
        ({**ARC, "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
         MultipleChoice("r", "Question: who sold boats?\nAnswer:", ("a", "b"), 1)),
        (HELLASWAG, MultipleChoice("r", "Boats: my boss sold boats.. he", tuple(HELLASWAG["endings"]), 2)),
        ({**HELLASWAG, "ctx_a": "[header] How to sell. [step]", "ctx_b": "the Nurse"},
         MultipleChoice("r", "Boats: How to sell. The nurse", tuple(HELLASWAG["endings"]), 2)),
        ({**HELLASWAG, "ctx": "[header] How to sell"},
         MultipleChoice("r", "Boats: How to sell", tuple(HELLASWAG["endings"]), 2)),
        (PLAIN, MultipleChoice("r", "my uncle lost", ("cars.", "boats and lamps and rings."), 0)),
        ({**PLAIN, "query": "my uncle:\n"}, MultipleChoice("r", "my uncle:\n", tuple(PLAIN["choices"]), 0, "")),
        ({**PLAIN, "query": "", "target_delimiter": "\n"}, MultipleChoice("r", "", tuple(PLAIN["choices"]), 0, "\n")),
        ({"page": "a text"}, Document("r", "a text")),
    ],
)  # fmt: skip
def test_layouts(row: dict[str, Any], item: Any) -> None:
    assert item_of(row, "r") == item


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a"}, "it has the columns prompt"),
        ({**ARC, "answerKey": "D"}, "the right choice is 'D', and there are 3"),
        ({**PLAIN, "gold": 2}, "the right choice is 2, and there are 2, from 0"),
        ({**PLAIN, "gold": True}, "the right choice is True"),
        ({**PLAIN, "choices": ["a"]}, "it has 1 choices, and two are the least"),
        ({**PLAIN, "choices": "ab"}, "'choices' is not a list"),
        ({**HELLASWAG, "ctx": " "}, "'ctx' is empty"),
        ({**HELLASWAG, "ctx_a": 1, "ctx_b": "he"}, "'ctx_a' is a number, not text"),
        ({**PLAIN, "target_delimiter": 1}, "'target_delimiter' is a number, not text"),
        ({"text": 3}, "'text' is a number, not text"),
    ],
)
def test_refused_rows(row: dict[str, Any], why: str) -> None:
    with pytest.raises(Malformed) as error:
        item_of(row, "r")
    assert why in str(error.value)


def test_the_longer_choice_can_win_by_its_length() -> None:
    assert best(np.array([-4.0, -6.0]), ["ab", "abcdefgh"]) == (0, 1)


@pytest.fixture
def general(tmp_path: Path) -> Path:
    path = tmp_path / "general.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ARC, HELLASWAG, PLAIN, TEXT)))
    return path


def config(tmp_path: Path, general: Path, **changes: Any) -> JudgeConfig:
    return JudgeConfig(out=tmp_path / "judged", general=general, bootstrap=50, device="cpu", **changes)


def test_the_base_is_measured_as_by_transformers_alone(
    trained: Path, tiny_base: Path, general: Path, tmp_path: Path
) -> None:
    """Log-probs of choices and of a text in windows, computed here one by one."""
    tokenizer, lm = AutoTokenizer.from_pretrained(tiny_base), AutoModelForCausalLM.from_pretrained(tiny_base).eval()

    def log_probs(before: list[int], after: list[int]) -> float:
        with torch.no_grad():
            logits = lm(torch.tensor([before + after])).logits[0].log_softmax(-1)
        return sum(float(logits[len(before) - 1 + i, id_]) for i, id_ in enumerate(after))

    questions, documents = read_general(general)
    begin = tokenizer("").input_ids
    right, by_length = [], []
    for one in questions:
        before = begin + tokenizer(one.context, add_special_tokens=False).input_ids
        wholes = [begin + tokenizer(f"{one.context} {c}", add_special_tokens=False).input_ids for c in one.choices]
        logs = [log_probs(before, whole[len(before) :]) for whole in wholes]
        right.append(int(np.argmax(logs)) == one.gold)
        by_length.append(int(np.argmax([log / len(c) for log, c in zip(logs, one.choices, strict=True)])) == one.gold)
    ids = tokenizer(documents[0].text, add_special_tokens=False).input_ids
    size = 128 - 2 - max(1, len(begin))  # the context, less the user's vectors and what a window begins with
    first = begin or [tokenizer.bos_token_id or tokenizer.eos_token_id]
    full = len(ids) // size * size
    nats = -sum(log_probs(ids[at - 1 : at] if at else first, ids[at : at + size]) for at in range(0, full, size))
    assert size <= full < len(ids)
    nats -= log_probs(ids[-size - 1 : full], ids[full:])  # the last window is filled from the one before
    found = judge_general(trained, config(tmp_path, general))
    base = found.readings["base"]
    assert base["acc"]["value"] == pytest.approx(np.mean(right))
    assert base["acc_norm"]["value"] == pytest.approx(np.mean(by_length))
    assert base["perplexity"]["value"] == pytest.approx(np.exp(nats / len(ids)), rel=1e-4)
    assert base["bits_per_byte"]["value"] == pytest.approx(nats / np.log(2) / len(documents[0].text), rel=1e-4)
    assert base["byte_perplexity"]["value"] == pytest.approx(np.exp(nats / len(documents[0].text)), rel=1e-4)
    words = len(documents[0].text.split()) + 1  # with the empty one after the last space, as there
    assert base["word_perplexity"]["value"] == pytest.approx(np.exp(nats / words), rel=1e-4)
    assert (found.questions, found.texts) == (3, 1)
    assert found.chance == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)


def test_users_are_read_as_themselves(trained: Path, general: Path, tmp_path: Path) -> None:
    """ann's vectors and text stand before a context; the generic user has neither text nor ann's vectors."""
    policy = load_policy(trained, "cpu")
    ids = Ids(policy.encoder())
    (question, *_), _ = read_general(general)
    ann = Reader("ann", 1, policy.user_texts["ann"])
    own, generic = ids.choices(question, ann)[0], ids.choices(question, GENERIC)[0]
    assert (own.user_index, generic.user_index) == (1, 0)
    assert own.response == generic.response
    text = policy.tokenizer(policy.user_texts["ann"], add_special_tokens=False).input_ids
    assert sorted(own.before) == sorted([*generic.before, *text])  # BOS stands in front of both
    assert text
    found = judge_general(trained, config(tmp_path, general))
    assert set(found.by_user) == {"ann", "bob", "cat"}
    values = {name: one["perplexity"]["value"] for name, one in found.by_user.items()}
    assert len({*values.values(), found.readings["generic"]["perplexity"]["value"]}) == 4
    mean = found.readings["users"]
    assert mean["perplexity"]["value"] == pytest.approx(np.mean(list(values.values())))
    cost = mean["against_base"]["perplexity"]
    assert cost["value"] == pytest.approx(mean["perplexity"]["value"] - found.readings["base"]["perplexity"]["value"])
    assert cost["low"] <= cost["value"] <= cost["high"]
    assert json.loads((tmp_path / "judged/results.json").read_text())["by_user"].keys() == found.by_user.keys()


def test_fewer_users_and_items(trained: Path, general: Path, tmp_path: Path) -> None:
    found = judge_general(trained, config(tmp_path, general, general_users=1, limit=2))
    assert (len(found.by_user), found.questions, found.texts) == (1, 2, 1)


def test_without_users_there_is_the_generic_user_alone(make_config: MakeConfig, general: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path / "run", user_model="uniform", user_tokens=0, user_text=False, max_steps=1))
    found = judge_general(tmp_path / "run", config(tmp_path, general))
    assert found.by_user == {}
    assert found.readings.keys() == {"base", "generic"}


def test_after_full_fine_tuning_the_base_is_the_one_before(
    trained: Path, make_config: MakeConfig, general: Path, tmp_path: Path
) -> None:
    """It is loaded beside the run; a run with an adapter has the same one inside."""
    train(make_config(tmp_path / "run", full_finetune=True, max_steps=2))
    full = judge_general(tmp_path / "run", config(tmp_path, general, general_users=0))
    other = judge_general(trained, config(tmp_path, general, general_users=0))
    for name, one in other.readings["base"].items():
        assert full.readings["base"][name] == pytest.approx(one, rel=1e-4)
    assert full.readings["generic"]["against_base"]["perplexity"]["value"] != 0


def test_a_reward_model_is_refused(make_config: MakeConfig, general: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path / "run", objective="rm", max_steps=1))
    with pytest.raises(PrlhfError, match="is a reward model, which gives texts no probability"):
        judge_general(tmp_path / "run", config(tmp_path, general))
    assert not (tmp_path / "judged").exists()


def test_a_context_loses_its_beginning_and_a_long_choice_is_named(trained: Path) -> None:
    ids = Ids(load_policy(trained, "cpu").encoder())
    long = MultipleChoice("q", "my boss sold boats. " * 60, ("cars", "lamps"), 0)
    for reading in ids.choices(long, GENERIC):
        assert 2 + len(reading.before) + len(reading.response) == 128
    assert ids.cut == 2
    with pytest.raises(TooLong, match="a choice of 'q' has"):
        ids.choices(MultipleChoice("q", "my boss", ("cars " * 200, "lamps"), 0), GENERIC)


def test_spaces_at_the_end_of_a_context_are_the_choices(trained: Path) -> None:
    """They are scored with the choice, whose first token would otherwise have lost its space."""
    ids = Ids(load_policy(trained, "cpu").encoder())
    plain = MultipleChoice("q", "my boss sold", ("cars.", "lamps."), 0)
    assert ids.choices(replace(plain, context="my boss sold ", delimiter=""), GENERIC) == ids.choices(plain, GENERIC)
    lines = ids.choices(replace(plain, context="my boss sold\n", delimiter="\n"), GENERIC)
    assert lines == ids.choices(replace(plain, delimiter="\n\n"), GENERIC)
    assert lines[0].before == ids.choices(plain, GENERIC)[0].before


def test_without_a_context_choices_follow_bos_or_eos(trained: Path) -> None:
    encoder = load_policy(trained, "cpu").encoder()
    found = Ids(encoder).choices(MultipleChoice("q", "", ("cars.", "lamps."), 0), GENERIC)
    assert [one.before for one in found] == [(encoder.tokenizer.eos_token_id,)] * 2  # it has no BOS
    assert found[0].response == tuple(encoder.tokenizer(" cars.").input_ids)


def test_a_text_begins_with_bos_where_the_tokenizer_does_not_add_it(trained: Path) -> None:
    encoder = load_policy(trained, "cpu").encoder()
    encoder.tokenizer.bos_token = encoder.tokenizer.convert_ids_to_tokens(
        7
    )  # as SmolLM2's, which has one; lm-evaluation-harness begins texts with it
    begun = Ids(encoder).windows(Document("d", "my boss sold cars."), GENERIC)[0]
    assert begun.before == (7,)


def test_costs_are_paired_and_of_the_right_sign() -> None:
    """The second reader is wrong where the base is right, and needs twice the nats."""
    base = Scores(
        np.array([1.0, 1, 0, 1]),
        np.ones(4),
        np.array([10.0, 30]),
        np.array([10.0, 20]),
        np.array([40.0, 80]),
        np.array([8.0, 16]),
    )
    worse = base._replace(right=np.array([0.0, 1, 0, 1]), nats=2 * base.nats)
    found = costs(base, base._replace(), {"ann": worse}, JudgeConfig(judge="x", bootstrap=400))
    same = found["readings"]["generic"]["against_base"]
    assert same["acc"] == same["perplexity"] == {"value": 0, "low": 0, "high": 0}
    ann = found["by_user"]["ann"]
    assert ann["acc"]["value"] == 0.5
    assert ann["against_base"]["acc"]["value"] == -0.25
    assert ann["against_base"]["acc"]["high"] == 0
    assert ann["perplexity"]["value"] == pytest.approx(np.exp(80 / 30))
    assert ann["against_generic"]["bits_per_byte"]["value"] == pytest.approx(40 / 120 / np.log(2))
    assert "against_generic" not in found["readings"]["base"] | found["readings"]["generic"]


# ---- the command ----


def test_the_command(trained: Path, general: Path, tmp_path: Path) -> None:
    words = ["judge", "--checkpoint", str(trained), "--general", str(general), "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(app, [*words, "--bootstrap", "20", "--general-users", "1"])
    assert result.exit_code == 0, result.output
    for said in ("questions: 3, texts: 1", "base", "generic", "users, mean", "perplexity", "right by chance: 36.1 %"):
        assert said in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "{run}", "--general", "nothing.jsonl"], "nothing.jsonl"),
        (
            ["--checkpoint", "{run}", "--general", "{general}", "--judge", "rule:longer"],
            "judge = rule:longer is not used by --general",
        ),
        (["--general", "{general}"], "general needs a run; name it with prlhf judge --checkpoint"),
        (["--checkpoint", "{run}", "--general-users", "2"], "general_users = 2 is not used by --checkpoint"),
    ],
)
def test_bad_input(trained: Path, general: Path, tmp_path: Path, words: list[str], said: str) -> None:
    given = [word.format(run=trained, general=general) for word in words]
    result = CliRunner().invoke(app, ["judge", *given, "--out", str(tmp_path / "a")])
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (tmp_path / "a").exists()


def test_rows_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(PrlhfError, match=r"a.jsonl:2: it has the columns prompt; give rows of ARC"):
        read_general(path)
