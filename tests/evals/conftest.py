"""A fresh processor of the tiny model's kind."""

import pytest

from ernie45.data.tiny.model import tiny_processor as make
from ernie45.processor import Processor


@pytest.fixture(scope="session")
def tiny_processor() -> Processor:
    return make()
