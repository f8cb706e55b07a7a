"""Supervised fine-tuning: its loss is that of a loop written by hand, and it leaves a base for the next stage."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import numbers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from prlhf.config import GenerateConfig
from prlhf.dataset import Comparison, Prepared, read_prepared, write_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.run import generate
from prlhf.model.base import load_base
from prlhf.model.checkpoint import Policy, build_policy
from prlhf.model.encoding import Encoder
from prlhf.model.prefix_tree import Pack
from prlhf.model.rewards import engine_of
from prlhf.progress import Silent
from prlhf.train import metrics
from prlhf.train import run as running
from prlhf.train.batches import batches_of, parts_of
from prlhf.train.encode import Demonstration, encode
from prlhf.train.objectives import Imitation
from prlhf.train.run import train, without_users
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]

OPTIONS: dict[str, Any] = {"objective": "sft", "max_steps": 5, "save_every": 2, "eval_every": 3, "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A finished run that was never stopped."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    train(make_config(folder, **OPTIONS))
    return folder


def fresh(config: Any) -> tuple[Policy, list[Demonstration]]:
    policy = build_policy(without_users(config), [], {})
    return policy, encode(policy, read_prepared(Path(config.dataset)))[0].encoded


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics.read(folder / "metrics.jsonl") if "loss" in row]


# ---- the rows ----


def test_rows_are_the_encoders(make_config: MakeConfig, tmp_path: Path) -> None:
    """Prompt and chosen as the later stages tokenize them; of two equal choices one stays, in order."""
    config = without_users(make_config(tmp_path, objective="sft"))
    policy = build_policy(config, [], {})
    data = read_prepared(Path(config.dataset)).train
    encoder = policy.encoder()
    expected = [(e.prompt, e.chosen) for e in map(encoder.comparison, data)]
    twice = [*data, replace(data[0], user_id="bob", rejected=" other")]
    assert [(row.prompt, row.response) for row in encode(policy, Prepared(twice, [], [], {}))[0].encoded] == expected
    assert len(set(map(str, expected))) == len(data)
    assert all(response[-1] == policy.tokenizer.eos_token_id for _, response in expected)


def test_the_text_about_a_user_stays_out(make_config: MakeConfig, tmp_path: Path) -> None:
    policy, rows = fresh(make_config(tmp_path, objective="sft", user_text=True))
    data = read_prepared(Path(policy.config.dataset)).train
    assert data[0].user_text
    assert rows[0].prompt == policy.tokenizer(data[0].prompt).input_ids


def test_conversational_rows_end_where_the_template_does(tiny_base: Path) -> None:
    tokenizer = load_base(str(tiny_base)).tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    prompt, chosen = [{"role": "user", "content": "boats"}], [{"role": "assistant", "content": "lamps"}]
    row = Comparison("a", prompt, chosen, chosen, "ann", 1, "", "p", True)
    prompt, response = Encoder(tokenizer, 0, 128).demonstration(row)
    assert tokenizer.decode(prompt) == "user: boats\n"
    assert tokenizer.decode(response[:-1]) == "assistant: lamps"
    assert response[-1] == tokenizer.eos_token_id


def test_one_batch_to_the_number(make_config: MakeConfig, tmp_path: Path) -> None:
    """Only the responses' tokens are scored, each by the column before it; the loss is divided by their number."""
    policy, _ = fresh(make_config(tmp_path, objective="sft"))
    rows = [Demonstration([11, 12, 13], [21, 22]), Demonstration([14], [23])]
    engine = engine_of(policy)
    objective = Imitation(engine)
    (part,) = parts_of(engine, rows, objective)
    assert isinstance(part.layout, Pack)
    assert part.layout.ids[0, part.layout.columns].tolist() == [13, 21, 14]
    assert part.layout.targets.tolist() == [21, 22, 23]
    (term,) = part.terms
    assert (term.weight, term.rows, term.where.tolist()) == (1.0, rows, [[0, 1]])
    assert objective.size(rows) == 3
    assert objective.losses(torch.tensor([[-5.0, -2.0]]), rows).losses.tolist() == [5.0, 2.0]


# ---- the loss ----


def response_loss(policy: Policy, rows: list[Demonstration]) -> tuple[Tensor, int]:
    """NLL summed over the response tokens, one row at a time, with nothing of TRL's or ours in between."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        logits = policy.model.lm(input_ids=torch.tensor([row.prompt + row.response])).logits[0]
        scored = logits[len(row.prompt) - 1 : -1]
        total = total + functional.cross_entropy(scored, torch.tensor(row.response), reduction="sum")
        tokens += len(row.response)
    return total, tokens


def by_hand(config: Any, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """All rows in every step: AdamW on the mean over response tokens, gradients clipped."""
    policy, rows = fresh(config)
    trained = [p for p in policy.model.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.0)
    found = []
    for _ in range(steps):
        total, tokens = response_loss(policy, rows)
        loss = total / tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        found.append(loss.item())
    return found, {name: p.detach() for name, p in policy.model.lm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (4, 3)])
@pytest.mark.parametrize("full", [False, True])
def test_training_is_the_loop_written_by_hand(
    tmp_path: Path, make_config: MakeConfig, batch_size: int, accumulation: int, full: bool
) -> None:
    """Same losses and same weights, however the twelve rows of a step are split up."""
    config = make_config(
        tmp_path / "run", objective="sft", batch_size=batch_size, accumulation=accumulation, schedule="constant",
        max_steps=4, full_finetune=full, lr=1e-3,
    )  # fmt: skip
    expected, weights = by_hand(config, 4)
    train(config)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
    assert expected[0] - expected[-1] > 0.01
    if full:
        saved = load_file(tmp_path / "run/model/model.safetensors")
        for name in saved:
            torch.testing.assert_close(saved[name], weights[name], rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    options = {"objective": "sft", "max_steps": 2, "schedule": "constant"}
    train(make_config(tmp_path / "with", gradient_checkpointing=True, **options))
    train(make_config(tmp_path / "without", **options))
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), abs=1e-5)


@pytest.fixture
def three_per_prompt(tmp_path: Path, prepared: Path) -> str:
    """Four prompts with three responses each that begin alike."""
    data = read_prepared(prepared)
    rows = [replace(row, chosen=f"{row.chosen} {tail}") for row in data.train[:4] for tail in ("or not", "or so", "")]
    write_prepared(tmp_path / "data", Prepared(rows, data.eval, data.users, {"dataset": "small"}))
    return str(tmp_path / "data")


@pytest.mark.parametrize(
    ("way", "parts"), [({}, 1), ({"prefix_tree": False}, 1), ({"pack_tokens": 1}, 4), ({"pack_tokens": 220}, 3)]
)
def test_trees_and_parts_change_nothing(
    tmp_path: Path, make_config: MakeConfig, three_per_prompt: str, way: dict[str, Any], parts: int
) -> None:
    """Prefix trees, padded rows and small parts are the loop written by hand; what they share is read once."""
    config = make_config(
        tmp_path / "run", objective="sft", dataset=three_per_prompt, batch_size=12, schedule="constant", max_steps=3,
        **way,
    )  # fmt: skip
    policy, rows = fresh(config)
    found = [part.layout for part in parts_of(engine_of(policy), rows, Imitation(engine_of(policy)))]
    assert [isinstance(layout, Pack) for layout in found] == ["prefix_tree" not in way] * parts
    read = sum(layout.ids.numel() for layout in found)
    assert (read < sum(len(row.prompt + row.response) for row in rows)) is ("prefix_tree" not in way)
    expected, _ = by_hand(config, 3)
    train(config)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)


def test_responses_to_one_prompt_in_one_batch(tmp_path: Path, make_config: MakeConfig, three_per_prompt: str) -> None:
    config = make_config(tmp_path, objective="sft", dataset=three_per_prompt, batch_size=3)
    alike = []
    for grouped in (True, False):
        config = config.model_copy(update={"group_by_prompt": grouped})
        data = encode(fresh(config)[0], read_prepared(Path(three_per_prompt)))[0]
        batches = [batch for (batch,) in islice(batches_of(data, config), 8)]  # two epochs
        alike.append([len({tuple(row.prompt) for row in batch}) == 1 for batch in batches])
    assert all(alike[0])
    assert not all(alike[1])


def test_held_out_loss_is_per_token(run: Path, make_config: MakeConfig) -> None:
    """Before and after, as computed row by row; the second from the model as it lies on disk."""
    scores = json.loads((run / "results.json").read_text())["eval"]
    config = make_config(run, **OPTIONS)
    data = read_prepared(Path(config.dataset))
    for model, suffix in ((config.model, "_before"), (str(run / "model"), "")):
        policy = build_policy(without_users(config.model_copy(update={"model": model})), [], {})
        policy.model.eval()
        rows = encode(policy, data)[1].encoded
        with torch.no_grad():
            total, tokens = response_loss(policy, rows)
        assert scores[f"nats_per_token{suffix}"] == pytest.approx(total.item() / tokens, abs=1e-4)
        assert scores[f"nats_per_response{suffix}"] == pytest.approx(total.item() / len(rows), abs=1e-3)
    assert scores["nats_per_token"] < scores["nats_per_token_before"]


# ---- the run ----


def test_the_card_names_no_place_on_this_machine(run: Path, prepared: Path, tiny_base: Path) -> None:
    card = (run / "model/README.md").read_text()
    assert not [place for place in (tiny_base, prepared, run) if str(place.parent) in card]
    assert f"`{tiny_base.name}`, fine-tuned on the chosen responses of `{prepared.name}`" in card
    assert "base_model" not in card


def test_the_folder_of_a_run(run: Path, prepared: Path) -> None:
    assert {p.name for p in run.iterdir()} == {"prlhf.json", "recipe.yaml", "metrics.jsonl", "results.json", "model"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in run.glob("model/*")}
    rows = metrics.read(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "eval" in row] == [3, 5]
    results = json.loads((run / "results.json").read_text())
    assert (results["objective"], results["steps"], results["demonstrations"]) == ("sft", 5, 12)
    assert "prlhf train --model FOLDER --dataset DATASET" in (run / "model/README.md").read_text()


def test_the_merged_model_is_the_trained_one(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of base and adapter, taken before they are merged, and of `model/` loaded as a base."""
    taken: dict[str, Tensor] = {}
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def take(policy: Policy, results: dict[str, Any], folder: Path) -> None:
        policy.model.eval()
        taken["logits"] = policy.model.lm(input_ids=ids).logits.detach()
        write(policy, results, folder)

    write = running.write_model
    monkeypatch.setattr(running, "write_model", take)
    config = make_config(tmp_path / "run", **OPTIONS)
    train(config)
    merged, base = load_base(str(tmp_path / "run/model")), load_base(config.model)
    torch.testing.assert_close(merged.lm(input_ids=ids).logits, taken["logits"], rtol=0, atol=1e-4)
    assert not torch.allclose(base.lm(input_ids=ids).logits, taken["logits"], rtol=0, atol=1e-2)
    assert merged.fingerprint != base.fingerprint
    assert merged.tokenizer.get_vocab() == base.tokenizer.get_vocab()


class StopAt(Silent):
    def __init__(self, step: int, do: Callable[[], Any]) -> None:
        self.step, self.do = step, do

    def advance(self, steps: int = 1, **values: float) -> None:
        self.step -= "loss" in values
        if self.step == 0:
            self.step = -1
            self.do()


def assert_same_run(folder: Path, expected: Path) -> None:
    here, there = metrics.read(folder / "metrics.jsonl"), metrics.read(expected / "metrics.jsonl")
    assert len(here) == len(there) == 7
    for a, b in zip(here, there, strict=True):
        assert a.pop("eval", {}) == pytest.approx(b.pop("eval", {}), abs=1e-5)
        assert a == pytest.approx(b, abs=1e-5)
    mine, theirs = (load_file(f / "model/model.safetensors") for f in (folder, expected))
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    first, second = (numbers(json.loads((f / "results.json").read_text())) for f in (folder, expected))
    assert first.pop("eval") == pytest.approx(second.pop("eval"), abs=1e-5)
    assert first == second | {"run": str(folder), "loss": pytest.approx(second["loss"], abs=1e-5)}


@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_and_resumed(tmp_path: Path, make_config: MakeConfig, run: Path, at: int) -> None:
    """With dropout, so that random states matter; before the first checkpoint, between two, after the last step."""
    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=StopAt(at, lambda: 1 // 0))
    assert not (tmp_path / "run/model").exists()
    train(config, resume=True)
    assert_same_run(tmp_path / "run", run)


@pytest.mark.parametrize("at", [1, 5])
def test_ctrl_c_and_resumed(tmp_path: Path, make_config: MakeConfig, run: Path, at: int) -> None:
    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(Interrupted, match=rf"stopped after step \d; .*--resume --out {tmp_path}/run"):
        train(config, progress=StopAt(at, lambda: signal.raise_signal(signal.SIGINT)))
    assert list(tmp_path.glob("run/checkpoints/checkpoint-*/adapter_model.safetensors"))
    train(config, resume=True)
    assert_same_run(tmp_path / "run", run)


def test_a_finished_run_is_not_trained_again(run: Path, make_config: MakeConfig) -> None:
    written = (run / "model/model.safetensors").stat().st_mtime_ns
    results = train(make_config(run, **OPTIONS), resume=True)
    assert results == json.loads((run / "results.json").read_text())
    assert (run / "model/model.safetensors").stat().st_mtime_ns == written


def test_without_held_out_rows(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "data", Prepared(data.train, [], data.users, {"dataset": "small"}))
    results = train(make_config(tmp_path / "run", **(OPTIONS | {"max_steps": 3, "dataset": str(tmp_path / "data")})))
    assert "eval" not in results


# ---- the next stage ----


def test_dpo_on_top_and_generate(tmp_path: Path, make_config: MakeConfig, run: Path) -> None:
    config = make_config(tmp_path / "policy", model=str(run / "model"), max_steps=2)
    results = train(config)
    assert results["model"] == str(run / "model")
    written = generate(
        tmp_path / "policy",
        GenerateConfig(users="ann,generic", out=tmp_path / "r.jsonl", max_prompts=1, max_new_tokens=3),
    )
    assert written["responses"] == 2


@pytest.mark.parametrize("inside", ["", "model"])
def test_it_is_a_base_and_no_policy(run: Path, inside: str, tmp_path: Path) -> None:
    why = rf"is a base model, not a policy; train one on it with: prlhf train --model {run}/model$"
    with pytest.raises(PrlhfError, match=why):
        generate(run / inside, GenerateConfig(out=tmp_path / "r.jsonl"))


def test_the_folder_of_the_run_is_no_base(run: Path) -> None:
    with pytest.raises(PrlhfError, match=rf"has no config.json; give {run}/model"):
        load_base(str(run))


def test_command(run: Path, prepared: Path, tiny_base: Path, tmp_path: Path) -> None:
    line = ["train", "--objective", "sft", "--dataset", str(prepared), "--model", str(tiny_base), "--max-steps", "1"]
    shown = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.stderr
    assert "nats per token" in shown.stdout
    assert f"next: prlhf train --model {tmp_path}/run/model" in shown.stdout
    again = CliRunner().invoke(app, ["train", "--resume", "--out", str(tmp_path / "run"), "--json"])
    assert json.loads(again.stdout) == json.loads((tmp_path / "run/results.json").read_text())
