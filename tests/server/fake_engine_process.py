"""An engine without a model, for tests of what happens to its process: a token each 10 ms and request, for ever.

Knows nothing about models. What the first token of a prompt is, happens: see `_FATES`.
"""

import os
import signal
import sys
import time

from ernie45.config.errors import CheckpointError
from ernie45.config.inputs import ModelInput
from ernie45.server.engine_loop import Engine
from ernie45.server.engine_process import main
from ernie45.server.messages import Capacity, Generate, Stats, Tokens
from ernie45.server.supervisor import EngineOrder


class _Engine:
    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._fate: ModelInput | None = None

    @property
    def capacity(self) -> Capacity:
        return Capacity(max_model_len=1024, max_num_seqs=64, num_pages=os.getpid(), page_size=16)

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def prepare(self, request: Generate) -> None: ...

    def close(self) -> None: ...

    def submit(self, request: Generate) -> None:
        fate = _FATES.get(int(request.prompt.token_ids[0]))
        if fate is not None:
            fate()
        self._left[request.request_id] = request.params.max_tokens or 1 << 30

    def abort(self, request_id: str) -> None:
        self._left.pop(request_id, None)

    def step(self) -> list[Tokens]:
        time.sleep(0.01)
        reports = []
        for request_id in list(self._left):
            self._left[request_id] -= 1
            ended = self._left[request_id] == 0
            if ended:
                del self._left[request_id]
            reports.append(
                Tokens(request_id=request_id, token_ids=(65,), num_tokens=1, finish_reason="length" if ended else None)
            )
        return reports

    def stats(self) -> Stats:
        return Stats(num_running=len(self._left), num_free_pages=100 - len(self._left))


def _fail() -> None:
    raise RuntimeError("told to fail")


_FATES = {
    101: lambda: os.kill(os.getpid(), signal.SIGKILL),
    102: lambda: time.sleep(3600),
    103: _fail,
    104: lambda: os._exit(7),
}


def _load(order: EngineOrder) -> Engine:
    match order.folder:
        case "bad":
            raise CheckpointError("weights (x) are damaged; fetch them again")
        case "dies":
            os._exit(9)
        case "never loads":
            time.sleep(3600)
        case "only once":
            if os.path.exists(order.config.device):
                raise CheckpointError("weights (x) have gone; fetch them again")
            with open(order.config.device, "x"):
                pass
    return _Engine()


if __name__ == "__main__":
    sys.exit(main(_load))
