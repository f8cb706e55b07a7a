"""What is left out of training and evaluation, and how that is said: before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import GenerateConfig, JudgeConfig, TrainConfig
from prlhf.dataset import Comparison, Message, Prepared, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.run import generate
from prlhf.judge.accuracy import judge_checkpoint
from prlhf.model.base import load_skeleton
from prlhf.model.checkpoint import Trained, load_policy, read_about
from prlhf.progress import Silent
from prlhf.train.dry_run import plan
from prlhf.train.encode import encode
from prlhf.train.run import train

MakeConfig = Callable[..., TrainConfig]
LONG = " boats" * 200


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def changed(prepared: Path, out: Path, train: dict[int, Any], held_out: dict[int, Any] | None = None) -> Path:
    """The small data set with some rows changed."""
    data = read_prepared(prepared)

    def rows(old: list[Comparison], changes: dict[int, Any]) -> list[Comparison]:
        return [replace(row, **changes.get(i, {})) for i, row in enumerate(old)]

    write_prepared(
        out, Prepared(rows(data.train, train), rows(data.eval, held_out or {}), data.users, {"dataset": "small"})
    )
    return out


@pytest.fixture
def too_long(prepared: Path, tmp_path: Path) -> Path:
    """Two training prompts, two held-out ones and the text about one user are longer than the context of 128."""
    long = {"prompt": LONG}
    return changed(
        prepared, tmp_path / "data", {1: long, 4: {"prompt": LONG * 2}, 5: {"user_text": LONG}}, {0: long, 1: long}
    )


@pytest.mark.parametrize("objective", ["dpo", "rm"])
def test_all_that_do_not_fit_are_said_at_once(
    objective: str, too_long: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    for command in (train, plan):
        with pytest.raises(PrlhfError) as error:
            command(make_config(tmp_path / "run", dataset=str(too_long), objective=objective))
        message, hint = error.value.message, error.value.hint
        assert message.startswith("3 of 12 training comparisons and 2 of 8 held-out comparisons do not fit, by ")
        assert "('train-1', 'train-4', 'train-5', …): the prompt of 'train-1' has " in message
        assert "max_prompt_tokens" in hint
        assert "--set user_text=false" in hint
        assert hint.endswith("--skip-long")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_they_are_left_out_where_that_is_asked_for(too_long: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """As if they had not been there; the dry run counts them alike, and the judge does."""
    notes, config = Notes(), make_config(tmp_path / "run", dataset=str(too_long), skip_long=True)
    planned = plan(config)
    results = train(config, False, notes)
    counts = {"train": {"too_long": 3, "equal": 0}, "eval": {"too_long": 2, "equal": 0}}
    assert results["left_out"] == planned["left_out"] == counts
    assert json.loads((tmp_path / "run/results.json").read_text())["left_out"] == counts
    assert (planned["train"], planned["eval"]) == (9, 6)
    assert "3 training rows do not fit and were left out (skip_long)" in notes.lines
    assert "2 held-out rows do not fit and were left out (skip_long)" in notes.lines

    data = read_prepared(too_long)
    kept = [row for i, row in enumerate(data.train) if i not in (1, 4, 5)]
    write_prepared(tmp_path / "kept", replace(data, train=kept, eval=data.eval[2:]))
    other = train(make_config(tmp_path / "other", dataset=str(tmp_path / "kept")))
    assert (results["loss"], results["eval"]) == (other["loss"], other["eval"])

    with pytest.raises(PrlhfError, match="2 of 8 held-out comparisons do not fit"):
        judge_checkpoint(tmp_path / "run", too_long, JudgeConfig(out=tmp_path / "j", bootstrap=10))
    judged = judge_checkpoint(tmp_path / "run", too_long, JudgeConfig(out=tmp_path / "j", bootstrap=10, skip_long=True))
    assert judged.left_out["too_long"] == 2
    assert judged.accuracy_macro == results["eval"]["accuracy_macro"]


def test_demonstrations_are_left_out_too(too_long: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", dataset=str(too_long), objective="sft", max_steps=1)
    with pytest.raises(PrlhfError, match=r"2 of 12 training responses and \d of \d held-out responses do not fit"):
        plan(config)
    skipping = config.model_copy(update={"skip_long": True})
    assert train(skipping)["left_out"] == plan(skipping.model_copy(update={"out": tmp_path / "b"}))["left_out"]
    assert json.loads((tmp_path / "run/results.json").read_text())["left_out"]["train"] == {"too_long": 2}


def test_nothing_left_is_one_line(prepared: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    data = changed(prepared, tmp_path / "data", {i: {"prompt": LONG} for i in range(12)})
    with pytest.raises(PrlhfError, match=r"nothing is left of the training comparisons: 12 of 12"):
        train(make_config(tmp_path / "run", dataset=str(data), skip_long=True))
    assert not (tmp_path / "run").exists()


def test_equal_pairs_are_left_out_and_said(prepared: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """Equal as text, equal except for an end of text, equal up to the limit."""
    equal = [{"chosen": " a", "rejected": " a"}, {"chosen": " a", "rejected": " a<|end|>"}]
    cut = {"prompt": "POST:", "user_text": "", "chosen": LONG + " a", "rejected": LONG + " b"}
    data, notes = changed(prepared, tmp_path / "data", dict(enumerate([*equal, cut])), {0: cut}), Notes()
    results = train(make_config(tmp_path / "run", dataset=str(data)), False, notes)
    assert results["left_out"] == {"train": {"too_long": 0, "equal": 3}, "eval": {"too_long": 0, "equal": 1}}
    assert "3 training pairs are equal once they are tokens: they were left out" in notes.lines
    assert "1 held-out pairs are equal once they are tokens: they count half in accuracies" in notes.lines


def test_nothing_but_equal_pairs_is_one_line(prepared: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    same = {"chosen": " a", "rejected": " a"}
    data = changed(prepared, tmp_path / "data", dict.fromkeys(range(12), same))
    with pytest.raises(PrlhfError, match="chosen and rejected are equal in tokens in all 12 training comparisons"):
        train(make_config(tmp_path / "run", dataset=str(data)))
    assert not (tmp_path / "run").exists()


def test_a_token_without_an_embedding_is_named(prepared: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """A tokenizer to which tokens were added, on a model that was not resized."""
    config = make_config(tmp_path / "run")
    base, _ = load_skeleton(str(config.model), __import__("torch").float32)
    base.tokenizer.add_tokens(["boats"])
    data = read_prepared(prepared)
    with pytest.raises(PrlhfError, match=r"token 'boats' in '[\w-]+' has the id 400, and .* embeddings for 400 tokens"):
        encode(Trained(base.lm, base, config, data.user_ids, {}), data)


# ---- generation ----


def test_prompts_that_do_not_fit_are_counted_or_left_out(trained: Path, too_long: Path, tmp_path: Path) -> None:
    config = GenerateConfig(dataset=str(too_long), max_new_tokens=4, out=tmp_path / "r.jsonl", users="ann,generic")
    with pytest.raises(PrlhfError) as error:
        generate(trained, config)
    assert "2 of 14 (prompt, user) pairs do not fit" in error.value.message  # the two long prompts are one
    assert error.value.hint == (
        "shorten them, or set a smaller --max-new-tokens, or leave such rows out with --skip-long"
    )
    notes = Notes()
    assert generate(trained, config.model_copy(update={"skip_long": True}), notes)["responses"] == 12
    assert "2 (prompt, user) pairs do not fit and were left out (skip_long)" in notes.lines


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if quick %} quick:{% endif %}{% endif %}"
)


@pytest.fixture
def chat_run(tiny_base: Path, prepared: Path, tmp_path: Path, make_config: MakeConfig) -> Path:
    """A run trained on conversations, with an option for its template."""
    from shutil import copytree

    copytree(tiny_base, tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text(CHAT)
    data = read_prepared(prepared)

    def talk(role: str, text: Any) -> list[Message]:
        return [{"role": role, "content": str(text)}]

    def rows(old: list[Comparison]) -> list[Comparison]:
        return [
            replace(
                r, prompt=talk("user", i), chosen=talk("assistant", r.chosen), rejected=talk("assistant", r.rejected)
            )
            for i, r in enumerate(old)
        ]

    write_prepared(tmp_path / "talks", replace(data, train=rows(data.train), eval=rows(data.eval)))
    options = {"dataset": str(tmp_path / "talks"), "model": str(tmp_path / "chat"), "template_options": {"quick": True}}
    train(make_config(tmp_path / "run", max_steps=1, **options))
    return tmp_path / "run"


def test_template_options_are_the_runs(chat_run: Path) -> None:
    """Saved with it, used to generate from it and to read with it, and given again where another is wanted."""
    from prlhf.generate.baselines import baseline_of
    from prlhf.generate.requests import encoder_for

    policy = load_policy(chat_run, "cpu", "fp32")
    talk = [{"role": "user", "content": "hi"}]
    ids = policy.encoder().prompt(talk, 100, "p")
    assert policy.tokenizer.decode(ids) == "user: hi<|end|>assistant: quick:"
    for options, end in (({}, "assistant: quick:"), ({"quick": False}, "assistant:")):
        one = encoder_for(policy, baseline_of(GenerateConfig()), GenerateConfig(template_options=options))
        assert policy.tokenizer.decode(one.prompt(talk, 100, "p")).endswith(end)


def test_plain_prompts_are_a_users_message_to_a_run_on_conversations(chat_run: Path, tmp_path: Path) -> None:
    """Alike in tokens and in words, for the run and for its base; what was asked stands in the row."""
    (tmp_path / "plain.txt").write_text("hi\n")
    (tmp_path / "talk.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}) + "\n")
    assert read_about(chat_run / "model")["conversational"] is True
    for baseline in ("none", "base"):
        notes, rows = Notes(), []
        for prompts in ("plain.txt", "talk.jsonl"):
            out = tmp_path / f"{baseline}-{prompts}.jsonl"
            config = GenerateConfig(
                prompts=str(tmp_path / prompts), users="generic", temperature=0, max_new_tokens=5, out=out,
                baseline=baseline,
            )  # fmt: skip
            generate(chat_run, config, notes)
            rows.append(json.loads(out.read_text()))
        plain, talk = rows
        assert plain["prompt"] == "hi"
        assert (plain["prompt_tokens"], plain["response"]) == (talk["prompt_tokens"], talk["response"])
        assert [line for line in notes.lines if line.startswith("1 plain prompts became a user's message")]


def test_a_conversation_to_a_run_on_plain_text_is_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}) + "\n")
    config = GenerateConfig(prompts=str(tmp_path / "talk.jsonl"), users="generic", out=tmp_path / "o.jsonl")
    with pytest.raises(PrlhfError, match="is a conversation, and the run was trained on plain text"):
        generate(trained, config)
    assert not (tmp_path / "o.jsonl").exists()


def test_padding_without_an_embedding_is_not_used(tiny_base: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """`[PAD]` was added to the tokenizer, and the model was not resized: padding is masked, so EOS will do."""
    from shutil import copytree

    from transformers import AutoTokenizer

    copytree(tiny_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 400
    tokenizer.save_pretrained(tmp_path / "base")
    config = make_config(tmp_path / "run", model=str(tmp_path / "base"), prefix_tree=False, max_steps=1)
    before = train(make_config(tmp_path / "other", prefix_tree=False, max_steps=1))
    assert train(config)["loss"] == pytest.approx(before["loss"])


def test_prep_tells_how_rows_fit_a_base(tiny_base: Path, too_long: Path, tmp_path: Path) -> None:
    """As training would, with its default user tokens: from tokenizer and config alone."""
    from shutil import copytree

    from typer.testing import CliRunner

    from prlhf_cli.main import app

    copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    data = read_prepared(too_long)
    for name, rows in (("train", data.train), ("eval", data.eval)):
        lines = [
            json.dumps({key: getattr(row, key) for key in ("prompt", "chosen", "rejected", "user_id", "user_text")})
            for row in rows
        ]
        (raw / f"{name}.jsonl").write_text("\n".join(lines))
    ran = CliRunner().invoke(app, ["prep", str(raw), "--model", str(tmp_path / "base"), "--out", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)["room"]
    assert found["do_not_fit"] == {"training comparisons": 3, "held-out comparisons": 2}
    assert found["rows"] == {"training comparisons": 12, "held-out comparisons": 8}
    assert found["context"] == 128
    with pytest.raises(PrlhfError) as error:
        plan(TrainConfig(dataset=str(out), model=str(tiny_base), out=tmp_path / "run"))
    assert error.value.message == found["why"]
    skipping = plan(TrainConfig(dataset=str(out), model=str(tiny_base), out=tmp_path / "run", skip_long=True))
    assert found["tokens"]["100 %"] >= skipping["tokens_max"]

    wrong = ["prep", str(raw), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "other")]
    assert CliRunner().invoke(app, wrong).exit_code == 2
    assert not (tmp_path / "other").exists()
