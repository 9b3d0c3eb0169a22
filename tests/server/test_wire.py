"""Messages as frames: every type comes back as it was, arrays uncopied, and nothing that is not a message does any harm."""

import contextlib
import dataclasses
import pickle
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.config.sampling import SamplingParams, ThinkingBudget, TokenLogprob
from ernie45.server.messages import (
    Abort,
    Accepted,
    Capacity,
    Dead,
    Generate,
    Ping,
    Pong,
    Ready,
    Refused,
    Stats,
    Step,
    Stop,
    Tokens,
)
from ernie45.server.supervisor import EngineOrder
from ernie45.server.wire import MessageDecoder, WireError, encode

COMMANDS = (Generate, Abort, Stop, Ping)
REPORTS = (Ready, Accepted, Step, Stats, Pong, Refused, Dead)


def generate(num_patches: int = 8) -> Generate:
    rng = np.random.default_rng(0)
    media = MediaItem(kind="image", grid=(1, 2, num_patches // 2), offset=1, length=num_patches // 4, content_hash="ab")
    prompt = ModelInput(
        token_ids=np.arange(6),
        is_vision=np.arange(6) % 2 == 0,
        positions=rng.integers(0, 9, (6, 3)),
        patches=rng.integers(0, 255, (num_patches, 12), dtype=np.uint8),
        media=(media,),
        next_position=9,
    )
    params = SamplingParams(
        temperature=0.5,
        logit_bias=((1, 2.5),),
        bad_words=((1, 2), (3,)),
        stop_token_ids=(2,),
        thinking=ThinkingBudget(max_tokens=5, end_token_ids=(1, 2)),
    )
    return Generate(request_id="one", prompt=prompt, params=params, priority=-3, adapter="a", cache_salt="Ünicode")


def step(num_sequences: int = 1, **fields: Any) -> Step:
    ids = [f"{index:032x}" for index in range(num_sequences)]
    return Step(tokens=tuple(Tokens(request_id=id, token_ids=(7,), num_tokens=1, **fields) for id in ids))


MESSAGES = [
    Abort(request_id="x"),
    Stop(),
    Ping(),
    Ready(capacity=Capacity(max_model_len=3, max_num_seqs=4, num_pages=5, page_size=6)),
    Accepted(request_id="x"),
    step(2, finish_reason="length", stop_token_id=3, num_cached_tokens=9),
    step(logprobs=(TokenLogprob(1, -0.25, 2, ((4, -0.125), (1, -0.25))),), prompt_logprobs=(None, TokenLogprob(5, -1.0, 1))),
    Stats(num_running=3, step_s=0.25),
    Pong(),
    Refused(request_id="x", message="no"),
    Dead(message="gone", cause="defect"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back(message: Any) -> None:
    assert MessageDecoder(*COMMANDS, *REPORTS).decode(encode(message)) == message


def test_a_request_comes_back_with_its_arrays() -> None:
    sent = generate()
    [received] = [MessageDecoder(*COMMANDS).decode(encode(sent))]
    assert dataclasses.replace(received, prompt=sent.prompt) == sent
    assert (received.prompt.media, received.prompt.next_position) == (sent.prompt.media, 9)
    for name in ("token_ids", "is_vision", "positions", "patches"):
        was, now = getattr(sent.prompt, name), getattr(received.prompt, name)
        assert now.dtype == was.dtype
        assert np.array_equal(now, was)


def test_arrays_are_not_copied_and_empty_ones_pass() -> None:
    sent = generate(4096)
    frames = encode(sent)
    assert sum(map(len, frames[:2])) < 1500, "pixels are in the body"
    assert np.shares_memory(np.frombuffer(frames[5], np.uint8), sent.prompt.patches)
    received = MessageDecoder(Generate).decode(frames)
    assert np.shares_memory(received.prompt.patches, sent.prompt.patches)
    assert not received.prompt.patches.flags.writeable
    text = dataclasses.replace(sent, prompt=dataclasses.replace(sent.prompt, patches=np.empty((0, 12), np.uint8), media=()))
    assert MessageDecoder(Generate).decode(encode(text)).prompt.patches.shape == (0, 12)


def test_a_step_of_64_sequences_is_one_small_message() -> None:
    message, decoder = step(64), MessageDecoder(*REPORTS)
    frames = encode(message)
    assert len(frames) == 2
    assert len(frames[1]) < 16_000
    began = time.process_time()
    for _ in range(100):
        decoder.decode(encode(message))
    assert time.process_time() - began < 0.2, "2 ms a step is far above what msgpack takes"


def changed(field: str, value: Any) -> list[bytes]:
    """A request whose body has one thing wrong."""
    tag, body, *arrays = map(bytes, encode(generate()))
    raw = msgspec.msgpack.decode(body)
    place = raw
    *parents, last = field.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return [tag, msgspec.msgpack.encode(raw), *arrays]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("params.temperature", -1, "temperature"),
        ("params.max_tokens", "many", "int"),
        ("prompt.token_ids", [0, "<i8", [5]], "cannot be in a frame"),
        ("prompt.token_ids", [0, "<i8", [-6]], "cannot be received"),
        ("prompt.token_ids", [0, "O", [6]], "cannot be received"),
        ("prompt.token_ids", [9, "<i8", [6]], "not among"),
        ("prompt.token_ids", [-1, "<i8", [6]], "not among"),
        ("prompt.token_ids", 3, "cannot be read"),
        ("prompt.is_vision", [0, "<i8", [6, 1]], "cannot be read"),
        ("prompt.media", None, "array"),
        ("priority", 0.5, "int"),
    ],
)
def test_a_wrong_field_is_refused_with_the_requests_id(field: str, value: Any, words: str) -> None:
    with pytest.raises(WireError, match=words) as caught:
        MessageDecoder(*COMMANDS).decode(changed(field, value))
    assert caught.value.request_id == "one"


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"Stop"],
        [b"Generate", b""],
        [b"Generate", b"\xc1"],
        [b"object", b"\x80"],
        [b"\xff\xfe", b"\x80"],
        [b"Dead", msgspec.msgpack.encode({"message": "x", "cause": "stopped"})],
        [b"Generate", pickle.dumps(("os.system", "true"))],
    ],
)
def test_what_is_no_command_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError) as caught:
        MessageDecoder(*COMMANDS).decode(frames)
    assert caught.value.request_id is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_messages_raise_nothing_else(data: st.DataObject) -> None:
    frames = [bytearray(bytes(frame)) for frame in encode(generate())]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(MessageDecoder(*COMMANDS).decode([bytes(frame) for frame in frames]), Generate)


def test_an_engines_order_is_one_line_that_comes_back() -> None:
    config = EngineConfig(max_model_len=64, dtype="float32", max_num_seqs=3)
    order = EngineOrder(address="ipc:///x", identity="i", folder=str(Path("/a b\n/ü")), config=config, verbose=True)
    line = msgspec.json.encode(order, enc_hook=str)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=EngineOrder) == order
