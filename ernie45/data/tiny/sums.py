"""Thoughts in writing: running sums and comparisons, shared by every skill that calculates.

Knows nothing about pictures.
"""

from collections.abc import Sequence


def running_sum(numbers: Sequence[int]) -> str:
    """The partial sums, one a line: 4, 0, 7 gives "4+0=4" and "4+7=11"."""
    lines, total = [], numbers[0]
    for number in numbers[1:]:
        lines.append(f"{total}+{number}={total + number}")
        total += number
    return "\n".join(lines)


def compared(first: int, second: int) -> str:
    """The two numbers with the sign between them: "34>7"."""
    sign = ">" if first > second else "<" if first < second else "="
    return f"{first}{sign}{second}"
