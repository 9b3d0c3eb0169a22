"""CPU time of planning and booking a step of 256 answers, at several context lengths: `python -m bench.scheduler`.

Knows nothing about models; the tokens are made up.
"""

import statistics
import time

import numpy as np

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.engine.request import Request, StepOutput
from ernie45.engine.scheduler import Scheduler

NUM_SEQS = 256


def text_input(length: int, seed: int) -> ModelInput:
    """A prompt of random text."""
    return ModelInput(
        token_ids=np.random.default_rng(seed).integers(3, 1000, length),
        is_vision=np.zeros(length, dtype=bool),
        positions=np.repeat(np.arange(length)[:, None], 3, axis=1),
        patches=np.zeros((0, 12), dtype=np.uint8),
        next_position=length,
    )


def milliseconds_per_step(context: int, num_steps: int = 200, num_seqs: int = NUM_SEQS) -> float:
    """Median CPU time of schedule and update, with all sequences decoding behind a prompt of this length."""
    config = EngineConfig(
        max_num_seqs=num_seqs, max_num_batched_tokens=1 << 20, page_size=16, max_long_partial_prefills=num_seqs
    )
    num_pages = num_seqs * (context + num_steps + 64) // 16
    scheduler = Scheduler(config, num_pages, max_model_len=1 << 20)
    for index in range(num_seqs):
        params = SamplingParams(max_tokens=num_steps + 16, temperature=0)
        scheduler.add(Request(request_id=str(index), inputs=text_input(context, index), params=params))
    times = []
    while len(times) < num_steps:
        begin = time.process_time()
        chunks = scheduler.schedule()
        between = time.process_time()
        output = StepOutput([7] * sum(chunk.samples for chunk in chunks))
        resumed = time.process_time()
        scheduler.update(chunks, output)
        if len(chunks) == num_seqs and all(chunk.end - chunk.start == 1 for chunk in chunks):
            times.append(time.process_time() - resumed + between - begin)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    for context in (64, 512, 4096):
        print(f"{NUM_SEQS} sequences, context {context:>5}: {milliseconds_per_step(context):.3f} ms a step")
