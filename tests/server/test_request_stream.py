"""Reports that wait are merged, whatever is in them, and come out in order."""

import asyncio
from dataclasses import fields

from ernie45.config.sampling import TokenLogprob
from ernie45.server.messages import Accepted, Dead, Tokens
from ernie45.server.request_stream import RequestStream

LOGPROBS = (TokenLogprob(1, -1.0, 1), TokenLogprob(2, -2.0, 1), TokenLogprob(3, -3.0, 2))
FIRST = Tokens(
    request_id="a",
    token_ids=(1,),
    num_tokens=1,
    num_cached_tokens=7,
    logprobs=LOGPROBS[:1],
    prompt_logprobs=(None, LOGPROBS[0]),
    queue_s=0.5,
)
LAST = Tokens(
    request_id="a",
    token_ids=(2, 3),
    num_tokens=3,
    finish_reason="stop",
    stop_token_id=9,
    logprobs=LOGPROBS[1:],
    num_cached_tokens=0,
)


def get_all(*reports: Accepted | Tokens | Dead, count: int) -> list[Accepted | Tokens | Dead]:
    async def read() -> list[Accepted | Tokens | Dead]:
        stream = RequestStream()
        for report in reports:
            stream.put(report)
        return [await asyncio.wait_for(stream.get(), 5) for _ in range(count)]

    return asyncio.run(read())


def test_tokens_that_wait_are_one_report_with_everything_in_it() -> None:
    [whole] = get_all(FIRST, LAST, count=1)
    assert whole == Tokens(
        request_id="a",
        token_ids=(1, 2, 3),
        num_tokens=4,
        num_cached_tokens=7,
        finish_reason="stop",
        stop_token_id=9,
        logprobs=LOGPROBS,
        prompt_logprobs=(None, LOGPROBS[0]),
        queue_s=0.5,
    )


def test_no_field_is_forgotten() -> None:
    """A new field of Tokens has to be merged too: then name it here, and in the report above."""
    assert {field.name for field in fields(Tokens)} == {
        "request_id",
        "token_ids",
        "num_tokens",
        "num_cached_tokens",
        "finish_reason",
        "stop_token_id",
        "logprobs",
        "prompt_logprobs",
        "queue_s",
    }


def test_others_keep_their_place() -> None:
    accepted, dead = Accepted(request_id="a"), Dead(message="gone", cause="defect")
    assert get_all(accepted, FIRST, dead, count=3) == [accepted, FIRST, dead]


def test_a_long_wait_costs_little() -> None:
    async def fill() -> int:
        stream = RequestStream()
        for index in range(20_000):
            stream.put(Tokens(request_id="a", token_ids=(index,), num_tokens=1))
        assert len(stream._waiting) == 1
        report = await stream.get()
        assert isinstance(report, Tokens)
        return report.token_ids[-1]

    assert asyncio.run(fill()) == 19_999
