"""Each baseline's responses as a file like any other: what the model is shown, who is written for, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import GenerateConfig
from prlhf.dataset import Comparison, Prepared, prompt_id, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.baselines import OwnChoices, baseline_of, with_examples, with_preference
from prlhf.generate.readers import Reader
from prlhf.generate.requests import plan_requests
from prlhf.generate.run import generate
from prlhf.judge.verdicts import pair
from prlhf.model.checkpoint import Policy, load_policy
from prlhf.progress import Silent
from prlhf.recipes import resolve
from prlhf.responses import Response, read_responses
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
TASTES = {"ann": "say it all.", "bob": "be brief.", "cat": "be brief.", "zoe": "say it all."}
MODELS = ["base", "oracle", "in-context"]  # baselines that need a model


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def tasteful(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """The data set `prepared`, whose users' preferences are known in words."""
    data, folder = read_prepared(prepared), tmp_path_factory.mktemp("data") / "tasteful"
    write_prepared(folder, replace(data, users=[replace(user, preference=TASTES[user.id]) for user in data.users]))
    return folder


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def write(tmp_path: Path, run: Path | None, name: str = "out.jsonl", **options: Any) -> list[Response]:
    values = {"out": tmp_path / name, "max_new_tokens": 6, "max_prompts": 3, "device": "cpu", "batch_size": 4}
    generate(run, resolve(GenerateConfig, values, options))
    return read_responses(tmp_path / name)


# ---- the prompts ----


def test_a_preference_goes_before_plain_text_and_after_an_instruction() -> None:
    assert with_preference("POST: x", "be brief.") == "be brief.\nPOST: x"
    talk = [said("user", "Hi."), said("assistant", "Hi!"), said("user", "Why?")]
    assert with_preference(talk, "Be brief.") == [*talk[:2], said("user", "Why? Be brief.")]
    assert talk[2] == said("user", "Why?")
    assert with_preference(talk, "") == talk
    with pytest.raises(PrlhfError, match="without a user message"):
        with_preference([said("system", "x")], "be brief.")


def test_examples_go_before_the_prompt() -> None:
    def row(prompt: Any, chosen: Any) -> Comparison:
        return Comparison("", prompt, chosen, chosen, "u", 1, "", "", True)

    assert with_examples("C:", [row("A:", " a"), row("B:", " b")]) == "A: a\n\nB: b\n\nC:"
    assert with_examples("C:", []) == "C:"
    example = row([said("system", "old"), said("user", "A?")], [said("assistant", "a")])
    talk = [said("system", "new"), said("user", "C?")]
    assert with_examples(talk, [example]) == [talk[0], said("user", "A?"), said("assistant", "a"), talk[1]]


def test_examples_are_the_users_own_and_never_of_the_same_prompt(prepared: Path) -> None:
    data = read_prepared(prepared)
    choices, mine = OwnChoices(data, 4, seed=0), [row for row in data.train if row.user_id == "bob"]
    assert sorted(row.id for row in choices.of("bob", "new")) == sorted(row.id for row in mine)
    for row in mine:
        assert row not in choices.of("bob", row.prompt)
        assert len(choices.of("bob", row.prompt)) == len(mine) - 1
    assert choices.of("zoe", "new") == choices.of("generic", "new") == []
    two = OwnChoices(data, 2, seed=0)
    assert two.of("bob", "new") == choices.of("bob", "new")[:2]
    orders = {tuple(row.id for row in OwnChoices(data, 4, seed).of("bob", "new")) for seed in range(10)}
    assert len(orders) > 1


def test_examples_of_an_unseen_user_are_the_known_choices(prepared: Path) -> None:
    data = read_prepared(prepared)
    known = [replace(row, user_id="zoe", user_index=0, seen=False) for row in data.train[:3]]
    choices = OwnChoices(replace(data, choices=known), 4, seed=0)
    assert {row.id for row in choices.of("zoe", "new")} == {row.id for row in known}
    assert {row.id for row in choices.of("zoe", known[0].prompt)} == {row.id for row in known[1:]}


def test_own_choices_are_of_distinct_prompts(prepared: Path) -> None:
    data = read_prepared(prepared)
    doubled = replace(data, train=[*data.train, *(replace(row, id=f"{row.id}b") for row in data.train)])
    assert OwnChoices(doubled, 8, 0).of("ann", "new") == OwnChoices(data, 8, 0).of("ann", "new")


# ---- what the model sees ----


@pytest.fixture(scope="module")
def policy(trained: Path) -> Policy:
    return load_policy(trained, "cpu", "fp32")


def shown(policy: Policy, data: Prepared, prompt: str, user: str, **options: Any) -> str:
    config = GenerateConfig.model_validate({"max_new_tokens": 6} | options)
    reader = Reader(user, policy.index_of().get(user, 0), "she likes long tables", TASTES.get(user, ""))
    request = plan_requests(policy, [(prompt, reader)], baseline_of(config, data), config)[0]
    assert (request.prompt, request.prompt_id, request.user_id) == (
        prompt,
        prompt_id(prompt),
        user,
    )  # as asked, to be judged
    return str(policy.tokenizer.decode(request.ids))


def test_what_the_base_is_shown(policy: Policy, tasteful: Path) -> None:
    data, prompt = read_prepared(tasteful), "POST: my boss hid rings.\nTL;DR:"
    assert shown(policy, data, prompt, "ann") == f"she likes long tables{prompt}"
    assert shown(policy, data, prompt, "ann", baseline="base") == prompt
    assert shown(policy, data, prompt, "ann", baseline="oracle") == f"say it all.\n{prompt}"
    assert shown(policy, data, prompt, "generic", baseline="oracle") == prompt
    one = OwnChoices(data, 1, 0).of("ann", prompt)[0]
    told = shown(policy, data, prompt, "ann", baseline="in-context", examples=1)
    assert told == f"{one.prompt}{one.chosen}\n\n{prompt}"
    assert shown(policy, data, prompt, "zoe", baseline="in-context") == prompt
    drawn = {shown(policy, data, prompt, "ann", baseline="in-context", examples=1, seed=seed) for seed in range(10)}
    assert len(drawn) > 1


def test_examples_without_room_are_dropped_and_counted(policy: Policy, prepared: Path) -> None:
    """The one nearest to the prompt stays; where there is room for none the prompt stands alone."""
    data, notes = read_prepared(prepared), Notes()
    prompt, reader = "POST: my boss hid rings.\nTL;DR:", Reader("ann", 1, "")
    options = {"baseline": "in-context", "max_new_tokens": 6}

    def ids(room: int, examples: int) -> list[int]:
        config = GenerateConfig.model_validate(options | {"max_new_tokens": room, "examples": examples})
        return plan_requests(policy, [(prompt, reader)], baseline_of(config, data), config, notes)[0].ids

    four = OwnChoices(data, 4, 0).of("ann", prompt)
    last = policy.tokenizer(f"{four[-1].prompt}{four[-1].chosen}\n\n{prompt}").input_ids
    alone = policy.tokenizer(prompt).input_ids
    assert ids(policy.base.context - len(last), 4) == last
    assert ids(policy.base.context - len(last) + 1, 4) == alone
    assert notes.lines == [f"{n} examples were dropped: no room for them in the context" for n in (3, 4)]
    with pytest.raises(PrlhfError, match=r"has .* tokens, and .* fit"):
        ids(policy.base.context - len(alone) + 1, 4)


def test_a_limit_on_prompts_does_not_cut_what_a_baseline_adds(
    tmp_path: Path, make_config: MakeConfig, tasteful: Path
) -> None:
    train(make_config(tmp_path / "r", max_steps=1, max_prompt_tokens=12))
    policy, data = load_policy(tmp_path / "r", "cpu", "fp32"), read_prepared(tasteful)
    prompt = data.eval[2].prompt
    assert isinstance(prompt, str)
    assert shown(policy, data, prompt, "ann", baseline="oracle") == f"say it all.\n{prompt}"
    cut = shown(policy, data, prompt, "ann", baseline="base")
    assert prompt.endswith(cut)
    assert len(policy.tokenizer(cut).input_ids) == 12 < len(policy.tokenizer(prompt).input_ids)


# ---- the files ----


def test_the_oracle_writes_as_the_base_with_the_preference_in_the_prompt(
    tmp_path: Path, trained: Path, tasteful: Path
) -> None:
    """Two users of one taste get, word for word, the same; and what the base writes to the longer prompt."""
    rows = write(tmp_path, trained, baseline="oracle", dataset=str(tasteful), temperature=0)
    assert [row.user_id for row in rows] == ["ann", "bob", "cat", "generic"] * 3
    by_user = {user: [row for row in rows if row.user_id == user] for user in ("ann", "bob", "cat", "generic")}
    assert [row.response for row in by_user["bob"]] == [row.response for row in by_user["cat"]]
    assert [row.response for row in by_user["bob"]] != [row.response for row in by_user["ann"]]
    lines = [f'{{"prompt": "be brief.\\n{row.prompt}"}}'.replace("\n", "\\n") for row in by_user["bob"]]
    (tmp_path / "told.jsonl").write_text("\n".join(lines))
    base = write(
        tmp_path, trained, "told-out.jsonl", baseline="base", prompts=str(tmp_path / "told.jsonl"), temperature=0
    )
    assert [row.response for row in base] == [row.response for row in by_user["bob"]]
    assert rows[0].settings["baseline"] == "oracle"


@pytest.mark.parametrize("baseline", MODELS)
def test_a_run_and_its_base_write_the_same(
    tmp_path: Path, trained: Path, tasteful: Path, tiny_base: Path, baseline: str
) -> None:
    """A baseline needs no training: without a run the base alone writes, to the same users and prompts."""
    options = {"baseline": baseline, "dataset": str(tasteful), "prompts": "own", "users": "all,generic"}
    ours = write(tmp_path, trained, "run.jsonl", **options)
    alone = write(tmp_path, None, "alone.jsonl", model=str(tiny_base), **options)
    assert [replace(row, settings={}) for row in alone] == [replace(row, settings={}) for row in ours]
    assert alone[0].settings["run"] == str(tiny_base)
    assert {row.user_id for row in alone} == {"generic"} | (set() if baseline == "base" else set(TASTES))
    assert {row.user_id: row.user_index for row in alone}.get("cat", 3) == 3


@pytest.mark.parametrize("baseline", MODELS)
def test_the_batch_and_a_kill_change_nothing(tmp_path: Path, trained: Path, tasteful: Path, baseline: str) -> None:
    options = {"baseline": baseline, "dataset": str(tasteful)}
    whole = write(tmp_path, trained, **options)
    assert write(tmp_path, trained, "one.jsonl", batch_size=1, **options) == whole
    content = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "cut.jsonl.partial").write_bytes(content[: len(content) * 2 // 3])
    assert write(tmp_path, trained, "cut.jsonl", **options) == whole
    assert (tmp_path / "cut.jsonl").read_bytes() == content


@pytest.mark.parametrize("baseline", ["oracle", "in-context"])
def test_a_users_response_does_not_depend_on_other_users(
    tmp_path: Path, trained: Path, tasteful: Path, baseline: str
) -> None:
    options = {"baseline": baseline, "dataset": str(tasteful)}
    everyone = write(tmp_path, trained, **options)
    bob = write(tmp_path, trained, "bob.jsonl", users="bob", **options)
    assert bob == [row for row in everyone if row.user_id == "bob"]


@pytest.mark.parametrize("other", [{"baseline": "base"}, {"examples": 2}, {"seed": 1}])
def test_other_baselines_are_not_mixed_in(tmp_path: Path, trained: Path, other: dict[str, Any]) -> None:
    write(tmp_path, trained, baseline="in-context")
    with pytest.raises(PrlhfError, match=f"holds responses with {next(iter(other))} = "):
        write(tmp_path, trained, **({"baseline": "in-context"} | other))


def test_other_data_are_not_mixed_in(tmp_path: Path, trained: Path, tasteful: Path) -> None:
    options = {"baseline": "oracle", "users": "ann"}
    write(tmp_path, trained, dataset=str(tasteful), **options)
    data = read_prepared(tasteful)
    write_prepared(tmp_path / "d", replace(data, train=data.train[1:]))
    with pytest.raises(PrlhfError, match="holds responses with data = "):
        write(tmp_path, trained, dataset=str(tmp_path / "d"), **options)


# ---- the chosen responses ----


def test_the_chosen_responses_are_those_of_the_data(tmp_path: Path, prepared: Path) -> None:
    rows = write(tmp_path, None, baseline="chosen", dataset=str(prepared), max_prompts=None)
    expected = {(row.prompt_id, row.user_id): row.chosen for row in read_prepared(prepared).eval}
    assert {(row.prompt_id, row.user_id): row.response for row in rows} == expected
    assert {row.finish_reason for row in rows} == {"stop"}
    assert {row.user_id: row.user_index for row in rows} == {"ann": 1, "bob": 2, "cat": 3, "zoe": 0}
    assert rows[0].settings["baseline"] == "chosen"


def test_the_chosen_responses_can_be_judged_against_those_of_a_run(tmp_path: Path, trained: Path) -> None:
    ours = write(tmp_path, trained, prompts="own")
    chosen = write(tmp_path, trained, "chosen.jsonl", baseline="chosen")
    found = pair(ours, chosen)
    assert (len(found.pairs), found.unpaired_a, found.unpaired_b, found.generic_for_b) == (len(ours), 0, 0, 0)
    assert {p.kind for p in found.pairs} == {"seen", "unseen"}


def test_chosen_responses_of_some_users_and_prompts(tmp_path: Path, prepared: Path) -> None:
    data, notes = read_prepared(prepared), Notes()
    (tmp_path / "p.jsonl").write_text('{"prompt": "nobody was asked this"}\n')
    values = {"out": tmp_path / "out.jsonl", "baseline": "chosen", "dataset": str(prepared), "users": "ann"}
    first = generate(None, GenerateConfig.model_validate(values))
    again = generate(None, GenerateConfig.model_validate(values | {"users": "zoe,ann"}))
    assert [(said["responses"], said["new"], said["users"]) for said in (first, again)] == [(2, 2, 1), (4, 2, 2)]
    with pytest.raises(PrlhfError, match=r"users = ann chose nothing among prompts = .*; use --prompts own"):
        generate(None, GenerateConfig.model_validate(values | {"prompts": str(tmp_path / "p.jsonl")}), notes)
    asked = [{"prompt": data.eval[0].prompt, "user_id": user} for user in ("ann", "bob")]
    write_prepared(tmp_path / "d", replace(data, judging=asked))
    values |= {"prompts": "judging", "users": "all", "dataset": str(tmp_path / "d"), "out": tmp_path / "j.jsonl"}
    assert generate(None, GenerateConfig.model_validate(values), notes)["responses"] == 1
    assert notes.lines[-1] == "1 (prompt, user) pairs have no chosen response in the held-out data"


def test_the_words_of_a_chosen_conversation() -> None:
    talk, answer = [said("user", "Why?")], [said("assistant", "So.")]
    row = Comparison("0", talk, answer, [said("assistant", "No.")], "ann", 1, "", prompt_id(talk), True)
    again = replace(row, id="1", chosen=[said("assistant", "Later.")])
    data = Prepared([], [row, again], [], {})
    chosen = baseline_of(GenerateConfig(baseline="chosen"), data)
    assert chosen.responses([(talk, Reader("ann", 1, "")), (talk, Reader("bob", 2, ""))]) == ["So.", None]


# ---- vanilla DPO with the text about the user, as in the PRISM experiments ----


def test_vanilla_dpo_with_user_text(tmp_path: Path, make_config: MakeConfig) -> None:
    """Text is all that tells users apart: those without one are the generic user, the unseen come with theirs."""
    train(make_config(tmp_path / "r", user_model="uniform", user_tokens=0, user_text=True))
    rows = write(tmp_path, tmp_path / "r", users="all,unseen", temperature=0)
    by_user = {user: [row.response for row in rows if row.user_id == user] for user in [*TASTES, "generic"]}
    assert by_user["bob"] == by_user["cat"] == by_user["generic"]
    assert len({tuple(by_user[user]) for user in ("ann", "zoe", "generic")}) == 3
    assert {row.user_id: row.user_index for row in rows} == {"ann": 1, "bob": 2, "cat": 3, "generic": 0, "zoe": 0}
    tokens = {row.user_id: row.prompt_tokens for row in rows[:5]}
    policy = load_policy(tmp_path / "r", "cpu", "fp32")
    assert tokens["zoe"] - tokens["bob"] == len(policy.tokenizer("a pilot with boats").input_ids)


def test_no_model_no_data(tmp_path: Path, trained: Path, prepared: Path, tiny_base: Path) -> None:
    for options, message in (
        ({}, "no data set is named; add --dataset"),
        ({"dataset": str(prepared)}, "no run is named; give the folder of a finished run"),
        ({"dataset": str(prepared), "model": str(tiny_base)}, "no run is named"),
        ({"dataset": str(prepared), "baseline": "base"}, "no run is named"),
        ({"baseline": "chosen"}, "no data set is named"),
        ({"baseline": "in-context", "model": str(tiny_base), "prompts": "mine.txt"}, "no data set is named"),
        ({"baseline": "oracle", "dataset": str(prepared), "model": str(tiny_base)}, "has no user's preference"),
    ):
        with pytest.raises(PrlhfError, match=message):
            write(tmp_path, None, **options)
    (tmp_path / "mine.txt").write_text("my boss\n")
    rows = write(tmp_path, None, baseline="base", model=str(tiny_base), prompts=str(tmp_path / "mine.txt"))
    assert [(row.prompt, row.user_id) for row in rows] == [("my boss", "generic")]
