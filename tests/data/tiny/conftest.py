"""One processor for all tests of the tiny data."""

import pytest

from ernie45.data.tiny.model import tiny_processor
from ernie45.processor import Processor


@pytest.fixture(scope="session")
def processor() -> Processor:
    return tiny_processor()
