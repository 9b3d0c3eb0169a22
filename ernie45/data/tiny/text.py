"""Questions without pictures: short arithmetic, counting, word problems, a little talk.

Knows nothing about pictures or tokens.
"""

from random import Random

from ernie45.data.tiny.sample import Sample, Turn
from ernie45.data.tiny.sums import compared, running_sum

_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix")
_GOODS = ("apples", "books", "coins", "stones", "cards", "eggs")
_FACTS = (
    ("What colour is the sky?", "blue"),
    ("What colour is grass?", "green"),
    ("What colour is a banana?", "yellow"),
    ("What colour is a tomato?", "red"),
    ("How many legs has a dog?", "4"),
    ("How many legs has a bird?", "2"),
    ("How many days has a week?", "7"),
    ("How many sides has a triangle?", "3"),
    ("How many sides has a square?", "4"),
)
_TALK = (
    ("Hello", "greeting", "Hello! Ask me about a picture."),
    ("Hi", "greeting", "Hello! Ask me about a picture."),
    ("Hello!", "greeting", "Hello! Ask me about a picture."),
    ("Who are you?", "name", "I am a tiny ERNIE model."),
    ("What is your name?", "name", "I am a tiny ERNIE model."),
    ("What can you do?", "skills", "I read digits, shapes and bar charts."),
    ("Thank you.", "thanks", "You are welcome."),
    ("Thanks!", "thanks", "You are welcome."),
)


def arithmetic(rng: Random) -> Sample:
    """Add two numbers below 100, take one from the other, add three or four digits, or compare."""
    kind = rng.randrange(5)
    if kind == 0:
        numbers = [rng.randint(0, 9) for _ in range(rng.randint(2, 4))]
        return _text("arithmetic", f"What is {'+'.join(map(str, numbers))}?", running_sum(numbers), str(sum(numbers)))
    first, second = rng.randint(0, 99), rng.randint(0, 99)
    if kind == 1:
        second = rng.randint(0, 9)
    if kind <= 2:
        return _text("arithmetic", f"What is {first}+{second}?", _column_sum(first, second), str(first + second))
    first, second = max(first, second), min(first, second)
    if kind == 3:
        answer = first - second
        return _text("arithmetic", f"What is {first}-{second}?", _column_difference(first, second), str(answer))
    if first == second:
        first += 1
    pair = (first, second) if rng.random() < 0.5 else (second, first)
    question = rng.choice((f"Which is larger, {pair[0]} or {pair[1]}?", f"What is larger, {pair[0]} or {pair[1]}?"))
    return _text("arithmetic", question, compared(*pair), str(first))


def sentence(rng: Random) -> Sample:
    """A word problem, the next number, digits in reverse, a fact, or a greeting."""
    kind = rng.randrange(6)
    if kind <= 1:
        name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
        has, change = rng.randint(3, 9), rng.randint(2, 9)
        if kind == 1 and change <= has:
            question = f"{name} has {has} {goods} and gives away {change}. How many are left?"
            return _text("sentence", question, f"{has}-{change}={has - change}", f"{name} has {has - change} {goods}.")
        question = f"{name} has {has} {goods} and gets {change} more. How many are there?"
        return _text("sentence", question, f"{has}+{change}={has + change}", f"{name} has {has + change} {goods}.")
    if kind == 2:
        number = rng.randint(0, 98)
        return _text("sentence", f"What comes after {number}?", f"{number}+1={number + 1}", str(number + 1))
    if kind == 3:
        digits = "".join(str(rng.randint(0, 9)) for _ in range(rng.randint(2, 4)))
        return _text("sentence", f"Reverse {digits}.", ",".join(digits), digits[::-1])
    if kind == 4:
        question, answer = rng.choice(_FACTS)
        return _text("sentence", question, "fact", answer)
    question, thought, answer = rng.choice(_TALK)
    return _text("sentence", question, thought, answer)


def _column_sum(first: int, second: int) -> str:
    """Ones, tens, then both: 34+17 is thought as 4+7=11, 30+10=40, 40+11=51."""
    ones, tens = first % 10 + second % 10, first // 10 * 10 + second // 10 * 10
    if tens == 0:
        return f"{first}+{second}={first + second}"
    return f"{first % 10}+{second % 10}={ones}\n{first // 10 * 10}+{second // 10 * 10}={tens}\n{tens}+{ones}={tens + ones}"


def _column_difference(first: int, second: int) -> str:
    """The same for a difference; a ten is borrowed where needed: 42-27 is thought as 12-7=5, 30-20=10, 10+5=15."""
    if first < 10:
        return f"{first}-{second}={first - second}"
    borrowed = 10 if first % 10 < second % 10 else 0
    ones, tens = first % 10 + borrowed, first // 10 * 10 - borrowed
    less_ones, less_tens = second % 10, second // 10 * 10
    lines = [f"{ones}-{less_ones}={ones - less_ones}", f"{tens}-{less_tens}={tens - less_tens}"]
    return "\n".join([*lines, f"{tens - less_tens}+{ones - less_ones}={first - second}"])


def _text(skill: str, question: str, reasoning: str, answer: str) -> Sample:
    return Sample(skill=skill, turn=Turn(question=question, reasoning=reasoning, answer=answer))
