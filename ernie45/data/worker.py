"""A worker process: reads a function and then tasks from its standard input, writes results to its standard output.

Knows nothing about what the function does. Started by `loader` as `python -m ernie45.data.worker`; it ends when its input ends,
so none is left when the process that started it is killed. It never imports torch unless the function does.
"""

import os
import pickle
import signal
import sys
from typing import BinaryIO


def serve(tasks: BinaryIO, results: BinaryIO) -> None:
    """Answer every task with (True, result) or (False, exception) until there are no more."""
    work = pickle.load(tasks)
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        try:
            reply = (True, work(task))
        except Exception as error:  # noqa: BLE001  raised again where the result is asked for
            reply = (False, error)
        pickle.dump(reply, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()


def main() -> None:
    """Whatever libraries print goes to the error output: the standard one carries results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the trainer decides when to stop
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, results)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # nobody reads any more


if __name__ == "__main__":
    main()
