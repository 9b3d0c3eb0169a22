"""The shipped model behind the server gives the answers that are listed with the shipped pictures."""

import base64
from types import SimpleNamespace
from typing import Any

from ernie45.checkpoint import resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.processor import Processor
from ernie45.server.llm_engine import load_engine
from ernie45.server.sampling import SamplingDefaults


def test_samples_are_answered_as_listed(start: Any) -> None:
    folder = resolve_model("tiny")
    engine = SimpleNamespace(load=lambda: load_engine(folder, EngineConfig(max_num_seqs=4)))
    server = start(engine, processor=Processor.from_dir(folder), defaults=SamplingDefaults.from_dir(folder)).wait()
    samples = server.client.get("/samples").json()
    assert samples
    for sample in samples:
        picture = server.client.get(f"/samples/{sample['file']}").content
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample["question"]}]
        message = server.answer(parts)["choices"][0]["message"]
        assert message["reasoning_content"]
        assert message["content"] == sample["answer"], sample
        server.answer(parts, metadata={"enable_thinking": False})
