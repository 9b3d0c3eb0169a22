"""The family by name."""

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.parameters import count_parameters
from ernie45.config.presets import PRESETS, preset

BILLIONS = {"0.3b": (0.3, 0.4), "21b-a3b": (21, 22), "28b-a3b": (28, 30), "300b-a47b": (299, 301), "424b-a47b": (422, 426)}


@pytest.mark.parametrize("name", BILLIONS)
def test_size_is_in_the_name(name: str) -> None:
    low, high = BILLIONS[name]
    assert low * 1e9 < count_parameters(preset(name)) < high * 1e9


def test_every_preset_is_covered() -> None:
    assert set(PRESETS) == {*BILLIONS, "tiny"}


def test_vision_is_where_the_name_says() -> None:
    assert [name for name in BILLIONS if preset(name).is_multimodal] == ["28b-a3b", "424b-a47b"]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"preset \('28b-a3'\) must be one of tiny, 0\.3b, .*; did you mean '28b-a3b'\?"):
        preset("28b-a3")


def test_what_is_not_verified_is_said() -> None:
    assert PRESETS["424b-a47b"].unverified
    assert PRESETS["300b-a47b"].unverified
    assert not PRESETS["28b-a3b"].unverified
