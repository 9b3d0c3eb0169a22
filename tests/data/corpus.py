"""The tiny data as files of one's own: conversations in JSON lines with their pictures beside them.

Knows nothing about single tests.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from ernie45.data.tiny.digits import training_digits
from ernie45.data.tiny.mixture import SCORED_SKILLS, Mixture
from ernie45.data.tiny.sample import Sample
from ernie45.data.tiny.strips import StripWriter


def samples(num: int, seed: int = 0, skills: tuple[str, ...] = SCORED_SKILLS) -> list[Sample]:
    """Some of each skill."""
    mixture, rng = Mixture(StripWriter(training_digits("fit")), dict.fromkeys(skills, 1.0)), Random(seed)
    return [mixture.draw(rng) for _ in range(num)]


def write_corpus(path: Path, made: list[Sample], thinking_every: int = 2) -> Path:
    """One record a line, every so many with thoughts; pictures as PNG, which loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, sample in enumerate(made):
        messages: list[dict[str, Any]] = sample.messages(number % thinking_every == 0)
        for message in messages:
            if isinstance(message["content"], list):
                for place, part in enumerate(message["content"]):
                    if part["type"] == "image":
                        name = f"{path.stem}-{number}-{place}.png"
                        image: Image.Image = part["image"]
                        image.save(path.parent / name)
                        message["content"][place] = {"type": "image", "image": name}
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
