"""Workers change nothing but speed, keep order and bounds, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie45.config.data import DataConfig
from ernie45.config.errors import DataError
from ernie45.data.dataset import Dataset
from ernie45.data.loader import Loader, WorkerEndedError
from ernie45.data.records import Record
from ernie45.data.sizes import Bad, Encoding
from ernie45.data.template import RecordEncoder
from ernie45.data.tiny.model import tiny_processor
from tests.data.corpus import samples, write_corpus


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    path = write_corpus(tmp_path_factory.mktemp("set") / "set.jsonl", samples(12))
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    return Encoding(Dataset([path], (Record,)), RecordEncoder(tiny_processor(), DataConfig()))


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def test_workers_give_the_same_bits_in_order_and_end(encoding: Encoding) -> None:
    tasks = [(index, (index + 1) % 13) for index in range(13)]
    expected = list(Loader(encoding.encode).map(tasks))
    with Loader(encoding.encode, workers=2, ahead=3) as loader:
        found = list(loader.map(tasks))
        pids = loader.pids
        assert len(pids) == 2
        for pid in pids:
            libraries = Path(f"/proc/{pid}/maps").read_text()
            assert "tokenizers" in libraries
            assert "libtorch" not in libraries, "workers are light"
        _check_jumps(loader, expected)
    for one, other in zip(expected, found, strict=True):
        for item, twin in zip(one, other, strict=True):
            if isinstance(item, Bad):
                assert twin == item
                continue
            assert not isinstance(twin, Bad)
            assert (item.labels_S == twin.labels_S).all()
            assert (item.inputs.patches == twin.inputs.patches).all()
            assert (item.inputs.token_ids == twin.inputs.token_ids).all()
    assert all(map(is_gone, pids))
    assert loader.wait_seconds > 0


def _check_jumps(loader: Loader, expected: list) -> None:
    """A run that rewinds asks for something else than what was made ahead; and no more than allowed is under way."""
    loader((3, 4), [(4, 5), (5, 6), (6, 7), (7, 8), (8, 9)])
    assert len(loader._under_way) == 3
    found = loader((0, 1), [(1, 2)])
    assert (found[0].labels_S == expected[0][0].labels_S).all()
    assert set(loader._under_way) == {(1, 2)}


def test_who_works_meanwhile_does_not_wait() -> None:
    """Half a second of work beside as much of training, which sleeps: without workers all of it is waited for."""
    tasks = [0.02 + number * 1e-6 for number in range(25)]
    with Loader(time.sleep, workers=2, ahead=4) as loader:
        loader(tasks[0], tasks[1:5])
        first = loader.wait_seconds  # the workers' start
        for place, task in enumerate(tasks[1:], 1):
            time.sleep(0.02)
            loader(task, tasks[place + 1 : place + 5])
        assert loader.wait_seconds - first < 0.25
    alone = Loader(time.sleep)
    for task in tasks:
        alone(task)
    assert alone.wait_seconds >= 0.5


def test_a_worker_that_dies_says_so(encoding: Encoding) -> None:
    with Loader(encoding.encode, workers=1) as loader:
        loader((0,))
        os.kill(loader.pids[0], signal.SIGKILL)
        with pytest.raises(WorkerEndedError, match=r"killed, perhaps for lack of memory\); run the same command again"):
            loader((1,))


def test_an_error_in_a_worker_is_raised_here(encoding: Encoding) -> None:
    with Loader(encoding.encode, workers=1) as loader, pytest.raises(IndexError):
        loader((99,))
    with pytest.raises(DataError, match="cut off|not JSON"):
        encoding.dataset[12]


PROGRAM = """
import sys, time
from ernie45.data.loader import Loader
loader = Loader(len, workers=1)
loader("abc")
print(loader.pids[0], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_trainer(number: int) -> None:
    """Not after kill -9 either; Ctrl-C goes to the whole terminal and is the trainer's to answer."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    os.killpg(program.pid, signal.SIGINT) if number == signal.SIGINT else os.kill(program.pid, number)
    _, errors = program.communicate(timeout=20)
    assert errors.count("Traceback") == (number == signal.SIGINT), errors
    deadline = time.monotonic() + 10
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone(pid)
