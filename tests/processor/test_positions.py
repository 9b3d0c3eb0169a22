"""3-D positions: golden sequences, and a slow twin written token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie45.processor.positions import MediaSpan, merged_grid, num_media_tokens, rope_positions


def slow_positions(num_tokens, spans):
    """The rule, one token at a time."""
    rows, current, offset = [], 0, 0
    for start, (frames, height, width) in spans:
        for _ in range(start - offset):
            rows.append((current, current, current))
            current += 1
        time, height, width = (1 if frames == 1 else frames // 2), height // 2, width // 2
        for t in range(time):
            for h in range(height):
                for w in range(width):
                    rows.append((current + t, current + h, current + w))
        offset = len(rows)
        current += max(time, height, width)
    for _ in range(num_tokens - offset):
        rows.append((current, current, current))
        current += 1
    return rows


def test_text_alone_counts_up_on_all_axes():
    positions, next_position = rope_positions(3, [])
    assert positions.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert next_position == 3


def test_an_image_of_two_by_three_tokens():
    """Two text tokens, the image, its end marker: the text goes on after the larger side."""
    positions, next_position = rope_positions(9, [MediaSpan(2, (1, 4, 6))])
    assert positions[2:8].tolist() == [[2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]]
    assert positions[8].tolist() == [5, 5, 5]
    assert next_position == 6


def test_text_after_a_long_video_starts_behind_its_last_time_step():
    """12 frames of 4x4 patches are 6 x 2 x 2 tokens from position 3 on: text goes on at 9 (transformers' code: at 5)."""
    positions, next_position = rope_positions(3 + 24 + 1, [MediaSpan(3, (12, 4, 4))])
    assert positions[3].tolist() == [3, 3, 3]
    assert positions[26].tolist() == [8, 4, 4]
    assert positions[27].tolist() == [9, 9, 9]
    assert next_position == 10


GRIDS = st.tuples(st.sampled_from([1, 2, 4, 6, 14]), st.sampled_from([2, 4, 8]), st.sampled_from([2, 6, 10]))


@st.composite
def sequences(draw):
    spans, length = [], draw(st.integers(0, 4))
    for _ in range(draw(st.integers(0, 4))):
        grid = draw(GRIDS)
        spans.append(MediaSpan(length, grid))
        length += num_media_tokens(grid) + draw(st.integers(0, 3))
    return length, spans


@given(sequences())
def test_equals_the_rule_written_token_by_token(sequence):
    num_tokens, spans = sequence
    positions, next_position = rope_positions(num_tokens, spans)
    assert positions.dtype == np.int64
    assert positions.tolist() == [list(row) for row in slow_positions(num_tokens, spans)]
    assert next_position == (positions.max() + 1 if num_tokens else 0)


def test_a_single_frame_is_one_step_and_pairs_of_frames_are():
    assert merged_grid((1, 4, 6)) == (1, 2, 3)
    assert merged_grid((2, 4, 6)) == (1, 2, 3)
    assert merged_grid((180, 4, 6)) == (90, 2, 3)


@pytest.mark.parametrize("spans", [[MediaSpan(0, (1, 4, 4))], [MediaSpan(0, (1, 2, 2)), MediaSpan(0, (1, 2, 2))]])
def test_spans_that_do_not_fit_are_a_bug(spans):
    with pytest.raises(AssertionError):
        rope_positions(3, spans)
