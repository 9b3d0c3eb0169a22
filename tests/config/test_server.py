"""Values of a server's configuration that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from ernie45.config.errors import ConfigError
from ernie45.config.server import ServerConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "8180"),
        ("max_body_bytes", 10),
        ("max_num_requests", 0),
        ("num_media_workers", True),
        ("drain_seconds", float("nan")),
        ("drain_seconds", -1),
        ("allowed_media_folder", Path("/no/such/folder")),
    ],
)
def test_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        ServerConfig(model="tiny", **{field: value})


def test_model_name() -> None:
    assert ServerConfig(model="models/ERNIE-4.5-VL-28B-A3B-PT/").model_name == "ERNIE-4.5-VL-28B-A3B-PT"
    assert ServerConfig(model="tiny").model_name == "tiny"
    assert ServerConfig(model="tiny", served_model_name="mine").model_name == "mine"
