"""The shipped sample pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

import ernie45
from ernie45.config.engine import EngineConfig
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.evals.samples import sample_makers
from ernie45.processor import Processor

ASSETS = Path(ernie45.__file__).parent / "assets"
ENTRIES = json.loads((ASSETS / "samples" / "samples.json").read_text())


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_dir(ASSETS / "tiny")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.load("tiny", EngineConfig(max_num_seqs=4))


def ask(llm: LLM, processor: Processor, entry: dict[str, str], thinking: bool) -> str:
    """The answer to a sample as a user would get it: from the file, through the processor, greedy."""
    content = [
        {"type": "image", "image": ASSETS / "samples" / entry["file"]},
        {"type": "text", "text": entry["question"]},
    ]
    inputs = processor.encode_chat([{"role": "user", "content": content}], enable_thinking=thinking)
    params = SamplingParams(max_tokens=96, temperature=0, stop_token_ids=processor.stop_token_ids)
    (completion,) = llm.generate([inputs], params)
    assert completion.finish_reason == "stop"
    return processor.tokenizer.decode(completion.token_ids).split("</think>")[-1].strip()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["kind"])
def test_the_shipped_model_answers_every_sample_when_it_thinks(llm: LLM, processor: Processor, entry: dict[str, str]) -> None:
    assert ask(llm, processor, entry, thinking=True) == entry["answer"]


def test_one_sum_needs_thought(llm: LLM, processor: Processor) -> None:
    entry = next(entry for entry in ENTRIES if entry["kind"] == "sum")
    assert ask(llm, processor, entry, thinking=False) != entry["answer"]


def test_samples_reach_the_model_as_they_are(processor: Processor) -> None:
    from ernie45.processor.image import image_patches

    assert {entry["kind"] for entry in ENTRIES} == set(sample_makers())
    assert len(ENTRIES) >= 6
    for entry in ENTRIES:
        image = Image.open(ASSETS / "samples" / entry["file"])
        grid = image_patches(image, processor.config).grid
        assert (grid[2] * 14, grid[1] * 14) == image.size
