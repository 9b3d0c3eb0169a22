"""What runs in the sandboxed interpreter: reads its task, confines itself, then runs the program or the tests.

Knows nothing about who started it or what is expected of the program. Imports the standard library and its neighbour
`confine` alone; started as `python -I -S -B -c "... import inside; inside.main()"` with a descriptor to read the task from.
"""

import builtins
import importlib
import json
import os
import sys
import traceback
from typing import Any

# By name from the folder of this file: of the package around it nothing is in reach here.
confine: Any = importlib.import_module("confine")
plain: Any = importlib.import_module("plain")


def main() -> None:
    """Do the task. After the confinement holds, and before any foreign code runs, one byte goes to the status descriptor."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as file:
        task = json.load(file)
    os.chdir(task["folder"])
    try:
        confine.enter(task["folder"], task["readable"], task["limits"])
    except OSError as error:
        os.write(task["status"], f"{error.strerror or error}".encode())
        sys.exit(1)
    os.write(task["status"], b"\x01")
    os.close(task["status"])
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    sys.argv = ["answer.py"]
    {"program": _program, "answer": _answer, "checker": _checker}[task["mode"]](task)


def _program(task: dict[str, Any]) -> None:
    """As `python answer.py` would."""
    exec(compile(task["code"], "answer.py", "exec"), _fresh("__main__"))


def _fresh(name: str) -> dict[str, Any]:
    """The names of a new module, known to the rest of Python by its name."""
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def _answer(task: dict[str, Any]) -> None:
    """Serve what the checker asks for of the program's names: one line in, one line out."""
    asked, told = os.fdopen(task["asked"], encoding="utf-8"), os.fdopen(task["told"], "w", encoding="utf-8")
    store = plain.Store()
    names = _fresh("answer")
    try:
        exec(compile(task["code"], "answer.py", "exec"), names)
        broken = None
    except BaseException as error:  # noqa: BLE001  also SystemExit: the tests go on, and fail
        traceback.print_exc()
        broken = [type(error).__name__, str(error)]
    for line in asked:
        try:
            request = json.loads(line)
            reply = {"error": broken} if broken else _reply(request, names, store)
        except BaseException as error:  # noqa: BLE001  told to the checker, which raises it there
            reply = {"error": [type(error).__name__, str(error)]}
        told.write(json.dumps(reply) + "\n")
        told.flush()


def _reply(request: dict[str, Any], names: dict[str, Any], store: Any) -> dict[str, Any]:
    if request["do"] == "names":
        public = {name: value for name, value in names.items() if not name.startswith("__") and not _is_module(value)}
        return {"value": plain.encode(public, store.keep)}
    target = store.objects[request["of"]]
    arguments = [plain.decode(one, store.objects.__getitem__) for one in request["args"]]
    keywords = {name: plain.decode(one, store.objects.__getitem__) for name, one in request["keywords"].items()}
    do = {
        "call": lambda: target(*arguments, **keywords),
        "get": lambda: getattr(target, *arguments),
        "set": lambda: setattr(target, *arguments),
        "len": lambda: len(target),
        "list": lambda: list(target),
        "item": lambda: target[arguments[0]],
        "text": lambda: str(target),
    }[request["do"]]
    value = plain.encode(do(), store.keep)
    # Functions that change their arguments in place: the tests look at these afterwards.
    return {"value": value, "args": [plain.encode(one, store.keep) for one in arguments]}


def _is_module(value: object) -> bool:
    return isinstance(value, type(sys))


def _checker(task: dict[str, Any]) -> None:
    """Run each test against proxies of the program's names; one line of JSON for each to the result descriptor."""
    link = plain.Link(os.fdopen(task["asked"], "w", encoding="utf-8"), os.fdopen(task["told"], encoding="utf-8"))
    with os.fdopen(task["result"], "w", encoding="utf-8") as result:
        for test in task["tests"]:
            try:
                exec(compile(test, "tests.py", "exec"), _names_for(test, link, task["candidate"]))
                verdict = "passed"
            except plain.Unsupported as error:
                verdict = f"unsupported: {error}"
            except BaseException as error:  # noqa: BLE001  whatever it is, the test did not pass
                verdict = f"failed: {type(error).__name__}: {error}"
            result.write(json.dumps(verdict[:500]) + "\n")
            result.flush()


def _names_for(test: str, link: Any, candidate: str) -> dict[str, Any]:
    """The program's names that the test uses. Never names of builtins or standard modules: the program could bend the test."""
    found = link.names()
    names: dict[str, Any] = _fresh("tests")
    for name in compile(test, "tests.py", "exec").co_names + tuple(_inner_names(compile(test, "tests.py", "exec"))):
        if hasattr(builtins, name):
            continue
        if name in sys.stdlib_module_names:
            names[name] = importlib.import_module(name)
        elif name in found:
            names[name] = found[name]
    if candidate:
        names["candidate"] = found[candidate]
    return names


def _inner_names(code: Any) -> list[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return [name for one in inner for name in (*one.co_names, *_inner_names(one))]
