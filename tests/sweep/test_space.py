import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.errors import PrlhfError
from prlhf.sweep.space import configs, grid, parse_space


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
        (["alpha"], "'alpha' is no key=value,value"),
        (["=1"], "'=1' is no key=value,value"),
        (["alfa=0.1"], "unknown key 'alfa' in --space; did you mean 'alpha'?"),
        (["alpha="], "'alpha=' has an empty value"),
        (["alpha=0.1,"], "'alpha=0.1,' has an empty value"),
        (["alpha=null"], "'alpha=null' has an empty value"),
        (['model=""'], "has an empty value"),
        (["alpha=0.1,,0.2"], "cannot read the values"),
        (["alpha=[0.1"], "cannot read the values"),
        (["alpha=0.1,0.2,0.1"], "'alpha=0.1,0.2,0.1' has 0.1 twice"),
        (["alpha=0.1", "train.alpha=0.2"], "--space names 'alpha' twice"),
        (["out=a,b"], "'out' cannot be swept"),
    ],
)
def test_bad_spaces_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(PrlhfError) as error:
        parse_space(texts)
    assert message in str(error.value)


def test_points_go_on_top_of_the_base() -> None:
    made = configs({"alpha": 0.9, "k": 7}, [{"alpha": 0.2}, {"alpha": 0.5}])
    assert [(config.alpha, config.k) for config in made] == [(0.2, 7), (0.5, 7)]


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        ({}, "alpha=0.5,1.5", "alpha = 1.5 is refused"),
        ({}, "alpha=0.5,x", "alpha = 'x' is refused"),
        ({}, "alpha=[0.5]", "alpha = [0.5] is refused"),
        ({}, "user_model=cluster,clustr", "user_model = 'clustr' is not known; did you mean 'cluster'?"),
        ({}, "user_tokens=10,0", "user_tokens = 0 leaves user_model = individual"),
        ({"bta": 1}, "alpha=0.5", "unknown key 'bta'"),
        ({}, "lr=1e-4,0.0001", "are the same trial"),
    ],
)
def test_every_point_is_checked(base: dict[str, int], text: str, message: str) -> None:
    with pytest.raises(PrlhfError) as error:
        configs(base, grid(parse_space([text])))
    assert message in str(error.value)
