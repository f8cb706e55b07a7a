"""Each setting of the model arrives where it acts: adapter, precision, device, token budgets, trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prlhf.model import checkpoint
from prlhf.model import rewards as scoring
from prlhf.model.base import load_base, make_trainable
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.readings import readings_of
from prlhf.progress import SILENT

MakeConfig = Callable[..., Any]


def adapted(tiny_base: Path, config: Any) -> Any:
    return make_trainable(load_base(str(tiny_base)).lm, config)


def test_the_adapter_has_its_settings(tmp_path: Path, tiny_base: Path, make_config: MakeConfig) -> None:
    changes = {"lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "lora_targets": "q_proj,v_proj"}
    lora = adapted(tiny_base, make_config(tmp_path, **changes)).peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (3, 5, 0.25)
    assert set(lora.target_modules) == {"q_proj", "v_proj"}


def test_all_linear_layers_are_adapted(tmp_path: Path, tiny_base: Path, make_config: MakeConfig) -> None:
    lm = adapted(tiny_base, make_config(tmp_path, lora_targets="all-linear"))
    found = {name.split(".")[-2] for name, _ in lm.named_modules() if name.endswith("lora_A")}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_adapter_starts_by_the_seed(tmp_path: Path, tiny_base: Path, make_config: MakeConfig) -> None:
    def start(seed: int) -> Tensor:
        named = adapted(tiny_base, make_config(tmp_path, seed=seed)).named_parameters()
        return next(value for name, value in named if "lora_A" in name)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_full_fine_tuning_trains_all_weights(tmp_path: Path, tiny_base: Path, make_config: MakeConfig) -> None:
    lm = adapted(tiny_base, make_config(tmp_path, full_finetune=True))
    assert not hasattr(lm, "peft_config")
    assert all(parameter.requires_grad for parameter in lm.parameters())


def test_dropout_of_the_base_is_off(tmp_path: Path, tiny_base: Path, make_config: MakeConfig) -> None:
    lm = load_base(str(tiny_base)).lm
    lm.model.layers[0].extra, lm.model.layers[0].some_dropout = nn.Dropout(0.5), 0.5
    made = make_trainable(lm, make_config(tmp_path, full_finetune=True))
    assert (made.model.layers[0].extra.p, made.model.layers[0].some_dropout) == (0.0, 0.0)


def test_device_and_precision_of_a_fresh_base(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(checkpoint, "load_base", lambda *given: seen.append(given))
    monkeypatch.setattr(checkpoint, "assemble", lambda base, *given: None)
    monkeypatch.setattr(checkpoint, "pick_device", torch.device)
    config = make_config(
        tmp_path, device="meta", precision="bf16", model="a/base", trust_remote_code=True, quantize="int8"
    )
    checkpoint.build_policy(config, [], {})
    assert seen == [("a/base", torch.device("meta"), torch.bfloat16, True, SILENT, "int8")]


@pytest.mark.parametrize(("asked", "limit"), [(None, 256), (64, 64), (1000, 256)])
def test_token_budgets(tmp_path: Path, make_config: MakeConfig, asked: int | None, limit: int) -> None:
    lm = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(7, 2))
    base: Any = SimpleNamespace(context=256, tokenizer="the tokenizer", lm=lm)
    config = make_config(
        tmp_path, max_tokens=asked, max_prompt_tokens=17, user_text=False, user_tokens=3, template_options={"a": 1}
    )
    encoder = Trained(None, base, config, [], {}).encoder()  # type: ignore[type-var]
    assert (encoder.limit, encoder.prompt_limit, encoder.use_text, encoder.user_tokens) == (limit, 17, False, 3)
    assert encoder.template_options == {"a": 1}


@pytest.mark.parametrize("trees", [False, True])
def test_settings_of_the_engine(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, trees: bool
) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scoring, "Engine", lambda *given: seen.append(given))
    trained: Any = SimpleNamespace(
        model="the model",
        tokenizer=SimpleNamespace(pad_token_id=5),
        config=make_config(tmp_path, pack_tokens=123, prefix_tree=trees),
    )
    scoring.engine_of(trained)
    assert seen[0][:4] == ("the model", 5, 123, trees)


def test_scoring_is_without_dropout_and_restores_the_mode() -> None:
    model = nn.Dropout(0.5)

    class Seen:
        def __init__(self) -> None:
            self.model, self.training = model, list[bool]()

        def __call__(self, batch: Sequence[Encoded], users: Sequence[int]) -> Tensor:
            self.training.append(model.training)
            return torch.zeros(2, len(batch))

    rewards: Any = Seen()
    scoring.score(rewards, [Encoded([], [1], [2], [3], 1)] * 3, [1, 1, 1], batch_size=2)
    assert rewards.training == [False, False]
    assert model.training


def test_readings_begin_with_the_text_about_the_user() -> None:
    chosen, rejected = readings_of([Encoded([7, 8], [1], [2], [3], 1)], [4])
    assert (chosen.user_index, chosen.before, chosen.response) == (4, (7, 8, 1), (2,))
    assert (rejected.user_index, rejected.before, rejected.response) == (4, (7, 8, 1), (3,))
