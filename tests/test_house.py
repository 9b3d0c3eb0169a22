"""The rules of the house: who may import whom, how long things may be, what files may be called.

Knows nothing about what the code does.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ernie45"

# docs/architecture.md shows the same table.
LAYERS = {
    **dict.fromkeys(["cli", "commands", "recipes", "bench"], 7),
    **dict.fromkeys(["server", "entrypoints", "hf", "offline"], 6),
    **dict.fromkeys(["disagg", "train", "evals"], 5),
    **dict.fromkeys(["engine", "data"], 4),
    **dict.fromkeys(["parallel", "quant"], 3),
    **dict.fromkeys(["model", "checkpoint", "processor"], 2),
    "ops": 1,
    **dict.fromkeys(["config", "assets"], 0),
}
WHOLE_RUNS = 7  # may import anything
# The only ways sideways, one way each: (from, to) -> why.
SIDEWAYS = {
    ("checkpoint", "model"): "load_model builds the model that it fills",
    ("entrypoints", "server"): "FastDeploy's flags are a few lines over the server",
    ("offline", "server"): "thoughts, stop strings and defaults are those of the server",
}

# Folders and files (without .py) that never name these packages, not even inside a function.
BANNED = {
    "torch": [
        *("config", "processor", "commands", "cli"),
        *(f"engine/{name}" for name in ("scheduler", "chunks", "pages", "prefix_cache", "tiers")),
    ],
    "torch.distributed": ["config", "ops", "model", "checkpoint", "processor"],
    "transformers": [name for name in LAYERS if name not in ("hf", "bench")],
    "fastapi": [name for name in LAYERS if name not in ("server", "entrypoints")],
    "pydantic": [name for name in LAYERS if name not in ("server", "entrypoints")],
}
IMPORTED_WITHOUT_TORCH = ["ernie45", "ernie45.cli", "ernie45.processor", "ernie45.config.presets", "ernie45.config.parameters"]
# Parts of a declared package that have a name of their own, and packages that are imported by another name.
COME_WITH_ANOTHER = ["starlette", "pydantic_core"]
DISTRIBUTION_OF = {
    "pillow": "PIL",
    "huggingface-hub": "huggingface_hub",
    "math-verify": "math_verify",
    "pyzmq": "zmq",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 40, 6
HARD_FILE_LINES, HARD_FUNCTION_LINES = 600, 80
# "path" or "path:function" -> why it is above a soft limit. The hard limits have no exceptions.
EXCEPTIONS: dict[str, str] = {}


def files_below(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def area_of(path: Path) -> str:
    """The folder or file directly below the package that `path` belongs to; "" for the package's own __init__."""
    area = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if area.startswith("__") else area


def imports_of(path: Path) -> Iterator[str]:
    """Dotted name of everything that a file imports, at its top or anywhere inside; relative imports made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_part_of(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layering_faults(path: Path) -> Iterator[str]:
    """Imports of a package file that go upwards or sideways."""
    area = area_of(path)
    level = LAYERS[area]
    for imported in imports_of(path):
        parts = imported.split(".")
        target = parts[1] if parts[0] == "ernie45" and len(parts) > 1 else None
        if target not in LAYERS or target == area or level == WHOLE_RUNS:
            continue
        if LAYERS[target] >= level and (area, target) not in SIDEWAYS:
            yield f"{name_of(path)} (layer {level}) imports {imported} (layer {LAYERS[target]})"


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines without those of functions inside it, which count for themselves."""
    inner = [node for node in function.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return (function.end_lineno or 0) - function.lineno + 1 - sum(map(lines_of, inner))


def size_faults(path: Path) -> Iterator[str]:
    name, num_lines = name_of(path), len(path.read_text(encoding="utf-8").splitlines())
    if num_lines > (HARD_FILE_LINES if name in EXCEPTIONS else FILE_LINES):
        yield f"{name}: {num_lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length, allowed = lines_of(node), f"{name}:{node.name}" in EXCEPTIONS
            if length > (HARD_FUNCTION_LINES if allowed else FUNCTION_LINES):
                yield f"{name}:{node.name}: {length} lines"
            if parameters_of(node) > PARAMETERS and not allowed:
                yield f"{name}:{node.name}: {parameters_of(node)} parameters"


def report(faults: Iterable[str]) -> None:
    """Fail with one fault a line, if there are any."""
    text = "\n".join(faults)
    assert not text, f"\n{text}"


def test_every_folder_has_a_layer() -> None:
    areas = {area_of(path) for path in files_below("ernie45")} - {""}
    assert areas <= set(LAYERS), f"give {sorted(areas - set(LAYERS))} a layer, here and in docs/architecture.md"


def test_imports_go_downwards() -> None:
    report(fault for path in files_below("ernie45") if area_of(path) for fault in layering_faults(path))


@pytest.mark.parametrize("package", BANNED)
def test_packages_stay_where_they_belong(package: str) -> None:
    faults = []
    for place in BANNED[package]:
        paths = [PACKAGE / f"{place}.py"] if (PACKAGE / f"{place}.py").exists() else (PACKAGE / place).rglob("*.py")
        faults += [name_of(path) for path in paths if any(is_part_of(name, package) for name in imports_of(path))]
    report(f"{name} imports {package}" for name in faults)


def test_dependencies_are_those_that_are_imported() -> None:
    imported = {name.split(".")[0] for path in files_below("ernie45") for name in imports_of(path)}
    imported -= {*sys.stdlib_module_names, "ernie45"} | set(COME_WITH_ANOTHER)
    names = [name for section in ("dependencies", "train", "hf", "trace") for name in _declared(section)]
    declared = {DISTRIBUTION_OF.get(name, name) for name in names}
    assert imported == declared


def _declared(section: str) -> list[str]:
    """Names of the requirements in one list of pyproject.toml; Python 3.10 cannot read TOML by itself."""
    text = re.search(rf"^{section} = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M | re.S)
    assert text, section
    return re.findall(r'"([\w-]+)[^"]*"', text[1])


@pytest.mark.parametrize("module", IMPORTED_WITHOUT_TORCH)
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules and 'torch was loaded')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_functions_and_signatures_are_small() -> None:
    report(fault for path in files_below("ernie45", "tests", "bench", "examples") for fault in size_faults(path))


def test_exceptions_are_still_needed() -> None:
    paths = {name_of(path): path for path in files_below("ernie45", "tests", "bench", "examples")}
    for name, reason in EXCEPTIONS.items():
        file, _, function = name.partition(":")
        assert file in paths, f"{name} is gone: drop its exception"
        assert reason.strip(), f"{name} needs a reason"
        if function:
            nodes = ast.walk(tree_of(paths[file]))
            assert function in {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_configs_are_frozen_and_take_keywords_only() -> None:
    faults = []
    for path in files_below("ernie45/config"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and (
                found := [text for text in map(ast.unparse, node.decorator_list) if "dataclass" in text]
            ):
                faults += [f"{name_of(path)}:{node.name}"] * (found != ["dataclass(frozen=True, kw_only=True)"])
    report(f"{name} must be dataclass(frozen=True, kw_only=True)" for name in faults)


def test_names_say_something() -> None:
    parts = {
        (name_of(path), part) for path in files_below("ernie45", "tests", "bench") for part in path.relative_to(ROOT).parts
    }
    report(name for name, part in sorted(parts) if part.removesuffix(".py") in FORBIDDEN_NAMES)


def test_modules_say_what_they_are_and_what_they_do_not_know() -> None:
    faults = []
    for path in files_below("ernie45"):
        docstring = ast.get_docstring(tree_of(path)) or ""
        if not docstring or (path.name != "__init__.py" and "\n\n" not in docstring):
            faults.append(name_of(path))
    report(f"{name}: wants a docstring: what it is, an empty line, what it knows nothing about" for name in faults)


def test_public_functions_are_documented() -> None:
    faults = []
    for path in files_below("ernie45"):
        functions = [node for node in tree_of(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        # What add_arguments and run of a command do is written once, in ernie45/commands/__init__.py.
        public = [node for node in functions if not node.name.startswith("_") and area_of(path) != "commands"]
        faults += [f"{name_of(path)}:{node.name}" for node in public if not ast.get_docstring(node)]
    report(f"{name} has no docstring" for name in faults)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from ernie45.engine import llm", "imports ernie45.engine.llm (layer 4)"),
        ("def f():\n    import ernie45.processor", "imports ernie45.processor (layer 2)"),
        ("from ..server import app", "imports ernie45.server.app (layer 6)"),
        ("from ernie45.config import model\nfrom .moe import MoE\nimport numpy", None),
    ],
)
def test_the_layering_test_can_fail(source: str, fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ernie45" / "model" / "decoder.py"
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "ernie45")
    assert [text.split(") ", 1)[1] for text in layering_faults(path)] == ([fault] if fault else [])


def test_the_size_test_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f(a, b, c, d, e, *, g, h):\n" + "    a = 1\n" * 400, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(size_faults(path)) == ["long.py: 401 lines", "long.py:f: 401 lines", "long.py:f: 7 parameters"]


def test_files_that_are_not_python_are_packaged() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', text.split("[tool.setuptools.package-data]")[1].split("\n\n")[0])
    kept = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    report(f"{name_of(path)} is in no pattern of package-data" for path in sorted(others - kept))
