"""How a run reads held-out comparisons: margins and the NLL of the chosen response, a JSON line per comparison.

    python -m benchmarks.real_text.scores RUN --dataset DATA --out FILE          # a policy, a reward model, --per-user
    python -m benchmarks.real_text.scores --told MODEL --dataset DATA --out FILE  # the base, told the preference

Each comparison is read as its own user, as the generic user and as another user (drawn at random), all in one pass.
A margin is the (implicit) reward of the chosen response less that of the rejected one; the NLL is in nats per token.
`--precision` is the number format that runs were trained in.
The base that knows the user's preference has beta (log pi(y|x, preference) - log pi(y|x)) for its reward.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.dataset import Comparison, Prepared, read_prepared
from prlhf.files import atomic_file
from prlhf.generate.baselines import with_preference
from prlhf.generate.writer import open_model
from prlhf.judge.accuracy import shuffled
from prlhf.model.checkpoint import Trained, kind_of
from prlhf.model.encoding import Encoded
from prlhf.model.engine import in_batches
from prlhf.model.per_user import is_per_user, read_per_user, run_of
from prlhf.model.readings import readings_of
from prlhf.model.reference import Reference, open_cache
from prlhf.model.rewards import engine_of, load_rewards
from prlhf.parse import json_text

READ_AS = ("own", "generic", "other")
Value = tuple[float, float | None]  # the margin of a comparison, and the NLL per token of its chosen response
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--told", metavar="MODEL", help="the base, in place of a run")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first N held-out comparisons of each user")
    parser.add_argument("--max-tokens", type=int, help="with --told: longer responses are cut, as in training")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    args = parser.parse_args()
    data = read_prepared(args.dataset)
    data = replace(data, eval=first_of_each(data.eval, args.limit))
    if args.told:
        rows = told(args.told, data, args.precision, args.max_tokens)
    else:
        read = of_adapters if is_per_user(args.run) else of_run
        rows = read(args.run, data, args.precision)
    with atomic_file(args.out) as beside:
        beside.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")


def first_of_each(rows: Sequence[Comparison], limit: int | None) -> list[Comparison]:
    """The first `limit` rows of each user, all for None; the order stays."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.user_id] += 1
        if limit is None or seen[row.user_id] <= limit:
            kept.append(row)
    return kept


# ---- who reads ----


def of_run(run: Path, data: Prepared, precision: str) -> list[dict[str, Any]]:
    """A run's readings; without a user model all three are the same."""
    trained, rewards = load_rewards(run, precision=precision)
    index = trained.index_of()
    own = [index.get(row.user_id, 0) for row in data.eval]
    other = shuffled(own, range(1, len(index) + 1), seed=0)
    if trained.config.user_model == "uniform":
        own, other = [0] * len(own), [0] * len(own)
    generic = [0] * len(own)
    if kind_of(run) == "policy":
        read = policy_reader(trained)
    else:

        def read(batch: Sequence[Encoded], users: Sequence[int]) -> list[Value]:
            chosen, rejected = rewards(batch, users)
            return [(margin, None) for margin in (chosen - rejected).tolist()]

    values = read_all(trained, data.eval, [own, generic, other], read)
    return [as_row(*each) for each in zip(data.eval, values, strict=True)]


def of_adapters(run: Path, data: Prepared, precision: str) -> list[dict[str, Any]]:
    """The readings of one adapter per user, by the user's own and by another's; nobody is the generic user."""
    ids = read_per_user(run).users
    place = {user: number for number, user in enumerate(ids, start=1)}
    own = [place[row.user_id] for row in data.eval]
    readers = {"own": own, "other": shuffled(own, range(1, len(ids) + 1), seed=0)}
    found: list[dict[str, Value]] = [{} for _ in own]
    for number in place.values():
        trained, _ = load_rewards(run_of(run, number), precision=precision)
        read = policy_reader(trained)
        for name, who in readers.items():
            mine = [at for at, reader in enumerate(who) if reader == number]
            values = read_all(trained, [data.eval[at] for at in mine], [[0] * len(mine)], read)
            for at, (value,) in zip(mine, values, strict=True):
                found[at][name] = value
    return [as_row(row, [each["own"], None, each["other"]]) for row, each in zip(data.eval, found, strict=True)]


def told(model: str, data: Prepared, precision: str, max_tokens: int | None = None) -> list[dict[str, Any]]:
    """The readings of the base that is shown the preference of the user, and that of another one, in words."""
    base = open_model(None, GenerateConfig(baseline="base", model=model, precision=precision), data.user_ids).policy
    base = replace(base, config=base.config.model_copy(update={"max_tokens": max_tokens}))
    engine, encoder, beta = engine_of(base), base.encoder(), TrainConfig().beta
    preferences = {user.user_index: user.preference for user in data.users}
    own = [row.user_index for row in data.eval]

    def shown(readers: Sequence[int]) -> list[Encoded]:
        pairs = zip(data.eval, readers, strict=True)
        return [
            encoder.comparison(replace(row, prompt=with_preference(row.prompt, preferences[i]))) for row, i in pairs
        ]

    def log_probs(rows: list[Encoded]) -> list[tuple[float, float]]:
        def read(chunk: list[int]) -> Iterable[tuple[float, float]]:
            values = engine.reference(readings_of([rows[at] for at in chunk], [0] * len(chunk)))
            return zip(*values.view(2, -1).tolist(), strict=True)

        return in_batches(engine.model, [len(row.prompt) + len(row.chosen) for row in rows], BATCH, read)

    plain = [encoder.comparison(row) for row in data.eval]
    before = log_probs(plain)
    columns: list[list[Value | None]] = []
    for readers in (own, shuffled(own, range(1, len(data.user_ids) + 1), seed=0)):
        after = log_probs(shown(readers))
        margins = [beta * ((a[0] - b[0]) - (a[1] - b[1])) for a, b in zip(after, before, strict=True)]
        columns.append([(m, -a[0] / len(e.chosen)) for m, a, e in zip(margins, after, plain, strict=True)])
    return [as_row(row, [o, None, s]) for row, o, s in zip(data.eval, *columns, strict=True)]


# ---- reading ----

Read = Callable[[Sequence[Encoded], Sequence[int]], list[Value]]


def policy_reader(trained: Trained[Any]) -> Read:
    """Reads a batch of comparisons as the users given."""
    engine, beta = engine_of(trained), trained.config.beta
    reference = Reference(engine, open_cache(trained.model.lm))

    def read(batch: Sequence[Encoded], users: Sequence[int]) -> list[Value]:
        log_probs = engine.values(readings_of(batch, users))
        chosen, rejected = (beta * (log_probs - reference.log_probs(batch))).view(2, -1)
        nll = [-value / len(e.chosen) for value, e in zip(log_probs.tolist(), batch, strict=False)]
        return list(zip((chosen - rejected).tolist(), nll, strict=True))

    return read


def read_all(
    trained: Trained[Any], rows: Sequence[Comparison], readers: Sequence[Sequence[int]], read: Read
) -> list[list[Value]]:
    """Each row read as each of its readers, in batches; readings that are equal are computed once."""
    encoder = trained.encoder()
    data = [encoder.comparison(row) for row in rows]

    def chunks(chunk: list[int]) -> Iterator[list[Value]]:
        batch = [data[at] for at in chunk]
        found = read(batch * len(readers), [who[at] for who in readers for at in chunk])
        columns = [found[start : start + len(chunk)] for start in range(0, len(found), len(chunk))]
        return (list(row) for row in zip(*columns, strict=True))

    return in_batches(trained.model, [len(e.prompt) + len(e.chosen) for e in data], BATCH, chunks)


def as_row(row: Comparison, values: Sequence[Value | None]) -> dict[str, Any]:
    """The line of a comparison; a reading that does not exist is null."""
    margins = {name: value and value[0] for name, value in zip(READ_AS, values, strict=True)}
    nll = {name: value and value[1] for name, value in zip(READ_AS, values, strict=True)}
    known = {"id": row.id, "user_id": row.user_id, "prompt_id": row.prompt_id, "seen": row.seen}
    return known | {"margin": margins, "nll": nll}


def read_scores(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
