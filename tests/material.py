"""A tiny random base and a small prepared data set, for fixtures and for benchmarks/fuzz and benchmarks/faults.

Slow imports stay inside the functions.
"""

from __future__ import annotations

from pathlib import Path

WHO = ["sister", "boss", "uncle", "pilot", "nurse"]
DID = ["sold", "lost", "broke", "fixed", "hid", "found", "moved"]
WHAT = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]


def write_base(folder: Path, width: int = 32) -> Path:
    """Write a random Llama of `width`; its weights are large enough that its outputs are not uniform."""
    import torch
    import yaml

    from prlhf.forum import pretrain

    shipped = yaml.safe_load((Path(pretrain.__file__).parents[1] / "assets/tiny-base.yaml").read_text())
    size = {"hidden_size": width, "layers": 2, "heads": 4, "feed_forward": 2 * width}
    small = size | {"vocab_size": 400, "context": 128}
    recipe = pretrain.Recipe.model_validate(shipped | small)
    tokenizer = pretrain.train_tokenizer(recipe)
    torch.manual_seed(1)
    lm = pretrain.build_model(recipe, tokenizer)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    tokenizer.save_pretrained(folder)
    lm.save_pretrained(folder)
    return folder


def write_data(folder: Path) -> Path:
    """Three seen users: ann has a text, and cat prefers the shorter response. zoe is unseen and has a text."""
    from prlhf.dataset import Comparison, Prepared, User, prompt_id, write_prepared

    texts = {"ann": "she likes long tables", "bob": "", "cat": "", "zoe": "a pilot with boats"}
    index = {"ann": 1, "bob": 2, "cat": 3, "zoe": 0}

    def clause(i: int) -> str:
        return f"my {WHO[i % 5]} {DID[i % 7]} {WHAT[i % 8]}"

    def row(split: str, i: int, user: str) -> Comparison:
        prompt = f"POST: {clause(i)}.{' thanks for reading.' * (i % 3)}\nTL;DR:"
        long, short = f" {clause(i)}. {clause(i + 1)}.", f" {clause(i)}."
        chosen, rejected = (short, long) if user == "cat" else (long, short)
        return Comparison(
            f"{split}-{i}", prompt, chosen, rejected, user, index[user], texts[user], prompt_id(prompt), user != "zoe"
        )  # fmt: skip

    train = [row("train", i, ("ann", "bob", "cat")[i % 3]) for i in range(12)]
    held_out = [row("eval", 12 + i, ("ann", "bob", "cat", "zoe")[i % 4]) for i in range(8)]
    users = [User(u, index[u], texts[u], "", 0 if u == "zoe" else 4, 2, u != "zoe") for u in index]
    write_prepared(folder, Prepared(train, held_out, users, {"dataset": "small"}))
    return folder


def write_crowd(folder: Path, users: int, each: int) -> Path:
    """Every second of the users prefers the longer response and the others the shorter one; the last has no choices."""
    from prlhf.dataset import Comparison, Prepared, User, prompt_id, write_prepared

    def row(number: int) -> Comparison:
        index = 1 + number % (users - 1)
        clauses = [f" my {WHO[(number + i) % 5]} {DID[(number + i) % 7]} {WHAT[(number + i) % 8]}." for i in range(4)]
        prompt = f"POST:{clauses[0]}{clauses[1]}\nTL;DR:"
        long, short = "".join(clauses[: 2 + number % 3]), clauses[number % 2]
        chosen, rejected = (long, short) if index % 2 else (short, long)
        return Comparison(f"train-{number}", prompt, chosen, rejected, f"u{index}", index, "", prompt_id(prompt), True)

    train = [row(number) for number in range((users - 1) * each)]
    everyone = [User(f"u{index}", index, "", "", each, 0, True) for index in range(1, users + 1)]
    write_prepared(folder, Prepared(train, train[:6], everyone, {"dataset": "crowd"}))
    return folder
