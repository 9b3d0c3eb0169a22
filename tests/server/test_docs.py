"""docs/serving.md says what the code does: its tables are made from it.

`UPDATE_DOCS=1 pytest tests/server/test_docs.py` writes them anew.
"""

import inspect
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie45 import cli
from ernie45.entrypoints.fastdeploy_flags import FASTDEPLOY_FLAGS
from ernie45.entrypoints.flag_table import FLAGS
from ernie45.entrypoints.flags import Flag
from ernie45.entrypoints.openai.api_server import build_parser
from ernie45.server import errors
from ernie45.server.metrics_table import (
    ENGINE_METRICS,
    FASTDEPLOY_DERIVED,
    FASTDEPLOY_LEFT_OUT,
    FASTDEPLOY_NAMES,
    FASTDEPLOY_PREFIX,
    METRICS,
    PREFIX,
    SERVER_METRICS,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
SUFFIX = {"counter": "_total", "info": "_info"}


def table(heads: str, rows: list[list[str]]) -> str:
    names = heads.split(" | ")
    lines = [f"| {heads} |", "|" + "---|" * len(names)]
    for row in rows:
        assert len(row) == len(names), row
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def flags() -> str:
    parts = []
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        rows = [[_name(flag), flag.text, _default(flag)] for flag in FLAGS if flag.group == group]
        parts.append(f"**{group}**\n\n" + table("flag | what it does | default", rows))
    return "\n\n".join(parts)


def _name(flag: Flag) -> str:
    both = f", `--no-{flag.name[2:]}`" if flag.both else ""
    return f"`{flag.name}{f' {flag.metavar}' if flag.metavar else ''}`{both}"


def _default(flag: Flag) -> str:
    plain, fastdeploy = flag.default(), flag.default(fastdeploy=True)
    texts = ["" if value is None else str(value) for value in (plain, fastdeploy)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} [{texts[1]}]".strip()


def fastdeploy_flags() -> str:
    return table("flag | here", [[f"`{flag.name}`", flag.text] for flag in FASTDEPLOY_FLAGS])


def metrics() -> str:
    parts = []
    for title, group in (("Of the server", SERVER_METRICS), ("Of the engine", ENGINE_METRICS)):
        rows = [[f"`{metric.exported}`", metric.kind, ", ".join(metric.labels), metric.help] for metric in group]
        parts.append(f"**{title}**\n\n" + table("name | kind | labels | what it is", rows))
    return "\n\n".join(parts)


def fastdeploy_metrics() -> str:
    same = [[f"`{_alias(name)}`", f"`{METRICS[ours].exported}`"] for name, ours in FASTDEPLOY_NAMES.items()]
    derived = [[f"`{_alias(name)}`", text] for name, text in FASTDEPLOY_DERIVED.items()]
    left_out = [[f"`{FASTDEPLOY_PREFIX}{name}`", text] for name, text in FASTDEPLOY_LEFT_OUT.items()]
    return (
        table("name | the same as, or computed from", same + derived) + "\n\nNot exported:\n\n" + table("name | why", left_out)
    )


# FastDeploy's counters among those that are computed; the rest are gauges.
DERIVED_COUNTERS = re.compile(r"request_success|.*_cache_token_num")


def _alias(name: str) -> str:
    ours = FASTDEPLOY_NAMES.get(name)
    kind = METRICS[ours].kind if ours else "counter" if DERIVED_COUNTERS.fullmatch(name) else "gauge"
    return FASTDEPLOY_PREFIX + name + SUFFIX.get(kind, "")


def media_errors() -> str:
    rows = []
    for kind, code in errors._MEDIA_CODES.items():
        status = errors.from_user_error(kind("x")).status
        rows.append([str(status), f"`{code}`", (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")])
    return table("status | code | when", rows)


TABLES: dict[str, Callable[[], str]] = {
    "flags": flags,
    "fastdeploy flags": fastdeploy_flags,
    "metrics": metrics,
    "fastdeploy metrics": fastdeploy_metrics,
    "media errors": media_errors,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_code(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    before, found, rest = text.partition(begin)
    assert found, begin
    old, found, after = rest.partition(end)
    assert found, end
    new = TABLES[name]() + "\n"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(before + begin + new + end + after, encoding="utf-8")
        old = new
    assert old == new, "run UPDATE_DOCS=1 pytest tests/server/test_docs.py"


def test_every_error_code_is_listed() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "ernie45" / "server").rglob("*.py")]
    raised = {code for source in sources for code in re.findall(r'code="(\w+)"', source)} | {*errors._MEDIA_CODES.values()}
    cells = [line.split(" | ")[1] for line in _rows() if re.match(r"\| \d{3} \|", line)]
    listed = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
    assert listed == raised


def _rows() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_names_in_the_text_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {metric.exported for metric in METRICS.values()}
    assert set(re.findall(rf"`({PREFIX}[a-z_0-9]+)", text)) <= names
    known = {flag.name for flag in (*FLAGS, *FASTDEPLOY_FLAGS)} | {"--model", "--no-enable-prefix-caching"}
    ours = re.sub(r"^\| `.*$", "", text.replace("\n<!--", "\n\n<!--"), flags=re.MULTILINE)
    assert set(re.findall(r"`(--[a-z][a-z-]+)", ours)) <= known


def test_links_and_commands() -> None:
    text = PAGE.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w-]", "", head.lower().replace(" ", "-")) for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (target[1:] in anchors) if target.startswith("#") else (PAGE.parent / target).is_file(), target
    commands = [shlex.split(line, comments=True) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
                for line in block.splitlines() if line.startswith("ernie45 ")]  # fmt: skip
    assert len(commands) == 2
    for words in commands:
        assert cli.parse(words[1:]).command == "serve"


def test_flags_of_the_table_are_those_of_the_command() -> None:
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert {flag.name for flag in (*FLAGS, *FASTDEPLOY_FLAGS)} <= options
