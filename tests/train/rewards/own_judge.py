"""A judge of one's own, as a user would write it; it misbehaves on request."""

import os
import time

from ernie45.data.answers import Graded
from ernie45.train.rewards.reward import Unscored


def length(item: Graded) -> float:
    """Characters of the answer and the thoughts."""
    print("chatter on stdout")  # noqa: T201  must not disturb the scores
    if item.answer == "hang":
        time.sleep(60)
    if item.answer == "die":
        os._exit(3)
    if item.answer == "raise":
        raise KeyError("oh")
    if item.answer == "decline":
        raise Unscored("declined", "not mine")
    if item.answer == "nan":
        return float("nan")
    return len(item.answer) + len(item.thoughts) + len(str(item.messages[0]["content"]) if item.messages else "")
