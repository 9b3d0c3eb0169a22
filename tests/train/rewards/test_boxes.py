"""Boxes: the forms that are read, overlap, and pairing that is the best there is."""

import itertools
import json

import numpy as np
import pytest

from ernie45.data.answers import Graded
from ernie45.train.rewards.boxes import Box, Boxes, best_pairs, iou, read_boxes

LOCATIONS = "".join(f"<|LOC_{n}|>" for n in (10, 20, 30, 20, 30, 40, 10, 40))


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("at [10, 20, 30, 40].", [(10, 20, 30, 40)]),
        ("(10,20),(30,40)", [(10, 20, 30, 40)]),
        ("[[10, 20, 30, 40], [0, 0, 0.5, 1]]", [(10, 20, 30, 40), (0, 0, 0.5, 1)]),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "Cat"}]\n```', [(10, 20, 30, 40, "cat")]),
        ('{"box": [30, 40, 10, 20]}', [(10, 20, 30, 40)]),
        ("a sign<|LOC_BEGIN|>" + LOCATIONS + "<|LOC_END|>", [(10, 20, 30, 40)]),
        ("<|LOC_1|><|LOC_2|><|LOC_3|><|LOC_4|>", [(1, 2, 3, 4)]),
        ("[1, 2, 1, 4] has no area", []),
        ("[1, 2, 3]", []),
        ("none", []),
    ],
)
def test_forms(text: str, boxes: list[tuple]) -> None:
    assert read_boxes(text) == [Box(*box) for box in boxes]


def value(answer: list, reference: list, **options: float) -> float | None:
    item = Graded(answer=json.dumps(answer), reference=json.dumps(reference))
    return Boxes(**options).judge([item])[0].value


def test_one_box_scores_its_overlap() -> None:
    assert iou(Box(0, 0, 2, 2), Box(1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert value([[0, 0, 2, 2]], [[1, 1, 3, 3]]) == pytest.approx(1 / 7)
    assert value([[0, 0, 2, 2]], [[1, 1, 3, 3]], threshold=0.5) == 0
    assert value([[0, 0, 2, 2]], [[0, 0, 2, 3]], threshold=0.5) == 1
    assert value([], [[0, 0, 1, 1]]) == 0


def test_missing_boxes_and_more_than_asked_for_cost() -> None:
    one, other = [0, 0, 2, 2], [5, 5, 9, 9]
    assert value([other, one], [one, other]) == pytest.approx(1)
    assert value([one], [one, other]) == pytest.approx(2 / 3)
    assert value([one, one, other], [one, other]) == pytest.approx(4 / 5)
    many = [[0, 0, x, x] for x in range(1, 400)]
    assert value(many, [one]) == pytest.approx(2 / 400)  # a shower of boxes finds one, and pays for all


def test_labels_must_agree_where_both_have_them() -> None:
    cat, dog = ({"bbox": [0, 0, 2, 2], "label": name} for name in ("cat", "dog"))
    assert value([cat], [dog]) == 0
    assert value([cat], [[0, 0, 2, 2]]) == 1


def test_a_reference_without_boxes_is_an_event() -> None:
    item = Graded(answer="[1, 2, 3, 4]", reference="left")
    assert Boxes().judge([item])[0].event == "bad_reference"
    assert not Boxes().applies(item)


def test_pairs_are_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = rng.integers(1, 6, size=2)
        gains = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.7)
        wide = gains if rows <= columns else gains.T
        best = max(
            sum(wide[row, column] for row, column in enumerate(order))
            for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        pairs = best_pairs(gains)
        assert sum(gains[row, column] for row, column in pairs) == pytest.approx(best)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs) == min(rows, columns)
