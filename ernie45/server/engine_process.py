"""`python -m ernie45.server.engine_process`: an engine in a process of its own, started by a server.

Knows nothing about HTTP or text. A line of JSON on standard input (`supervisor.EngineOrder`) says what to load and where the
server is; when standard input closes, the server is gone and this process ends, whatever it is doing.
"""

import logging.config
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from ernie45.server.engine_loop import Engine, run_engine
from ernie45.server.log_format import log_config
from ernie45.server.supervisor import EngineOrder
from ernie45.server.wire_socket import Connection

_EXIT_CODES = {"stopped": 0, "defect": 1, "user": 2}
_EXIT_ORPHAN = 3


def main(load: Callable[[EngineOrder], Engine] | None = None) -> int:
    """Serve one engine; 0 after Stop, 1 after a defect, 2 for what the user can mend."""
    # Ctrl-C in a terminal and the stop of a service reach all processes of a group. When this one ends is the server's to say:
    # it drains first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return _EXIT_ORPHAN
    order = msgspec.json.decode(line, type=EngineOrder, dec_hook=lambda kind, value: kind(value))
    threading.Thread(target=_end_with_server, name="ernie45-orphan-watch", daemon=True).start()
    logging.config.dictConfig(log_config(not order.verbose, order.log_json, order.log_details))
    death = run_engine(lambda: (load or _load)(order), Connection(order.address, order.identity))
    return _EXIT_CODES[death.cause]


def _load(order: EngineOrder) -> Engine:
    from ernie45.server.llm_engine import load_engine  # brings torch

    return load_engine(Path(order.folder), order.config)


def _end_with_server() -> None:
    """Standard input gives nothing more until the server closes it, by ending in whatever way."""
    while os.read(0, 1024):
        pass
    os._exit(_EXIT_ORPHAN)


if __name__ == "__main__":
    sys.exit(main())
