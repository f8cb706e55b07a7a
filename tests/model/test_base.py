"""Which device, which precision, which base, and what is said when there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prlhf.errors import PrlhfError
from prlhf.model import base
from prlhf.model.base import convert_gguf, gguf_folder, load_base, load_skeleton, pick_device, pick_dtype
from prlhf.progress import Silent


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(PrlhfError, match="device 'gpu' is not known; use auto, cpu or cuda"):
        pick_device("gpu")
    with pytest.raises(PrlhfError, match="device = cuda:1, and this machine has no GPU; set device to cpu"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", cpu) == pick_dtype("fp32", gpu) == torch.float32
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert pick_dtype("auto", gpu) == expected


def test_a_base_is_frozen_and_in_evaluation_mode(tiny_base: Path) -> None:
    loaded = load_base(str(tiny_base))
    assert not loaded.lm.training
    assert not any(p.requires_grad for p in loaded.lm.parameters())
    assert loaded.context == 128
    assert loaded.tokenizer.eos_token == "<|end|>"


def test_the_fingerprint_is_the_same_in_both_precisions(tiny_base: Path) -> None:
    first, again, low = (load_base(str(tiny_base), dtype=d) for d in (torch.float32, torch.float32, torch.bfloat16))
    assert low.lm.dtype == torch.bfloat16
    assert first.fingerprint == again.fingerprint == low.fingerprint
    with torch.no_grad():
        first.lm.get_input_embeddings().weight[0, 0] += 1
    assert base.fingerprint(first.lm) != again.fingerprint


def test_without_a_padding_token_end_of_text_is_padding(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer = load_base(str(tiny_base)).tokenizer
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_base(str(folder)).tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(PrlhfError, match="has no end-of-text token"):
        load_base(str(folder))


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_weights, "the weights of .* are damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot load model"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "config.json").unlink(), "is not a model: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot load model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "tarot"}'), "type 'tarot', which transformers"),
    ],
    ids=["weights", "no-weights", "tokenizer", "no-config", "config", "kind"],
)
def test_a_damaged_base_is_one_line(
    tiny_base: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    damage(folder)
    with pytest.raises(PrlhfError, match=message) as error:
        load_base(str(folder))
    assert "\n" not in str(error.value)


def test_a_hub_model_without_the_hub_names_the_flag() -> None:
    with pytest.raises(PrlhfError) as error:
        load_base("somebody/no-such-model-7b")
    assert str(error.value) == (
        "model somebody/no-such-model-7b is not in the cache, and HF_HUB_OFFLINE forbids the hub; "
        "unset it, or give a local folder or a .gguf file with --model"
    )


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "a/b/c"])
def test_a_missing_path(name: str) -> None:
    with pytest.raises(PrlhfError, match=f"no model at {name}; give a folder"):
        load_base(name)


def test_a_file_that_is_not_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PrlhfError, match=r"no GGUF file at .*a.gguf"):
        load_base(str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_text("no gguf")
    with pytest.raises(PrlhfError, match=r"cannot read .*b.gguf as GGUF") as error:
        load_base(str(tmp_path / "b.gguf"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def write_gguf(path: Path, tiny_base: Path) -> torch.Tensor:
    """A Llama of width 32 with a byte-level vocabulary in GGUF's own layout; returns its token embeddings."""
    gguf = pytest.importorskip("gguf")
    source = load_base(str(tiny_base))
    config, state = source.lm.config, source.lm.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    by_id = {i: token for token, i in source.tokenizer.get_vocab().items()}
    writer.add_token_list([by_id[i] for i in range(config.vocab_size)])
    writer.add_token_types([3 if i < 2 else 1 for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(m) for m in _merges(tiny_base)])
    writer.add_eos_token_id(source.tokenizer.eos_token_id)
    writer.add_bos_token_id(source.tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in state.items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state["model.embed_tokens.weight"]


def _merges(tiny_base: Path) -> list[list[str]]:
    import json

    return json.loads((tiny_base / "tokenizer.json").read_text())["model"]["merges"]


def test_a_gguf_file_is_converted_once(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.gguf"
    table = write_gguf(path, tiny_base)
    first = load_base(str(path))
    assert torch.equal(first.lm.get_input_embeddings().weight, table)
    folder = convert_gguf(path)
    assert folder.parent == tmp_path / "cache/gguf"

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("converted again")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
        assert convert_gguf(path) == folder
    assert load_base(str(path)).fingerprint == first.fingerprint
    first.lm.requires_grad_(True)  # it is not quantized any more
    assert getattr(first.lm, "hf_quantizer", None) is None
    # other content under the same name is another model
    path.write_bytes(path.read_bytes() + b"\0" * 32)
    assert convert_gguf(path) != folder


class Counted(Silent):
    """The bars: label, steps in all, steps made, and whether it is closed."""

    def __init__(self) -> None:
        self.bars: list[list[object]] = []

    def start(self, label: str, total: int) -> None:
        self.bars.append([label, total, 0, "open"])

    def advance(self, steps: int = 1, **values: float) -> None:
        self.bars[-1][2] += steps  # type: ignore[operator]

    def finish(self) -> None:
        self.bars[-1][3] = "closed"


def test_loading_and_converting_have_our_bars_alone(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file's tensors, then the weights of the model that they are put into, then those of the converted one."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf", tiny_base)
    before = gguf.tqdm
    progress, _ = Counted(), capfd.readouterr()
    weights = len(load_base(str(tmp_path / "small.gguf"), progress=progress).lm.state_dict())
    assert capfd.readouterr().err == ""
    assert progress.bars == [
        ["converting small.gguf", weights - 1, weights - 1, "closed"],  # input and output embeddings are one tensor
        ["converting small.gguf", weights - 1, weights - 1, "closed"],
        ["loading small.gguf", weights - 1, weights - 1, "closed"],
    ]
    assert gguf.tqdm is before
    assert logging.set_tqdm_hook(None) is None


def test_the_skeleton_of_a_gguf_file(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and tokens of the model that will be made of it, before and after the file is converted."""
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.gguf"
    write_gguf(path, tiny_base)
    before, missing = load_skeleton(str(path), torch.float32)
    assert missing == [f"{path} will be converted on first use, to {gguf_folder(path)}"]
    assert not (tmp_path / "cache").exists()
    whole = load_base(str(path))
    after, nothing = load_skeleton(str(path), torch.float32)
    assert nothing == []
    for skeleton in (before, after):
        shapes = {name: p.shape for name, p in skeleton.lm.named_parameters()}
        assert shapes == {name: p.shape for name, p in whole.lm.named_parameters()}
        assert skeleton.tokenizer("boats").input_ids == whole.tokenizer("boats").input_ids
        assert skeleton.context == whole.context
