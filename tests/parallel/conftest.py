"""The small model of the training tests."""

from tests.train.conftest import model, picture_batch, processor  # noqa: F401
