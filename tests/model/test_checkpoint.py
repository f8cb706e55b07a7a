"""A policy saved and loaded is the same policy, and whatever is wrong with a folder is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.base import load_base
from prlhf.model.checkpoint import Policy, assemble, build_policy, load_policy, load_weights, save_policy, save_weights
from prlhf.model.readings import padded, readings_of

MakeConfig = Callable[..., Any]


def log_probs(policy: Policy, prepared: Path) -> Tensor:
    rows = read_prepared(prepared).eval
    batch = [policy.encoder().comparison(row) for row in rows]
    policy.model.eval()
    with torch.no_grad():
        users = [row.user_index for row in rows]
        return policy.model(padded(readings_of(batch, users), policy.config.user_tokens, policy.tokenizer.pad_token_id))


def moved(config: Any, texts: dict[str, str] | None = None) -> Policy:
    policy = build_policy(config, ["ann", "bob", "cat"], texts or {})
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return policy


@pytest.mark.parametrize(
    "options",
    [
        {"user_model": "uniform", "user_tokens": 0},
        {"user_model": "individual", "lora_dropout": 0.3},
        {"user_model": "cluster"},
        {"user_model": "individual", "full_finetune": True},
        {"user_model": "individual", "lora_targets": "q_proj,v_proj"},
    ],
)
def test_saved_and_loaded_is_the_same(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, options: dict[str, Any]
) -> None:
    policy = moved(make_config(tmp_path / "run", **options), texts={"ann": "naïve ✓"})
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, "cpu", "fp32")
    torch.testing.assert_close(log_probs(loaded, prepared), log_probs(policy, prepared), rtol=0, atol=1e-6)
    assert (loaded.user_ids, loaded.user_texts) == (["ann", "bob", "cat"], {"ann": "naïve ✓"})
    assert loaded.index_of() == {"ann": 1, "bob": 2, "cat": 3}
    assert loaded.config == policy.config.model_copy(update={"out": None})
    assert not loaded.model.training
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt"))  # safetensors and JSON only


def test_full_weights_differ_from_the_base(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    """Or the round trip above would hold with nothing saved at all."""
    config = make_config(tmp_path, full_finetune=True)
    fresh = build_policy(config, ["ann", "bob", "cat"], {})
    assert (log_probs(moved(config), prepared) - log_probs(fresh, prepared)).abs().max() > 0.1


def test_the_adapter_loads_with_plain_peft(tmp_path: Path, make_config: MakeConfig, tiny_base: Path) -> None:
    from peft import PeftModel

    policy = moved(make_config(tmp_path))
    save_policy(policy, tmp_path)
    plain = PeftModel.from_pretrained(load_base(str(tiny_base)).lm, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = plain.eval()(input_ids=ids).logits
        torch.testing.assert_close(found, policy.model.eval().lm(input_ids=ids).logits)
        assert not torch.allclose(found, load_base(str(tiny_base)).lm(input_ids=ids).logits)
    assert plain.peft_config["default"].base_model_name_or_path == str(tiny_base)


def test_saving_does_not_ask_the_hub(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT looks the base's config up on the hub before it saves, at every checkpoint."""
    from peft.utils import save_and_load

    def refuse(*args: Any, **kwargs: Any) -> bool:
        raise AssertionError("the hub was asked")

    policy = build_policy(make_config(tmp_path), ["ann"], {})
    policy.model.lm.peft_config["default"].base_model_name_or_path = "somebody/some-model"
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", refuse)
    save_weights(policy.model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_hundred_thousand_users(tmp_path: Path, make_config: MakeConfig, tiny_base: Path) -> None:
    config = make_config(tmp_path, user_model="individual", user_tokens=1)
    ids = [f"user-{i}" for i in range(100_000)]
    save_policy(assemble(load_base(str(tiny_base)), config, ids, {}), tmp_path)
    loaded = load_policy(tmp_path, "cpu", "fp32")
    assert loaded.index_of()["user-99999"] == 100_000
    assert loaded.model.users(torch.tensor([100_000])).shape == (1, 1, 32)


# ---- what is refused ----


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(PrlhfError) as error:
        load_policy(folder, "cpu", "fp32", **options)
    assert "\n" not in str(error.value)
    assert error.value.hint
    return str(error.value)


def test_the_run_and_its_model_folder_both_load(trained: Path) -> None:
    assert (
        load_policy(trained, "cpu").user_ids == load_policy(trained / "model", "cpu").user_ids == ["ann", "bob", "cat"]
    )


@pytest.mark.parametrize("kind", ["nothing", "empty", "file"])
def test_a_folder_that_is_not_a_checkpoint(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "is not a checkpoint: it has no prlhf.json; give the folder of a finished run" in refusal(tmp_path / kind)


def test_a_base_model_is_not_a_policy(tiny_base: Path) -> None:
    assert "is a base model, not a policy; train one on it with: prlhf train --model" in refusal(tiny_base)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "user_model.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:],  # one bit
        lambda raw: raw + b"\0",
    ],
    ids=["half", "empty", "bit", "longer"],
)
def test_damaged_weights(copy: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = copy / "model" / name
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} was changed or cut short" in refusal(copy)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "user_model.safetensors"])
def test_missing_weights(copy: Path, name: str) -> None:
    (copy / "model" / name).unlink()
    assert f"lacks {name}" in refusal(copy)


def test_missing_users(copy: Path) -> None:
    (copy / "model/users.json").unlink()
    assert "lacks users.json" in refusal(copy)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"ids": ["ann"]}',
        '{"ids": 3, "texts": {}}',
        '{"ids": [], "texts": 1}',
        '{"ids": ["ann", ["bob"], "cat"], "texts": {}}',
        '{"ids": ["ann", "bob", "cat"], "texts": {"ann": [1]}}',
        '{"ids": ["ann", "ann", "cat"], "texts": {}}',
        "[" * 5000,
    ],
)
def test_damaged_users(copy: Path, content: str) -> None:
    (copy / "model/users.json").write_text(content)
    assert "users.json is damaged" in refusal(copy)


def test_fewer_users_than_the_user_model_has_rows(copy: Path) -> None:
    """Else everyone after the lost one would be served with another's offsets."""
    (copy / "model/users.json").write_text('{"ids": ["ann", "cat"], "texts": {}}')
    assert "are damaged" in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: "{",
        lambda about: "[]",
        lambda about: json.dumps({k: v for k, v in about.items() if k != "sha256"}),
        lambda about: json.dumps(about | {"sha256": []}),
        lambda about: json.dumps(about | {"sha256": {"adapter_model.safetensors": 1}}),
        lambda about: json.dumps(about | {"base": None}),
        lambda about: json.dumps(about | {"kind": ["policy"]}),
        lambda about: "[" * 5000,
        lambda about: json.dumps(about | {"train": about["train"] | {"alpha": 7}}),
        lambda about: json.dumps(about | {"train": about["train"] | {"of_a_later_version": 1}}),
        lambda about: json.dumps(about | {"train": []}),
    ],
    ids=["cut", "list", "key", "checksums", "a checksum", "base", "kind", "deep", "value", "later", "settings"],
)
def test_damaged_about(copy: Path, change: Callable[[dict[str, Any]], str]) -> None:
    path = copy / "model/prlhf.json"
    path.write_text(change(json.loads(path.read_text())))
    assert "prlhf.json is damaged" in refusal(copy)


def test_another_base(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base))
    with torch.no_grad():
        base.lm.model.layers[0].mlp.up_proj.weight[0, 0] += 0.5
    base.lm.save_pretrained(tmp_path / "other")
    base.tokenizer.save_pretrained(tmp_path / "other")
    line = refusal(copy, base=str(tmp_path / "other"))
    assert "was trained on another base than" in line
    assert base.fingerprint in line


def test_a_base_that_moved(copy: Path, trained: Path, tiny_base: Path, tmp_path: Path, prepared: Path) -> None:
    about = json.loads((copy / "model/prlhf.json").read_text())
    (copy / "model/prlhf.json").write_text(json.dumps(about | {"base": str(tmp_path / "gone")}))
    assert f"no model at {tmp_path / 'gone'}" in refusal(copy)
    policy = load_policy(copy, "cpu", "fp32", base=str(tiny_base))
    assert torch.equal(log_probs(policy, prepared), log_probs(load_policy(trained, "cpu", "fp32"), prepared))


def test_weights_of_another_shape_are_one_line(trained: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """As when a checkpoint of another run is put under this one; only damage here, the checksums see the rest."""
    other = build_policy(make_config(tmp_path, lora_r=3), ["ann", "bob", "cat"], {})
    with pytest.raises(PrlhfError, match=r"the weights in .* are damaged"):
        load_weights(other.model, trained / "model")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08")
    with pytest.raises(PrlhfError, match=r"the weights in .* are damaged"):
        load_weights(other.model, tmp_path)
