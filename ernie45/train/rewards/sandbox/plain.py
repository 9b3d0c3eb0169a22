"""Values between the process of a program and that of its tests: plain data is copied, anything else stays and gets a proxy.

Knows nothing about either process. A copy has none of the program's methods left, so that an object that says it equals
everything passes no test. Runs inside of the sandbox, so it imports the standard library alone.
"""

import builtins
import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, TextIO

_KINDS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}


class Unsupported(Exception):
    """A test does what cannot be done across processes: the event is the test's, not the program's fault."""


class Store:
    """Objects of the program that the tests hold proxies of."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def keep(self, value: Any) -> int:
        """A number for the object, always the same."""
        for number, known in enumerate(self.objects):
            if known is value:
                return number
        self.objects.append(value)
        return len(self.objects) - 1


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """As JSON takes it: [kind, content]; subclasses of plain types as these."""
    if value is None or isinstance(value, bool):
        return ["v", value]
    if isinstance(value, int):
        return ["i", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["f", float.__repr__(value)]
    if isinstance(value, str):
        return ["v", str.__str__(value)]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex | Fraction | Decimal):
        name = next(kind for kind in (complex, Fraction, Decimal) if isinstance(value, kind)).__name__
        return ["n", name, str(value)]
    if isinstance(value, range):
        return ["r", [value.start, value.stop, value.step]]
    for letter, kind in _KINDS.items():
        if isinstance(value, kind):
            return [letter, [encode(one, keep) for one in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["d", [[encode(key, keep), encode(one, keep)] for key, one in dict.items(value)]]
    return ["o", keep(value)]


def decode(message: Any, object_of: Callable[[int], Any]) -> Any:
    """What `encode` was given, of plain types."""
    kind, content = message[0], message[1]
    if kind == "v":
        return content
    if kind == "i":
        return int(content, 16)
    if kind == "f":
        return float(content)
    if kind == "b":
        return bytes.fromhex(content)
    if kind == "n":
        return {"complex": complex, "Fraction": Fraction, "Decimal": Decimal}[content](message[2])
    if kind == "r":
        return range(*content)
    if kind == "o":
        return object_of(content)
    if kind == "d":
        return {decode(key, object_of): decode(one, object_of) for key, one in content}
    return _KINDS[kind](decode(one, object_of) for one in content)


class Link:
    """The tests' side: asks the program's process and waits."""

    def __init__(self, asked: TextIO, told: TextIO) -> None:
        self._asked, self._told = asked, told
        self._names: dict[str, Any] | None = None

    def names(self) -> dict[str, Any]:
        """The program's public names: plain values, and proxies of all else."""
        if self._names is None:
            self._names = self.ask({"do": "names"})
        assert self._names is not None
        return self._names

    def operate(self, do: str, of: int, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None) -> Any:
        """Do something with an object of the program, and to lists, dicts and sets among the arguments what it did to them."""
        encoded = [encode(one, _number_of) for one in arguments]
        named = {name: encode(one, _number_of) for name, one in (keywords or {}).items()}
        return self.ask({"do": do, "of": of, "args": encoded, "keywords": named}, arguments)

    def ask(self, request: dict[str, Any], arguments: tuple[Any, ...] = ()) -> Any:
        """The reply's value; what the program raised is raised here, as the builtin error of that name."""
        self._asked.write(json.dumps(request) + "\n")
        self._asked.flush()
        line = self._told.readline()
        if not line.endswith("\n"):
            raise RuntimeError("the program ended")
        reply = json.loads(line)
        if "error" in reply:
            name, text = reply["error"]
            kind = getattr(builtins, name, RuntimeError)
            usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
            raise (kind if usable else RuntimeError)(text)
        for own, changed in zip(arguments, reply.get("args", ()), strict=False):
            _update(own, decode(changed, self._proxy))
        return decode(reply["value"], self._proxy)

    def _proxy(self, number: int) -> "Remote":
        return Remote(self, number)


class Remote:
    """An object of the program. It equals itself only, and does no arithmetic: the program could make these say anything."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_own", (link, number))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        link, number = self._own
        return link.operate("call", number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        link, number = self._own
        return link.operate("get", number, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        link, number = self._own
        link.operate("set", number, (name, value))

    def __len__(self) -> int:
        link, number = self._own
        return link.operate("len", number)

    def __iter__(self) -> Any:
        link, number = self._own
        return iter(link.operate("list", number))

    def __getitem__(self, key: Any) -> Any:
        link, number = self._own
        return link.operate("item", number, (key,))

    def __str__(self) -> str:
        link, number = self._own
        return link.operate("text", number)

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return self._own[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._own[1] == self._own[1]


def _number_of(value: Any) -> int:
    if isinstance(value, Remote):
        return value._own[1]
    raise Unsupported(f"a value of type {type(value).__name__} cannot be given to the program")


def _update(own: Any, changed: Any) -> None:
    if type(own) is not type(changed) or own == changed:
        return
    if isinstance(own, list):
        own[:] = changed
    elif isinstance(own, dict | set):
        own.clear()
        own.update(changed)
