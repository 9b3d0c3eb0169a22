"""Compiles `csrc/*.cpp` when first needed and keeps the result; without a compiler there is none, and torch does the work.

Knows nothing about what the kernels compute.

Kernels are plain C functions over pointers. One that can share its work among threads takes their number.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = Path(__file__).parent / "csrc"
# Sums may be reordered, which vectors need. Not -ffast-math: linking with it changes how the whole process rounds tiny numbers.
_FLAGS = "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -pthread".split()


_TYPES = {"i": ctypes.c_int, "p": ctypes.c_void_p, "f": ctypes.c_float}

KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""How the kernels number the dtypes they know."""


class Kernels:
    """The functions of one source file. signatures: for each function, one letter an argument: (i)nt, (p)ointer, (f)loat."""

    def __init__(self, name: str, signatures: Mapping[str, str]) -> None:
        self._name = name
        self._signatures = signatures
        self._library: ctypes.CDLL | None = None
        self._looked = False

    @property
    def available(self) -> bool:
        """Whether they are compiled and made for this processor; the first question compiles them."""
        if not self._looked:
            found = library(self._name)
            if found and not all(hasattr(found, function) for function in self._signatures):
                found = None  # it leaves out what this processor cannot do
            for function, letters in self._signatures.items() if found else ():
                getattr(found, function).argtypes = [_TYPES[letter] for letter in letters]
                getattr(found, function).restype = None
            # Last, as another thread may ask and call meanwhile: without its types a pointer would be cut to 32 bits.
            self._library = found
            self._looked = True
        return self._library is not None

    def call(self, function: str, *arguments: object) -> None:
        """Tensors go as pointers to their first element; they must be contiguous."""
        assert self.available, self._name
        assert all(item.is_contiguous() for item in arguments if isinstance(item, Tensor)), function
        getattr(self._library, function)(*[item.data_ptr() if isinstance(item, Tensor) else item for item in arguments])


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `csrc/<name>.cpp`, or None where it cannot be compiled or ERNIE45_NATIVE=0 is set."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or os.environ.get("ERNIE45_NATIVE") == "0":
        return None
    source = _SOURCES / f"{name}.cpp"
    try:
        target = _folder() / f"{name}-{_key(source, compiler)}.so"
        return ctypes.CDLL(str(target)) if target.is_file() or _compile(compiler, source, target) else None
    except (OSError, RuntimeError):  # no home, as in many containers, or one that is read-only or holds no programs
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"{name}.so"
            return ctypes.CDLL(str(target)) if _compile(compiler, source, target) else None


def _compile(compiler: str, source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        done = subprocess.run([compiler, *_FLAGS, "-shared", "-fPIC", str(source), "-o", str(made)], capture_output=True)
        if done.returncode == 0:
            made.replace(target)  # whole or not at all, also when two processes compile at once
    return done.returncode == 0


def _key(source: Path, compiler: str) -> str:
    """Changes with source, flags, compiler and processor: -march=native code may not run elsewhere."""
    info = Path("/proc/cpuinfo")
    flags = (
        [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))][:1] if info.is_file() else []
    )
    headers = [path.read_text() for path in sorted(_SOURCES.glob("*.h"))]
    text = "\n".join([source.read_text(), *headers, *_FLAGS, compiler, platform.machine(), platform.processor(), *flags])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ernie45"
