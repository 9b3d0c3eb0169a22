"""The judge of places in pictures: boxes of the answer against boxes of the reference, by overlap.

Knows nothing about pictures.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ernie45.config.errors import ConfigError
from ernie45.data.answers import Graded
from ernie45.train.rewards.reward import PerAnswer, Unscored, references

# Of an answer with more boxes all are counted, but only the first ones are matched: the time grows with the cube.
MAX_MATCHED = 200
_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_LIST = re.compile(rf"[\[(]{_NUMBER}(?:,{_NUMBER}){{3}}[\])]")
_PAIRS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_LOCATION = re.compile(r"(?:<\|LOC_\d{1,4}\|>\s*){4,}")
_KEYS = ("bbox_2d", "bbox", "box", "box_2d")


class Box(NamedTuple):
    """Corners with x1 <= x2 and y1 <= y2, and what it is said to show, "" if nothing is said."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, kw_only=True)
class Boxes(PerAnswer):
    """Overlap of the answer's boxes with those of the reference, in the numbers as they stand: both on the same scale.

    Boxes are paired one to one so that the sum of overlaps (IoU: area of intersection over area of union) is largest (Hungarian
    method); boxes that both have labels pair only if these are equal. IoU of a pair counts
    as it is, or with a threshold as 1 from there on and else as 0; the score is 2 * sum / (boxes answered + boxes of the
    reference), so a missing box and one too many cost the same. With one box each and threshold 0 it is the IoU.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold ({self.threshold}) of reward boxes must be from 0 (IoU itself) to 1")

    def applies(self, item: Graded) -> bool:
        return item.reference is not None and bool(read_boxes(item.reference))

    def value(self, item: Graded) -> float:
        answered, best = read_boxes(item.answer), 0.0
        for reference in references(item):
            right = read_boxes(reference)
            if not right:
                raise Unscored("bad_reference", f"answer ({reference!r}) must have a box, as in [x1, y1, x2, y2]")
            best = max(best, self._against(answered, right))
        return best

    def _against(self, answered: list[Box], right: list[Box]) -> float:
        if not answered:
            return 0.0
        ious = np.array([[iou(one, other) for other in right[:MAX_MATCHED]] for one in answered[:MAX_MATCHED]])
        if self.threshold:
            # Ties between pairs that count the same fall to the better overlap.
            ious = np.where(ious >= self.threshold, 1 + 1e-6 * ious, 0.0)
        matched = sum(float(ious[row, column]) for row, column in best_pairs(ious))
        return min(1.0, 2 * (round(matched) if self.threshold else matched) / (len(answered) + len(right)))


def read_boxes(text: str) -> list[Box]:
    """All boxes of a text, in one of these forms, the first of them that is there:

    JSON objects with bbox_2d, bbox, box or box_2d and perhaps label; runs of `<|LOC_n|>` tokens, n in thousandths of the
    picture's sides, as x1 y1 x2 y2 or as four corners x y (ERNIE's tokens; PaddleOCR-VL writes the latter); lists
    [x1, y1, x2, y2]; pairs of points (x1, y1), (x2, y2). Boxes of no area are left out.
    """
    found = _json_boxes(text)
    if not found:
        for run in _LOCATION.findall(text):
            values = [float(value) for value in re.findall(r"\d+", run)]
            size = 8 if len(values) % 8 == 0 else 4
            pieces = [values[start : start + size] for start in range(0, len(values) - size + 1, size)]
            found += [_box(piece) for piece in pieces]
    for pattern in (_LIST, _PAIRS):
        if not found:
            found = [_box([float(value) for value in re.findall(r"-?\d+(?:\.\d+)?", run)]) for run in pattern.findall(text)]
    return [box for box in found if box.area > 0]


def _json_boxes(text: str) -> list[Box]:
    start = min((place for place in map(text.find, "[{") if place >= 0), default=-1)
    end = max(map(text.rfind, "]}"))
    try:
        parsed = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return []
    objects = parsed if isinstance(parsed, list) else [parsed]
    boxes = []
    for one in objects:
        if not isinstance(one, dict):
            continue
        values = next((one[key] for key in _KEYS if key in one), [])
        if _is_four_numbers(values):
            boxes.append(_box(values, str(one.get("label", ""))))
    return boxes


def _is_four_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 4 and all(type(value) in (int, float) for value in values)


def _box(values: Sequence[float], label: str = "") -> Box:
    """From two opposite corners, or the smallest box around four."""
    xs, ys = values[::2], values[1::2]
    return Box(min(xs), min(ys), max(xs), max(ys), " ".join(label.casefold().split()))


def iou(one: Box, other: Box) -> float:
    """Intersection over union of areas, from 0 to 1; 0 if both have labels and these differ."""
    if one.label and other.label and one.label != other.label:
        return 0.0
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one.area + other.area - shared)


def best_pairs(gains: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column), each at most once, with the largest sum of gains (which are at least 0).

    Source: Kuhn, The Hungarian method, 1955; in the form with shortest augmenting paths, which takes rows * rows * columns.
    """
    if gains.shape[0] > gains.shape[1]:
        return [(row, column) for column, row in best_pairs(gains.T)]
    num_rows, num_columns = gains.shape
    costs = -gains
    row_price, column_price = np.zeros(num_rows + 1), np.zeros(num_columns + 1)
    row_of = np.zeros(num_columns + 1, dtype=int)  # 1-based; 0: none. Column 0 holds the row that is being placed.
    for row in range(1, num_rows + 1):
        row_of[0], column = row, 0
        distance, done = np.full(num_columns + 1, np.inf), np.zeros(num_columns + 1, dtype=bool)
        before = np.zeros(num_columns + 1, dtype=int)
        while row_of[column]:
            done[column] = True
            here = row_of[column]
            reduced = costs[here - 1] - row_price[here] - column_price[1:]
            nearer = ~done[1:] & (reduced < distance[1:])
            distance[1:][nearer] = reduced[nearer]
            before[1:][nearer] = column
            step_to = int(np.argmin(np.where(done, np.inf, distance)[1:])) + 1
            step = distance[step_to]
            row_price[row_of[done]] += step
            column_price[done] -= step
            distance[~done] -= step
            column = step_to
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    return [(int(row_of[column]) - 1, column - 1) for column in range(1, num_columns + 1) if row_of[column]]
