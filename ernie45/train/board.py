"""The metrics of a run for TensorBoard, beside the JSON log, where the package is installed (extra `train`).

Knows nothing about training. Only scalars: expert tables are in the JSON log and the report.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

FOLDER = "tensorboard"
_NO_SCALARS = {"step", "stage_step", "stop"}


class Board:
    """A context: event files in the run folder. Does nothing where tensorboard is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._writer: Any = None
        self._started = False

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, entry: Mapping[str, Any]) -> None:
        """A step's numbers; dots in names become groups. What an interrupted run wrote past this step is dropped."""
        if not self._started:
            self._start(entry["step"])
        if self._writer is None:
            return
        from tensorboard.compat.proto import event_pb2, summary_pb2

        pb, values_pb = cast(Any, event_pb2), cast(Any, summary_pb2)
        values = {**entry, **{f"lr.{group}": rate for group, rate in (entry.get("lrs") or {}).items()}}
        scalars = [
            values_pb.Summary.Value(tag=name.replace(".", "/"), simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_SCALARS
        ]
        self._writer.add_event(pb.Event(wall_time=time.time(), step=entry["step"], summary=values_pb.Summary(value=scalars)))

    def _start(self, first_step: int) -> None:
        self._started = True
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            return
        self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        pb = cast(Any, event_pb2)
        begins = pb.SessionLog(status=pb.SessionLog.SessionStatus.Value("START"))
        self._writer.add_event(pb.Event(wall_time=time.time(), step=first_step, session_log=begins))
