"""P-SOUPS: six profiles without their preference prompts, on literal rows and on the raw samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.data.psoups import PROFILES, find_preference, without
from prlhf.dataset import Prepared, Text, read_prepared
from prlhf.errors import PrlhfError

# As in github.com/joeljang/RLPHF.
REAL = {
    "P1A": "Generate a response that can be easily understood by an elementary school student.",
    "P1B": "Generate a response that only a PhD Student in that specific field could understand.",
    "P2A": "Generate a response that is concise and to the point without being verbose.",
    "P2B": "Generate a response that is very informative without missing any background information.",
    "P3A": "Generate a response that is friendly, witty, funny, and humorous, like a close friend.",
    "P3B": "Generate a response in an unfriendly manner.",
}
MakeFolder = Callable[..., Path]
Prep = Callable[..., Prepared]


def raw(instruction: str, profile: str = "P1A", a: Any = "good", b: Any = "bad", **changes: Any) -> dict[str, Any]:
    base = {"user_input": f"{instruction} {REAL[profile]}", "completion_a": a, "completion_b": b}
    return {key: value for key, value in (base | changes).items() if value is not ...}


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """folder(P1A=[row, ...]): the unzipped folder with these rows; other profiles have ten other rows.

    A value that is not a list is written unchanged; `...` omits the file.
    """

    def make(koala: Any = None, **given: Any) -> Path:
        contents = {f"rm_training/{p}.json": [raw(f"Question {i}?", p) for i in range(10)] for p in PROFILES}
        contents["koala_eval_50.json"] = [{"id": "0", "prompt": "Why?"}] if koala is None else koala
        contents |= {f"rm_training/{profile}.json": rows for profile, rows in given.items()}
        for name, value in contents.items():
            if value is not ...:
                (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "raw" / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path / "raw"

    return make


@pytest.fixture
def prep(tmp_path: Path) -> Prep:
    def run(source: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset="psoups", source=str(source), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


def said(messages: Text) -> str:
    (message,) = messages
    assert isinstance(message, dict)
    return message["content"]


def instructions(data: Prepared, user: str) -> list[str]:
    return [said(row.prompt) for row in (*data.train, *data.eval) if row.user_id == user]


# ---- rows ----


def test_rows_are_conversations_without_the_preference_prompt(folder: MakeFolder, prep: Prep) -> None:
    data = prep(folder(P1A=[raw("Who is she?\n", a=" yes ", b="no\n")]), eval_fraction=0)
    first = data.train[0]
    assert first.prompt == [{"role": "user", "content": "Who is she?"}]
    assert first.chosen == [{"role": "assistant", "content": "yes"}]
    assert first.rejected == [{"role": "assistant", "content": "no"}]
    assert (first.id, first.user_id, first.user_index, first.user_text) == ("P1A-1", "P1A", 1, "")
    assert data.manifest["format"] == "conversational"
    assert data.manifest["without_preference_prompt"] == dict.fromkeys(PROFILES, 0)
    assert not any("Generate" in json.dumps(row.prompt) for row in data.train)


@pytest.mark.parametrize("asked", [False, True])
def test_the_true_preference_is_text_about_the_user_only_on_request(
    asked: bool, folder: MakeFolder, prep: Prep
) -> None:
    data = prep(folder(), text=asked)
    assert [(u.id, u.user_index, u.preference) for u in data.users] == [
        (profile, i, REAL[profile]) for i, profile in enumerate(REAL, start=1)
    ]
    texts = {user: words if asked else "" for user, words in REAL.items()}
    assert {u.id: u.text for u in data.users} == texts
    assert all(row.user_text == texts[row.user_id] for row in (*data.train, *data.eval))
    assert data.manifest["options"]["text"] is asked


def test_repeats_and_equal_completions_are_dropped_and_counted(folder: MakeFolder, prep: Prep) -> None:
    rows = [
        raw("one"),
        raw("one"),
        raw("one "),
        raw("one", a="bad", b="good"),
        raw("two", a="same", b=" same"),
        raw("two"),
    ]
    data = prep(folder(P1A=rows))
    assert len(instructions(data, "P1A")) == 3  # the swapped pair is a different comparison
    assert data.manifest["dropped"] == {"malformed": 0, "equal pair": 1, "repeat": 2}
    funnel = {f["filter"]: f["P1A"] for f in data.manifest["filters"]}
    assert funnel["equal pair"] == {"before": 6, "after": 5}
    assert funnel["repeat"] == {"before": 5, "after": 3}


def test_the_same_comparison_by_two_users_is_not_a_repeat(folder: MakeFolder, prep: Prep) -> None:
    data = prep(folder())
    assert data.manifest["dropped"]["repeat"] == 0
    assert len(data.train) + len(data.eval) == 60


# ---- the preference prompt ----


@pytest.mark.parametrize("profile", REAL)
def test_the_real_preference_prompts_are_found(profile: str) -> None:
    inputs = [f"{text} {REAL[profile]}" for text in ("Who?", "Generate a response to this:", "List  ")]
    assert find_preference(inputs, PROFILES[profile], Path("f.json")) == REAL[profile]


def test_each_word_stands_in_one_preference_prompt_only() -> None:
    for profile, word in PROFILES.items():
        assert [name for name, words in REAL.items() if word.lower() in words.lower()] == [profile]


@given(
    instruction=st.text(max_size=30).map(str.strip),
    profile=st.sampled_from(list(REAL)),
    gap=st.sampled_from([" ", "  ", "\n", " \n\n"]),
    end=st.sampled_from(["", " ", "\n"]),
)
def test_what_was_put_at_the_end_is_taken_off(instruction: str, profile: str, gap: str, end: str) -> None:
    marked = f"{instruction}{gap}{REAL[profile]}{end}"
    assert find_preference([marked], PROFILES[profile], Path("f.json")) == REAL[profile]
    assert without(marked, REAL[profile]) == instruction


def test_stray_rows_do_not_hide_the_preference_prompt(folder: MakeFolder, prep: Prep) -> None:
    """Rows without it, with another opening, with an extra comma, and with it before the input."""
    rows = [raw(f"Question {i}?") for i in range(10)]
    stray = [
        "Who?",
        "Generate a response to: hi",
        REAL["P1A"].replace(" by", ", by"),
        f"Sum up. {REAL['P1A']}\n\nA post.",
    ]
    data = prep(folder(P1A=[*rows, *(raw("", user_input=text) for text in stray)]), eval_fraction=0)
    assert data.users[0].preference == REAL["P1A"]
    assert instructions(data, "P1A")[10:] == [*stray[:3], "Sum up. A post."]
    assert data.manifest["without_preference_prompt"]["P1A"] == 3
    assert (
        "3 rows of P1A lack its preference prompt: their instructions are kept as they are"
        in (data.manifest["warnings"])
    )


@pytest.mark.parametrize("rows", [[raw("Who?", "P1B")], [raw("", user_input="Who is elementary?")]])
def test_a_file_without_its_preference_prompt_is_refused(rows: Any, folder: MakeFolder, prep: Prep) -> None:
    source = folder(P1A=rows)
    with pytest.raises(PrlhfError, match=r"no 'user_input' of .*P1A.json ends in its preference prompt .*elementary"):
        prep(source, bad_rows="skip")


# ---- training and held-out prompts ----


def test_a_held_out_prompt_is_held_out_of_every_users_training(folder: MakeFolder, prep: Prep) -> None:
    source = folder(**{p: [raw(f"Question {i}?", p) for i in range(n, n + 40)] for n, p in enumerate(PROFILES)})
    data = prep(source)
    held_out = {row.prompt_id for row in data.eval}
    assert len(held_out) == round(45 * 0.1)  # of 45 prompts, most of them shared by all users
    assert not held_out & {row.prompt_id for row in data.train}
    assert prep(source).manifest["content_hash"] == data.manifest["content_hash"]
    assert prep(source, seed=1).manifest["content_hash"] != data.manifest["content_hash"]
    assert len({row.prompt_id for row in prep(source, eval_fraction=0.4).eval}) == 18


def test_the_first_held_out_rows_are_of_all_users(folder: MakeFolder, prep: Prep) -> None:
    data = prep(folder(), eval_fraction=0.5)
    assert {row.user_id for row in data.eval[:6]} == set(PROFILES)
    assert [row.user_id for row in data.train[:6]] == list(PROFILES)


def test_prompts_to_generate_from(folder: MakeFolder, prep: Prep) -> None:
    data = prep(folder(koala=[{"id": "0", "prompt": "Why?"}, {"id": "1", "prompt": "Question 3?"}]), eval_fraction=0)
    assert data.prompts == [[{"role": "user", "content": text}] for text in ("Why?", "Question 3?")]
    assert data.manifest["warnings"][0] == "1 of the 2 prompts of koala_eval_50.json are also in training"


# ---- faults ----


BAD = {
    "no mapping": ("text", "the row is text, not a mapping"),
    "null": (None, "the row is null, not a mapping"),
    "wrong keys": ({"prompt": "x", "chosen": "y"}, "column 'user_input' is missing (known: chosen, prompt)"),
    "no completion": (raw("x", completion_b=...), "column 'completion_b' is missing (did you mean 'completion_a'?)"),
    "number": (raw("x", a=5), "'completion_a' is a number, not text"),
    "empty completion": (raw("x", b=" "), "'completion_b' is empty"),
    "empty input": (raw("x", user_input=""), "'user_input' is empty"),
    "no instruction": (raw("x", user_input=REAL["P1A"]), "'user_input' holds only the preference prompt"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_bad_rows(bad: Any, message: str, folder: MakeFolder, prep: Prep, tmp_path: Path) -> None:
    source = folder(P1A=[raw("one"), bad, raw("two")])
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message == f"{source}/rm_training/P1A.json:item 2: {message}"
    assert "--skip-bad" in error.value.hint
    assert not (tmp_path / "out").exists()
    data = prep(source, bad_rows="skip")
    assert data.manifest["dropped"]["malformed"] == 1
    assert sorted(instructions(data, "P1A")) == ["one", "two"]


BAD_FILES = {
    "no list": ('{"user_input": {"a": 1}}', "P2A.json:1: 'user_input' is a mapping"),
    "another mapping": ('{"P2A": []}', "P2A.json:1: column 'user_input' is missing"),
    "text": ('"hello"', "P2A.json:1: the row is text, not a mapping"),
    "no json": ("[1, 2", "P2A.json: it is not JSON"),
    "empty": ("[]", "no comparison is left in "),
    "missing": (..., "has no rm_training/P2A.json"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(content: Any, message: str, folder: MakeFolder, prep: Prep) -> None:
    source = folder(P2A=content)
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert message in error.value.message
    assert str(source) in error.value.message


def test_a_profile_of_nothing_but_bad_rows_is_refused(folder: MakeFolder, prep: Prep) -> None:
    with pytest.raises(PrlhfError, match=r"no comparison is left in .*P3B.json, of 2 read"):
        prep(folder(P3B=[1, {}]), bad_rows="skip")


BAD_KOALA = {
    "missing": (..., "has no koala_eval_50.json"),
    "no prompts": ([], "holds no prompt"),
    "no mapping": (["Why?"], "koala_eval_50.json:item 1: the row is text, not a mapping"),
    "wrong key": ([{"id": "0", "text": "Why?"}], "koala_eval_50.json:item 1: column 'prompt' is missing"),
    "empty": ([{"prompt": "Why?"}, {"prompt": ""}], "koala_eval_50.json:item 2: 'prompt' is empty"),
    "no json": ("Why?", "koala_eval_50.json:1: it is not JSON"),
}


@pytest.mark.parametrize(("koala", "message"), BAD_KOALA.values(), ids=BAD_KOALA)
def test_bad_prompts(koala: Any, message: str, folder: MakeFolder, prep: Prep) -> None:
    with pytest.raises(PrlhfError) as error:
        prep(folder(koala=koala), bad_rows="skip")
    assert message in error.value.message


def test_without_a_source_it_says_where_the_zip_is(folder: MakeFolder, prep: Prep, tmp_path: Path) -> None:
    with pytest.raises(PrlhfError) as error:
        prepare(PrepConfig(dataset="psoups", out=tmp_path / "out"))
    assert "data.zip (see github.com/joeljang/RLPHF)" in error.value.message
    assert "rm_training/P1A.json ... P3B.json and koala_eval_50.json" in error.value.hint
    for source, message in ((folder() / "koala_eval_50.json", "is a file"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(PrlhfError, match=message):
            prep(source)


# ---- the samples ----


def common_ending(texts: list[str]) -> str:
    length = 0
    while len({text[-length - 1 :] for text in texts}) == 1:
        length += 1
    return texts[0][-length:]


def test_samples(shared_data: Path, prep: Prep) -> None:
    """Counts and texts were taken from the files without this package: the ending that all rows of a file share."""
    data = prep(shared_data / "psoups")
    assert len(data.prompts) == 50
    assert {user.id: user.preference for user in data.users} == REAL
    for user in data.users:
        rows = json.loads((shared_data / "psoups" / "rm_training" / f"{user.id}.json").read_text())
        shared = common_ending([row["user_input"] for row in rows])
        assert shared.strip() == user.preference
        distinct = {tuple(row.values()) for row in rows if row["completion_a"] != row["completion_b"]}
        assert user.train_count + user.eval_count == len(distinct)
        assert 0.04 < user.eval_count / len(distinct) < 0.16
        asked = {row["user_input"].removesuffix(shared).strip() for row in rows}
        assert set(instructions(data, user.id)) <= asked
    assert sum(data.manifest["dropped"].values()) + len(data.train) + len(data.eval) == sum(
        data.manifest["read"].values()
    )
