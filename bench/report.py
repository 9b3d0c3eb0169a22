"""Writes one benchmark's result as a Markdown file that says how to get it again.

Knows nothing about what was measured.
"""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """A short name of the processor, or of the GPU if torch sees one: letters, digits and dashes."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {os.cpu_count()} cores".lower()).strip("-")


def write_result(
    topic: str, title: str, rows: Sequence[Mapping[str, object]], *, notes: Sequence[str], packages: Sequence[str] = ("torch",)
) -> Path:
    """`results/<topic>_<hardware>_<date>.md` with a table of `rows` (equal keys), how it was run, and `notes`. Returns it."""
    columns = list(rows[0])
    lines = [
        f"# {title}",
        "",
        f"- command: `{_command()}`",
        f"- commit: {_commit()}",
        f"- hardware: {_processor()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        f"- versions: Python {platform.python_version()}, "
        + ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages),
        f"- load average before: {os.getloadavg()[0]:.1f}",
        *(f"- {note}" for note in notes),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{topic}_{hardware()}_{datetime.date.today().isoformat()}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _cell(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"
    return " ".join([program, *sys.argv[1:]])


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with local changes" if git("status", "--porcelain", "-uno") else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
