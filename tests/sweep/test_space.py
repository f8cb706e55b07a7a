import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.config import SweepConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import over, typed_settings
from prlhf.sweep.settings import all_settings, check_space
from prlhf.sweep.space import Range, contains, corners, draw, grid, merged_space, parse_space, size, space_of


def test_values_are_yaml_and_keys_forgive_dashes_and_the_stage() -> None:
    space = parse_space(["train.alpha=0.2, 0.5", "user-tokens=1,10", "user_model=individual,cluster", "user-text=true"])
    assert space == {
        "alpha": [0.2, 0.5],
        "user_tokens": [1, 10],
        "user_model": ["individual", "cluster"],
        "user_text": [True],
    }
    assert list(space) == ["alpha", "user_tokens", "user_model", "user_text"]


def test_quotes_keep_a_comma() -> None:
    assert parse_space(['lora_targets="q_proj,v_proj",all-linear']) == {"lora_targets": ["q_proj,v_proj", "all-linear"]}


def test_the_last_key_varies_fastest() -> None:
    assert grid({"alpha": [0.2, 0.5], "k": [3, 4]}) == [
        {"alpha": 0.2, "k": 3},
        {"alpha": 0.2, "k": 4},
        {"alpha": 0.5, "k": 3},
        {"alpha": 0.5, "k": 4},
    ]


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=4, unique=True)))
def test_the_grid_holds_every_combination_once(space: dict[str, list[int]]) -> None:
    points = grid(space)
    expected = 1
    for values in space.values():
        expected *= len(values)
    assert len(points) == expected == len({tuple(point.values()) for point in points})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no --space"),
        (["alpha"], "'alpha' is not key=value,value"),
        (["=1"], "'=1' is not key=value,value"),
        (["alfa=0.1"], "unknown key 'alfa' in --space; did you mean 'alpha'?"),
        (["alpha="], "'alpha=' has an empty value"),
        (["alpha=0.1,"], "'alpha=0.1,' has an empty value"),
        (["alpha=null"], "'alpha=null' has an empty value"),
        (['model=""'], "has an empty value"),
        (["alpha=0.1,,0.2"], "cannot read the values"),
        (["alpha=[0.1"], "cannot read the values"),
        (["alpha=0.1,0.2,0.1"], "'alpha=0.1,0.2,0.1' has 0.1 twice"),
        (["lr=1e-4,0.0001"], "'lr=1e-4,0.0001' has 0.0001 twice"),
        (["generate.tempersture=0.1"], "did you mean 'generate.temperature'"),
        (["judge.seed=1,2"], "unknown key 'judge.seed' in --space"),
        (["generate.prompts=a,b"], "'generate.prompts' cannot be swept: all trials write for the same prompts"),
        (["alpha=0.9:0.1"], "'alpha=0.9:0.1' is an empty range; write the lower end first"),
        (["alpha=0:inf"], "'alpha=0:inf' is an empty range"),
        (["lr=0:1e-3:log"], "'lr=0:1e-3:log' is logarithmic and starts at 0; start above 0"),
        (["lr=1e-5:1e-3:lgo"], "'lr=1e-5:1e-3:lgo': 'lgo' is not a scale; write :log"),
        (["user_model=0.1:0.9"], "is a range, and user_model is not a number; list its values"),
        (["user_text=0:1"], "is a range, and user_text is not a number"),
        (["k=1.5:5"], "'k=1.5:5': k is a whole number; write whole ends"),
        (["alpha=0.1:0.5,0.9"], "'alpha=0.1:0.5,0.9' is not a range"),
        (["k=1:20,30"], "'k=1:20,30' is not a range"),
        (["alpha=0.1", "train.alpha=0.2"], "--space names 'alpha' twice"),
        (["out=a,b"], "'out' cannot be swept"),
    ],
)
def test_bad_spaces_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(PrlhfError) as error:
        parse_space(texts)
    assert message in str(error.value)


def test_recipes_give_texts_or_lists() -> None:
    space = space_of({"alpha": "0.1:0.9", "user-tokens": [1, 5], "lora_targets": ["q_proj,v_proj", "all-linear"]})
    assert space["alpha"] == Range(0.1, 0.9)
    assert (space["user_tokens"], space["lora_targets"]) == ([1, 5], ["q_proj,v_proj", "all-linear"])
    with pytest.raises(PrlhfError, match=r'sweep.space.k = 80 is neither a range nor a list; write k: "1:20"'):
        space_of({"k": 80})  # what YAML makes of 1:20


def test_the_command_line_adds_to_the_recipe() -> None:
    recipe = {"user-tokens": [1, 5], "alpha": "0.1:0.9"}
    assert merged_space(recipe, ["user_tokens=7", "k=2"]) == {"user_tokens": "7", "alpha": "0.1:0.9", "k": "2"}
    typed = typed_settings({}, ["beta=0.2", "generate.seed=3", "train.alpha=0.4"], ("train", "generate"))
    layered = over({"train": {"alpha": 0.1}}, typed)
    assert layered == {"train": {"alpha": 0.4, "beta": 0.2}, "generate": {"seed": 3}}


def test_ranges_and_what_they_hold() -> None:
    space = parse_space(["alpha=0.1:0.9", "lr=1e-5:1e-3:log", "k=5:50", "pack_tokens=16:4096:log", "generate.seed=0:3"])
    assert space == {
        "alpha": Range(0.1, 0.9),
        "lr": Range(1e-5, 1e-3, log=True),
        "k": Range(5, 50, whole=True),
        "pack_tokens": Range(16, 4096, log=True, whole=True),
        "generate.seed": Range(0, 3, whole=True),
    }
    assert size({"k": space["k"], "seed": space["generate.seed"]}) == 46 * 4
    assert len(corners(space)) == 32
    assert contains(space["k"], 50)
    assert not contains(space["k"], 50.0)
    assert not contains(space["alpha"], 0.95)


@given(
    low=st.floats(1e-6, 1e3), factor=st.floats(1, 1e4), log=st.booleans(), whole=st.booleans(),
    share=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_what_is_drawn_lies_in_the_range(low: float, factor: float, log: bool, whole: bool, share: float) -> None:
    axis = Range(low, low * factor, log)
    if whole:
        axis = Range(int(low) + 1, int(low * factor) + 2, log, whole=True)
    assert axis.low <= axis.at(share) <= axis.high
    assert not whole or isinstance(axis.at(share), int)


def test_whole_numbers_are_drawn_equally_often_and_both_ends_are() -> None:
    points = [draw({"k": Range(1, 4, whole=True)}, 0, number)["k"] for number in range(4000)]
    assert all(900 < points.count(k) < 1100 for k in (1, 2, 3, 4))
    logs = [draw({"k": Range(1, 1000, log=True, whole=True)}, 0, number)["k"] for number in range(3000)]
    assert all(850 < sum(low <= k < 10 * low for k in logs) < 1150 for low in (1, 10, 100))


def test_a_point_depends_on_seed_and_number_alone() -> None:
    space = parse_space(["alpha=0.1:0.9", "k=5,10,50"])
    assert draw(space, 3, 7) == {key: draw(space | parse_space(["beta=0.1:0.2"]), 3, 7)[key] for key in space}
    assert draw(space, 3, 7) != draw(space, 3, 8) != draw(space, 4, 8)


SWEEP = SweepConfig()


def test_points_go_on_top_of_the_base() -> None:
    made = all_settings([{"alpha": 0.2}, {"alpha": 0.5}], {"train": {"alpha": 0.9, "lora_r": 7}}, SWEEP)
    assert [(settings.train.alpha, settings.train.lora_r) for settings in made] == [(0.2, 7), (0.5, 7)]
    assert made[0].generate is None


def test_generating_is_part_of_a_trial_where_the_metric_comes_from_it() -> None:
    sweep = SweepConfig(metric="judge/winrate")
    sections = {"generate": {"seed": 3}, "judge": {"judge": "rule:shorter"}}
    (made,) = all_settings([{"alpha": 0.2, "generate.temperature": 0.5}], sections, sweep)
    assert made.generate
    assert made.judge
    assert (made.train.alpha, made.generate.temperature, made.generate.seed) == (0.2, 0.5, 3)
    assert made.judge.judge == "rule:shorter"


def test_two_ways_to_write_one_trial_are_refused() -> None:
    with pytest.raises(PrlhfError, match="are the same trial; remove one of the values"):
        all_settings([{"lr": "1e-4"}, {"lr": 1e-4}], {}, SWEEP)


def test_every_value_is_checked_where_there_are_too_many_corners() -> None:
    space = parse_space([f"{key}=1,2,3,4,5,6,7" for key in ("lora_alpha", "lora_r", "seed", "batch_size", "epochs")])
    space |= {"alpha": [0.1, 0.2, 1.5]}
    with pytest.raises(PrlhfError, match=r"alpha = 1\.5 is refused"):
        check_space(space, {}, SWEEP)


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        ({}, "alpha=0.5,1.5", "alpha = 1.5 is refused"),
        ({}, "alpha=0.5,x", "alpha = 'x' is refused"),
        ({}, "alpha=[0.5]", "alpha = [0.5] is refused"),
        ({}, "user_model=cluster,clustr", "user_model = 'clustr' is not known; did you mean 'cluster'?"),
        ({}, "user_tokens=10,0", "user_tokens = 0 leaves user_model = individual"),
        ({"bta": 1}, "alpha=0.5", "unknown key 'bta'"),
        ({}, "alpha=0.5:1.5", "alpha = 1.5 is refused"),
        ({}, "alpha=-0.5:0.5", "alpha = -0.5 is refused"),
        ({}, "user_tokens=0:10", "user_tokens = 0 leaves user_model = individual"),
    ],
)
def test_every_point_is_checked(base: dict[str, int], text: str, message: str) -> None:
    with pytest.raises(PrlhfError) as error:
        check_space(parse_space([text]), {"train": base}, SWEEP)
    assert message in str(error.value)
