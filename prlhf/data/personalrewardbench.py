"""PersonalRewardBench (SynthesizeMe, arXiv 2506.05598): choices of people from PRISM and from Chatbot Arena.

The files `train`, `validation` and `test` have different users. Within a user, `split` says which pairs are context
(`train` and `val`) and which are tested (`test`). Users of the file `train` are seen; the context of all others is in
`choices.jsonl`, five to fifteen pairs per user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.identifiers import user_identifier
from prlhf.data.messages import as_conversation, one_answer_each
from prlhf.data.rows import EQUAL, DropCounts, Dropped, LoadedData, Row, RowReader, check_left
from prlhf.data.splits import first_appearance, warn_of_shared_prompts
from prlhf.progress import Progress
from prlhf.source.folders import folder_rows
from prlhf.source.hub import hub_parts
from prlhf.source.messages import text_or_messages
from prlhf.source.raw import RawRows
from prlhf.source.values import Malformed, column, mapping

HUB = {"prism": "MichaelR207/prism_personalized_0125", "arena": "MichaelR207/chatbot_arena_personalized_0125"}
SPLITS = {name: name for name in ("train", "validation", "test")}  # files, or splits of the hub: each has its users
CONTEXT, TESTED = ("train", "val"), ("test",)  # values of `split`
INSTEAD = (
    "run: prlhf prep personalrewardbench --source FOLDER --out data/personalrewardbench "
    "(FOLDER holds train, validation and test .parquet)"
)


@dataclass(frozen=True)
class GivenChoice:
    """A user's choice, and whether it is tested; the others are context."""

    id: str
    row: Row
    tested: bool


@data_set("personalrewardbench", uses="people bad_rows")
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Read the choices of `config.people`: of seen users to train on, of unseen users as context and to test.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or no comparison is left.
    """
    source, raw = _open(config.source, config.people)
    drops = DropCounts(EQUAL)
    reader = RowReader(config.bad_rows, drops, progress)
    found = {name: reader.read(name, rows, _converter(name)) for name, rows in raw.items()}
    choices = [choice for name in SPLITS for choice in found[name]]
    seen = {choice.row.user_id for choice in found["train"] if not choice.tested}
    train = [choice.row for choice in choices if not choice.tested and choice.row.user_id in seen]
    held_out = [choice.row for choice in choices if choice.tested]
    check_left(train, drops, source)
    return LoadedData(
        train=train,
        eval=held_out,
        order=first_appearance(train),
        source=source,
        options={"people": config.people, "bad_rows": config.bad_rows},
        counts=drops.report(),
        warnings=warn_of_shared_prompts(train, held_out),
        choices=[choice.row for choice in choices if not choice.tested and choice.row.user_id not in seen],
    )


def _converter(name: str) -> Callable[[Any, int], GivenChoice]:
    def convert(value: Any, number: int) -> GivenChoice:
        raw, row_id = mapping(value), f"{name}-{number}"
        split = column(raw, "split")
        if split not in (*CONTEXT, *TESTED):
            raise Malformed(f"'split' is {split!r}, not train, val or test")
        user = user_identifier(column(raw, "user_id"), "user_id")
        turns = (text_or_messages(column(raw, key), key) for key in ("context", "chosen", "rejected"))
        prompt, chosen, rejected, _ = one_answer_each(*as_conversation(*turns))
        if chosen == rejected:
            raise Dropped(EQUAL)
        return GivenChoice(row_id, Row(row_id, prompt, chosen, rejected, user), split in TESTED)

    return convert


def _open(source: str | None, people: str) -> tuple[str, dict[str, RawRows]]:
    """The source for the manifest, and the rows of each file."""
    hub = HUB[people]
    return (hub, hub_parts(hub, SPLITS, INSTEAD)) if source is None else (source, folder_rows(source, SPLITS))
