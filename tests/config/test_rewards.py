"""The text form of rewards: what it means, that it survives printing, and that mistakes are named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.config.errors import ConfigError
from ernie45.config.rewards import RewardsConfig, RewardSpec, parse_spec, read_options
from ernie45.config.train import with_overrides

EXACT, MATH = RewardSpec(name="exact"), RewardSpec(name="math")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("exact", EXACT),
        (" exact ( ) ", EXACT),
        ("exact(case=true, x='a, b)')", RewardSpec(name="exact", options=(("case", "true"), ("x", "a, b)")))),
        (
            "judge(url=http://localhost:1/v1,model=m)",
            RewardSpec(name="judge", options=(("url", "http://localhost:1/v1"), ("model", "m"))),
        ),
        ("exact*math", RewardSpec(name="product", parts=(EXACT, MATH))),
        ("0.9*exact + .1*math", RewardSpec(name="sum", parts=(EXACT, MATH), weights=(0.9, 0.1))),
        ("exact - 2*math", RewardSpec(name="sum", parts=(EXACT, MATH), weights=(1.0, -2.0))),
        ("-exact", RewardSpec(name="sum", parts=(EXACT,), weights=(-1.0,))),
        ("first(math, exact)", RewardSpec(name="first", parts=(MATH, EXACT))),
        ("((exact))", EXACT),
    ],
)
def test_texts_mean_what_they_say(text: str, spec: RewardSpec) -> None:
    assert parse_spec(text) == spec
    assert parse_spec(str(spec)) == spec


def leaves() -> st.SearchStrategy[RewardSpec]:
    values = st.text(st.sampled_from("ab ,()*+-=1./:'"), max_size=6)
    options = st.dictionaries(st.sampled_from(["a", "b_c", "d1"]), values, max_size=2)
    return st.builds(lambda o: RewardSpec(name="exact", options=tuple(o.items())), options)


def composed(inner: st.SearchStrategy[RewardSpec]) -> st.SearchStrategy[RewardSpec]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    weights = st.floats(0.01, 10).map(lambda weight: round(weight, 3))
    weighted = st.lists(st.tuples(inner, weights), min_size=2, max_size=3)
    return st.one_of(
        several.map(lambda parts: RewardSpec(name="product", parts=parts)),
        several.map(lambda parts: RewardSpec(name="first", parts=parts)),
        weighted.map(lambda p: RewardSpec(name="sum", parts=tuple(x for x, _ in p), weights=tuple(w for _, w in p))),
    )


@given(st.recursive(leaves(), composed, max_leaves=6))
def test_printing_and_parsing_are_inverse(spec: RewardSpec) -> None:
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the name of a reward must stand before 'its end'"),
        ("0.5", "a reward behind the number"),
        ("0*exact", "weight 0.0 must be"),
        ("exact +", "the name of a reward"),
        ("exact math", "an operator"),
        ("exact(case=true", "`,` must stand before"),
        ("exact(case=true, case=false)", "option case stands there twice"),
        ("exact(math)", "rewards inside of first"),
        ("first(case=true)", "rewards inside of first"),
        ("product(exact)", "for sums and products"),
        ("first()", "rewards inside of first"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("(", r"\(")):
        parse_spec(text)


def test_domains_come_as_text_or_file(tmp_path: Path) -> None:
    text = json.dumps({"math": "math", "chart": "first(relaxed, exact)"})
    (tmp_path / "domains.json").write_text(text)
    inline, file = RewardsConfig(domains=text), RewardsConfig(domains=str(tmp_path / "domains.json"))
    assert inline.specs() == file.specs()
    assert set(inline.specs()) == {"", "math", "chart"}
    assert set(with_overrides(inline, {"spec": ""}).specs()) == {"math", "chart"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"spec": ""}, "must name a reward"),
        ({"domains": "[]"}, "rewards.domains"),
        ({"domains": "{}"}, "must be a JSON object of domain"),
        ({"domains": '{"a": 1}'}, r"\['a'\] \(1\)"),
        ({"domains": '{"a": "exact", "a": "math"}'}, "'a' stands there twice"),
        ({"domains": "/nowhere.json"}, "readable file"),
        ({"normalise": "z"}, "one of none, batch, running"),
        ({"decay": 1.0}, "rewards.decay"),
        ({"max_event_share": 0.0}, "rewards.max_event_share"),
        ({"log_events": -1}, "rewards.log_events"),
    ],
)
def test_wrong_settings_are_named(fields: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RewardsConfig(**fields)


def test_options_have_the_types_of_their_defaults() -> None:
    defaults: dict[str, object] = {"case": False, "num": 3, "tolerance": 0.5, "word": ""}
    read = read_options("x", defaults, (("case", "TRUE"), ("num", "4"), ("tolerance", "1e-3"), ("word", "w")))
    assert read == {"case": True, "num": 4, "tolerance": 1e-3, "word": "w"}
    with pytest.raises(ConfigError, match=r"option \('cas'\) of reward x is unknown; it has case, num"):
        read_options("x", defaults, (("cas", "true"),))
    with pytest.raises(ConfigError, match=r"num \('many'\) of reward x must be of type int"):
        read_options("x", defaults, (("num", "many"),))
