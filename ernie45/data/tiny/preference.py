"""Preference pairs for the tiny model: a right answer over one that just misses it, a caption in the form that was asked for.

Knows nothing about tokens or models.

The second kind is a matter of taste: to some questions, which the model was never taught and answers with its usual sentence, a
short caption is preferred; to its own questions the sentence is. So what has been learnt shows in what the model writes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from ernie45.data.records import Pair
from ernie45.data.tiny import charts, scenes
from ernie45.data.tiny.charts import LETTERS
from ernie45.data.tiny.mixture import SCORED_SKILLS, makers
from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.scenes import COLOURS, SHAPES
from ernie45.data.tiny.strips import StripWriter

RIGHT, SHORT, SENTENCE = "right", "short", "sentence"
"""What is preferred, as the pairs' `source`."""

SHORT_QUESTIONS = ("Tell me about the picture.", "What do you see?", "Sum up the picture.")
_GROUPS = (("yes", "no"), tuple(COLOURS), tuple(SHAPES), tuple(LETTERS))
_WORDS = re.compile(r"\d+|[A-Za-z]+")
_THINKING_SHARE = 0.5


def preference_pairs(seed: str, num_pairs: int, writer: StripWriter, form_share: float = 0.5) -> list[Pair]:
    """Pairs of both kinds, the same for the same seed and digits. form_share: of the second kind."""
    rng = Random(f"{seed}/preference")
    known = makers(writer)
    pairs = [form_pair(rng, writer) if rng.random() < form_share else right_pair(rng, known) for _ in range(num_pairs)]
    return [replace(pair, origin=f"tiny pair {number}") for number, pair in enumerate(pairs)]


def right_pair(rng: Random, known: Mapping[str, Callable[[Random], Sample]]) -> Pair:
    """A question of one of the scored skills; the rejected answer, with thoughts or without, has one number or word wrong."""
    while True:
        sample = known[rng.choice(SCORED_SKILLS)](rng)
        wrong = near_miss(rng, sample.turn.answer)
        if wrong is not None:
            break
    thinking = rng.random() < _THINKING_SHARE
    turn = sample.turn
    # The last thought gives the answer where it ends with it.
    thought = turn.reasoning.removesuffix(turn.answer) + wrong if turn.reasoning.endswith(turn.answer) else turn.reasoning
    rejected = Turn(question=turn.question, reasoning=thought, answer=wrong)
    return _pair(sample, turn, rejected, thinking, RIGHT)


def form_pair(rng: Random, writer: StripWriter) -> Pair:
    """A caption as a sentence and without one; which is preferred depends on the question, two in three want it short."""
    sample = rng.choice((writer.describe, scenes.describe_scene, charts.describe_chart))(rng)
    wants_short = rng.random() < 2 / 3
    question = rng.choice(SHORT_QUESTIONS) if wants_short else sample.turn.question
    thinking = not wants_short and rng.random() < _THINKING_SHARE
    answers = (short(sample.turn.answer), sample.turn.answer)
    chosen, rejected = (
        replace(sample.turn, question=question, answer=answer) for answer in (answers if wants_short else reversed(answers))
    )
    return _pair(replace(sample, turn=chosen), chosen, rejected, thinking, SHORT if wants_short else SENTENCE)


def short(caption: str) -> str:
    """What a caption says, without articles and sentence: "The digits 4 0 7." is "4 0 7"."""
    text = re.sub(r"^(The digits? |A bar chart: |A )", "", caption.removesuffix("."))
    return re.sub(r"(, | and )a ", ", ", text)


def near_miss(rng: Random, answer: str) -> str | None:
    """The answer with one number or one word of a kind changed; None if it has neither."""
    found = [match for match in _WORDS.finditer(answer) if match[0].isdigit() or any(match[0] in group for group in _GROUPS)]
    found = [match for match in found if match.start() or not answer.startswith("A ")]  # an article, not a bar
    if not found:
        return None
    match = rng.choice(found)
    other = _other_number(rng, match[0]) if match[0].isdigit() else _other_word(rng, match[0])
    return answer[: match.start()] + other + answer[match.end() :]


def _other_number(rng: Random, text: str) -> str:
    """Off by one or two, or with another digit at one place."""
    if rng.random() < 0.5 and not text.startswith("0"):
        number = int(text)
        return str(rng.choice([near for near in range(max(0, number - 2), number + 3) if near != number]))
    place = rng.randrange(len(text))
    return text[:place] + rng.choice([digit for digit in "0123456789" if digit != text[place]]) + text[place + 1 :]


def _other_word(rng: Random, word: str) -> str:
    group = next(group for group in _GROUPS if word in group)
    return rng.choice([other for other in group if other != word])


def _pair(sample: Sample, chosen: Turn, rejected: Turn, thinking: bool, source: str) -> Pair:
    sides = []
    for turn in (chosen, rejected):
        message: dict[str, Any] = {"role": "assistant", "content": turn.answer}
        sides.append(({**message, "reasoning_content": turn.reasoning} if thinking else message,))
    return Pair(prompt=tuple(sample.prompt_messages()), chosen=sides[0], rejected=sides[1], source=source)
