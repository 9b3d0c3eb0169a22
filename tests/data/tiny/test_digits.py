"""The digits are scikit-learn's, and training cannot reach those that are held out."""

import ast
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import ernie45
from ernie45.config.errors import DataError
from ernie45.data.tiny import digits
from ernie45.evals.heldout import heldout_digits

PACKAGE = Path(ernie45.__file__).parent


def test_the_archive_is_scikit_learns_set_cut_in_two() -> None:
    published = load_digits()
    training, heldout = digits.training_digits(), heldout_digits()
    assert len(training) == digits.NUM_TRAINING
    np.testing.assert_array_equal(np.concatenate([training.images_NHW, heldout.images_NHW]), published.images)
    np.testing.assert_array_equal(np.concatenate([training.labels_N, heldout.labels_N]), published.target)


def test_no_held_out_digit_is_also_a_training_digit() -> None:
    training = {image.tobytes() for image in digits.training_digits().images_NHW}
    assert not training & {image.tobytes() for image in heldout_digits().images_NHW}


def test_fit_and_validation_cut_the_training_digits() -> None:
    fit, validation, everything = (digits.training_digits(part) for part in ("fit", "validation", "all"))
    np.testing.assert_array_equal(np.concatenate([fit.images_NHW, validation.images_NHW]), everything.images_NHW)
    with pytest.raises(DataError, match="part of the digits"):
        digits.training_digits("heldout")


def test_training_reads_only_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = np.lib.npyio.NpzFile.__getitem__

    def record(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
        read.append(name)
        return original(archive, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", record)
    digits.training_digits()
    assert read == ["training_images", "training_labels"]


def test_code_that_trains_never_names_the_held_out_digits() -> None:
    """`recipes.tiny` calls `evals` for its scores; nothing below it may name the accessor, and the recipe neither."""
    for folder in ("data", "train", "recipes", "model", "processor"):
        for path in (PACKAGE / folder).rglob("*.py"):
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert "heldout_digits" not in names, path
            assert not any(node.module == "ernie45.evals.heldout" for node in imports), path
            assert '"heldout"' not in path.read_text(), path
