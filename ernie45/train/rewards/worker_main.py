"""One worker process: reads answers as lines of JSON from stdin, judges them with one function, writes scores to stdout.

Knows nothing about time limits or other workers (`workers`). Loads no torch.
"""

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ernie45.data.answers import Graded
from ernie45.train.rewards.reward import failure


def main() -> None:
    """Serve until stdin ends. The first line out says that the function is there, or why it is not."""
    # What the function prints must not get among the scores.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        function = load(sys.argv[1])
    except Exception as error:  # noqa: BLE001  told to the other side, whatever it is
        _say(out, {"event": type(error).__name__, "detail": str(error)})
        return
    _say(out, {"value": 0.0})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        task = json.loads(line)
        # If nobody is left to kill it, a computation that never ends is ended by the system: SIGPROF has no handler.
        signal.setitimer(signal.ITIMER_PROF, 2 * task["seconds"] + 10)
        try:
            _say(out, {"value": float(function(Graded(**task["item"]), **task["options"]))})
        except Exception as error:  # noqa: BLE001  an answer without a score is an event, not the end of the worker
            score = failure(error)
            _say(out, {"event": score.event, "detail": score.detail})


def _end_with_parent(parent: int) -> None:
    """A trainer that was killed takes its workers with it, also those that wait for something else than its next line."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def load(target: str) -> Callable[..., Any]:
    """The function of "package.module:name" or "path/to/file.py:name"."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None, place
        assert spec.loader is not None, place
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, name)


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
