"""One training step of P-DPO with several engines on the same comparisons and model, for docs/PERFORMANCE.md.

    python -m benchmarks.train_step --shape tldr --model smollm2-135m
    python -m benchmarks.train_step --shape psoups --model tiny --repeats 9 --json
    python -m benchmarks.train_step --shape tldr --model llama3-8b        # on a GPU, in bf16
    python -m benchmarks.train_step --engines ours --operators            # where the time goes

ours    prefix trees, the reference from the cache
ours-gc the same with gradient checkpointing
gates   ours with users in the adapter in place of a soft prompt
onednn  ours with fp32 products by oneDNN, as on AMD's chips
mkl     ours with fp32 products by PyTorch, as elsewhere
trl     TRL's DPOTrainer with its defaults (gradient checkpointing), no users, precomputed reference, twice the rows
trl-nc  the same without gradient checkpointing
paper   the published algorithm: twice the rows, a soft prompt before each, the reference computed each time, all logits

A step is forward, backward and optimizer (AdamW) over one batch of the shape's comparisons, with LoRA r = 8 on all
linear layers and no dropout. The engines alternate in this process, after one warm-up step each; medians are printed.
Peak memory is the maximum of the resident set (on a GPU: of the allocator) in a separate process per engine, after one
step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.kernels import onednn, tree_attention
from prlhf.model.base import TINY, Base, load_base
from prlhf.model.encoding import Encoded

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """Tokens of the prompt and of each response, and the composition of a batch."""

    prompt: int
    response: int
    responses: int  # per prompt; the first is preferred to each of the others
    prompts: int  # different prompts in a batch
    raters: int = 1  # users who compare the same responses to a prompt
    user_tokens: int = 10

    @property
    def comparisons(self) -> int:
        return self.prompts * self.raters * (self.responses - 1)


SHAPES = {
    "tldr": Shape(510, 40, 2, prompts=1),
    "psoups": Shape(60, 300, 2, prompts=1, raters=6),  # as with group_by_prompt
    "psoups-apart": Shape(60, 300, 2, prompts=6),
    "prism": Shape(460, 300, 2, prompts=1),
    "prism-first-turn": Shape(460, 300, 4, prompts=1),
}
LLAMAS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192, "rope_theta": 5e5,
    },
}  # fmt: skip
MODELS = ("tiny", *LLAMAS)
ENGINES = ("ours", "ours-gc", "gates", "onednn", "mkl", "trl", "trl-nc", "paper")
BETA = 0.1
PRECISION = "bf16" if torch.cuda.is_available() else "fp32"  # of the base, unless it is given
MICRO = 4  # rows (two per comparison) at a time for `paper`, whose logits would otherwise need more than 24 GiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tldr")
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--engines", default="ours,trl,paper", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=PRECISION, help="of the base")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each engine")
    parser.add_argument("--pack-tokens", type=int, help="ours: tokens per forward pass")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="ours: any train setting")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--operators", action="store_true", help="only say where the time of the first engine goes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    engines = args.engines.split(",")
    if args.memory_of:
        make_step(args.memory_of, args)()
        print(peak_bytes())
        return 0
    if args.operators:
        print(by_operator(make_step(engines[0], args), args.repeats))
        return 0
    seconds = measure({engine: make_step(engine, args) for engine in engines}, args.repeats)
    memory = {} if args.no_memory else {engine: memory_of(engine, sys.argv[1:]) for engine in engines}
    report = summarize(args, seconds, memory)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each step, in turn, after one warm-up step each."""
    seconds: dict[str, list[float]] = {engine: [] for engine in steps}
    for number in range(repeats + 1):
        for engine, step in steps.items():
            gc.collect()
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[engine].append(time.perf_counter() - began)
                print(f"{engine} {seconds[engine][-1]:.3g} s", file=sys.stderr, flush=True)
    return seconds


def by_operator(step: Step, repeats: int, most: int = 12) -> str:
    """The share of PyTorch's operators in the time of all, forward and backward; the median of `repeats` steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Timed(TorchDispatchMode):
        @override
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            began = time.perf_counter()
            found = func(*args, **(kwargs or {}))
            seconds[str(func)] += time.perf_counter() - began
            return found

    step()
    rounds: list[Counter[str]] = []
    for _ in range(repeats):
        seconds: Counter[str] = Counter()
        with Timed():
            step()
        rounds.append(seconds)
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    whole, largest = sum(median.values()), Counter(median).most_common(most)
    return "\n".join(f"{100 * value / whole:5.1f} %  {value:7.3f} s  {name}" for name, value in largest)


def memory_of(engine: str, options: list[str]) -> int:
    """Return the peak bytes of `engine` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.train_step", *options, "--memory-of", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage's starts at the peak of the parent process
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def summarize(args: argparse.Namespace, seconds: dict[str, list[float]], memory: dict[str, int]) -> dict[str, Any]:
    shape = SHAPES[args.shape]
    engines = {
        engine: {
            "seconds": statistics.median(found),
            "all_seconds": found,
            "comparisons_per_second": shape.comparisons / statistics.median(found),
        }
        | ({"peak_gib": memory[engine] / 2**30} if memory else {})
        for engine, found in seconds.items()
    }
    report: dict[str, Any] = {
        "shape": args.shape,
        "model": args.model,
        "precision": args.precision,
        "comparisons": shape.comparisons,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "engines": engines,
    }
    if "ours" in engines:
        report["ours_over"] = {
            name: {"speed": found["seconds"] / engines["ours"]["seconds"]}
            | ({"memory": engines["ours"]["peak_gib"] / found["peak_gib"]} if memory else {})
            for name, found in engines.items()
            if name != "ours"
        }
        report["ours_utilization"] = utilization(args, shape, engines["ours"]["seconds"])
    return report


def utilization(args: argparse.Namespace, shape: Shape, seconds: float) -> dict[str, float]:
    """Return distinct tokens per second and the necessary floating-point operations per second of our step.

    Two operations per weight and token are counted for the forward pass, and two for the gradient of the inputs; frozen
    weights need no more. `share` is of the rate of one large product by the layers that we use, measured here.
    """
    rows = shape.prompts * (shape.raters + 1)
    tokens = rows * (shape.user_tokens + shape.prompt + shape.responses * shape.response)
    scored = rows * shape.responses * shape.response
    lm = load(args.model, torch.device("meta")).lm
    head = lm.get_output_embeddings().weight.numel()
    body = sum(p.numel() for n, p in lm.named_parameters() if "embed" not in n and "lm_head" not in n)
    operations = 4 * (body * tokens + head * scored)
    rate, most = operations / seconds, product_rate(args.precision)
    return {
        "tokens_per_second": tokens / seconds,
        "tflops": rate / 1e12,
        "product_tflops": most / 1e12,
        "share": rate / most,
    }


def product_rate(precision: str, size: int = 2048, repeats: int = 9) -> float:
    """Operations per second of a product of two square matrices by a frozen linear layer of ours; the median."""
    from prlhf.kernels.onednn import use_onednn

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layers = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False)).to(device(), dtype).requires_grad_(False)
    if device() == "cpu":
        use_onednn(layers)
    x = torch.randn(size, size, device=device(), dtype=dtype)
    seconds = measure({"product": lambda: layers(x)}, repeats)["product"]
    return 2 * size**3 / statistics.median(seconds)


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['shape']}, {report['model']}, {report['device']}: {report['comparisons']} comparisons per step"]
    for name, found in report["engines"].items():
        over = report.get("ours_over", {}).get(name, {})
        lines.append(
            f"{name:7} {found['seconds']:8.2f} s {found['comparisons_per_second']:8.3f} comparisons/s"
            + (f" {found['peak_gib']:6.2f} GiB" if "peak_gib" in found else "")
            + (f"   ours is {over['speed']:.2f} times as fast" if over else "")
            + (f" in {over['memory']:.2f} of the memory" if "memory" in over else "")
        )
    if "ours_utilization" in report:
        use = report["ours_utilization"]
        lines.append(
            f"ours: {use['tokens_per_second']:.0f} tokens/s, {use['tflops']:.3f} TFLOP/s needed, "
            f"{100 * use['share']:.0f} % of the {use['product_tflops']:.3f} of one large product"
        )
    return "\n".join(lines)


# ---- the comparisons and the model of all engines ----


def comparisons(shape: Shape, vocabulary: int) -> list[Encoded]:
    rng = random.Random(0)

    def words(count: int) -> list[int]:
        return [rng.randrange(5, vocabulary) for _ in range(count)]

    found = []
    for _ in range(shape.prompts):
        prompt, responses = words(shape.prompt), [words(shape.response) for _ in range(shape.responses)]
        for rater in range(shape.raters):
            found += [Encoded([], prompt, responses[0], rejected, 1 + rater) for rejected in responses[1:]]
    return found


def load(name: str, device: torch.device | str, precision: str = PRECISION) -> Base:
    """Load the bundled base, or create a named shape with random weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if name == "tiny" and str(device) != "meta":
        return load_base("tiny", device, dtype)
    config = LlamaConfig.from_pretrained(TINY) if name == "tiny" else LlamaConfig(**LLAMAS[name])
    config.dtype = dtype
    torch.manual_seed(0)
    with torch.device(device):
        lm: Any = LlamaForCausalLM(config).to(dtype)
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    return Base(name, lm.eval(), AutoTokenizer.from_pretrained(TINY), name)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_step(engine: str, args: argparse.Namespace) -> Step:
    if engine in ("ours", "ours-gc", "gates"):
        return our_step(args, checkpointing=engine == "ours-gc", gates=engine == "gates")
    if engine in ("onednn", "mkl"):
        return multiplying(lambda: our_step(args, checkpointing=False), by_onednn=engine == "onednn")
    if engine == "paper":
        return paper_step(args)
    return trl_step(args, checkpointing=engine == "trl")


def our_step(args: argparse.Namespace, checkpointing: bool, gates: bool = False) -> Step:
    from prlhf.dataset import Comparison
    from prlhf.model.checkpoint import assemble
    from prlhf.model.reference import Reference
    from prlhf.model.rewards import engine_of
    from prlhf.recipes import parse_overrides, resolve
    from prlhf.train.encode import EncodedSet
    from prlhf.train.loop import Loop
    from prlhf.train.objectives import objective_of

    shape = SHAPES[args.shape]
    fixed = {
        "model": args.model,
        "nll": 0.0,
        "beta": BETA,
        "lora_dropout": 0.0,
        "device": device(),
    }
    fixed |= {"user_in": "adapter"} if gates else {"user_init": "zero", "user_tokens": shape.user_tokens}
    fixed |= {"out": tempfile.mkdtemp(), "pack_tokens": args.pack_tokens}
    fixed |= {"gradient_checkpointing": checkpointing}
    config = resolve(TrainConfig, fixed, parse_overrides(args.set, "train"))
    base = load(args.model, device(), args.precision)
    policy = assemble(base, config, [str(i) for i in range(shape.raters)], {})
    if config.gradient_checkpointing:
        base.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = comparisons(shape, base.lm.config.vocab_size)
    engine = engine_of(policy)
    reference = Reference(engine)
    reference.fill(batch, len(batch))
    rows = [Comparison(str(i), "", "", "", "", one.user_index, "", "", True) for i, one in enumerate(batch)]
    objective = objective_of(engine, reference, config)
    loop = Loop(policy, engine, objective, EncodedSet(batch, rows), EncodedSet([], []))

    def step() -> None:
        loop.backward([batch])
        loop.optimizer.step()
        loop.optimizer.zero_grad()

    return step


def multiplying(make: Callable[[], Step], by_onednn: bool) -> Step:
    """The step that `make` returns, made and run with fp32 products by oneDNN or by PyTorch, whatever the chip."""

    def chosen() -> ExitStack:
        stack = ExitStack()
        for module in (onednn, tree_attention):
            stack.enter_context(mock.patch.object(module, "faster", return_value=by_onednn))
        return stack

    with chosen():
        step = make()

    def run() -> None:
        with chosen():
            step()

    return run


def trl_step(args: argparse.Namespace, checkpointing: bool) -> Step:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    shape, base = SHAPES[args.shape], load(args.model, device(), args.precision)
    batch = comparisons(shape, base.lm.config.vocab_size)
    settings = DPOConfig(
        tempfile.mkdtemp(), beta=BETA, bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=2 * len(batch), precompute_ref_log_probs=True, report_to="none", max_length=None,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    words = Dataset.from_list([{"prompt": "my", "chosen": " boss", "rejected": " uncle"}])  # required, but not used
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(base.lm, args=settings, train_dataset=words, processing_class=base.tokenizer, peft_config=lora)
    rows = [
        {"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected,
         "ref_chosen_logps": -400.0, "ref_rejected_logps": -400.0}
        for e in batch for _term in range(2)
    ]  # fmt: skip
    inputs = trainer.data_collator(rows)
    if checkpointing:  # as `trainer.train` does before its first step
        trainer.model.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.training_step(trainer.model, dict(inputs))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def paper_step(args: argparse.Namespace) -> Step:
    from peft import LoraConfig, get_peft_model

    shape, base = SHAPES[args.shape], load(args.model, device(), args.precision)
    batch = comparisons(shape, base.lm.config.vocab_size)
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    lm: Any = get_peft_model(base.lm, lora)
    lm.train()
    width = base.lm.config.hidden_size
    prompts = torch.nn.Parameter(torch.zeros(shape.raters + 1, shape.user_tokens, width, device=device()))
    optimizer = torch.optim.AdamW([*(p for p in lm.parameters() if p.requires_grad), prompts])
    rows = [(e, user) for e in batch for user in (e.user_index, 0)]

    def log_probs(ids: Tensor, users: Tensor, personal: bool) -> Tensor:
        embeds = lm.get_input_embeddings()(ids)
        extra = shape.user_tokens if personal else 0
        if personal:
            embeds = torch.cat([prompts[users].to(embeds.dtype), embeds], 1)
        logits = lm(inputs_embeds=embeds, use_cache=False).logits[:, extra:-1]
        picked = logits.float().log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return picked[:, shape.prompt - 1 :].sum(1)

    def step() -> None:
        for start in range(0, len(rows), MICRO):
            some = rows[start : start + MICRO]
            users = torch.tensor([user for _, user in some] * 2, device=device())
            ids = torch.tensor([e.prompt + e.chosen for e, _ in some] + [e.prompt + e.rejected for e, _ in some])
            ids = ids.to(device())
            with torch.no_grad(), lm.disable_adapter():
                reference = log_probs(ids, users, personal=False)
            chosen, rejected = (log_probs(ids, users, personal=True) - reference).chunk(2)
            (-torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).sum() / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
