"""Kernels are found or made wherever a process lives, are safe in several threads, and refuse what they would misread."""

import ctypes
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ernie45.ops import decode, native, rowwise
from ernie45.ops.cross_entropy import linear_cross_entropy
from ernie45.ops.native import Kernels
from ernie45.ops.norm import rms_norm, rms_norm_reference
from ernie45.ops.self_attention import Heads, self_attention
from ernie45.ops.swiglu import swiglu

pytestmark = pytest.mark.skipif(not rowwise.KERNELS.available, reason="no compiler")


@pytest.fixture
def unseen() -> Iterator[None]:
    """As if no kernel had been looked for."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("fault", ["no home", "a file in the way", "no library"])
def test_kernels_without_a_folder_to_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native, "_FLAGS", ["-std=c++17", "-pthread"])  # not fast, but soon made
    (tmp_path / "file").write_text("")
    if fault == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", homeless)
    else:
        folder = tmp_path / "file" if fault == "a file in the way" else tmp_path
        monkeypatch.setattr(native, "_folder", lambda: folder)
        monkeypatch.setattr(native, "_key", lambda *arguments: "key")
        (tmp_path / "rowwise-key.so").write_text("not a library")
    library = native.library("rowwise")
    assert library is not None
    assert library.ernie_norm_forward


@pytest.mark.usefixtures("unseen")
def test_kernels_are_there_only_when_their_types_are(monkeypatch: pytest.MonkeyPatch):
    kernels = Kernels("rowwise", {"ernie_norm_forward": "ippiifip"})

    class Library:
        @property
        def ernie_norm_forward(self) -> ctypes.c_int:
            assert not kernels._looked, "another thread would call it now"
            return ctypes.c_int()

    monkeypatch.setattr(native, "library", lambda name: Library())
    assert kernels.available


@pytest.mark.parametrize("labels", [torch.tensor([0, -100]), torch.tensor([0, 7]), torch.tensor([0, 1], dtype=torch.int32)])
def test_labels_outside_the_vocabulary_are_refused(labels: torch.Tensor):
    hidden, head = torch.randn(2, 4, requires_grad=True), torch.randn(7, 4)
    with pytest.raises(AssertionError):
        linear_cross_entropy(hidden, head, labels, torch.ones(2))


def test_numbers_of_another_dtype_are_refused():
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with pytest.raises(AssertionError):
        swiglu(x, torch.ones(2, dtype=torch.bfloat16))
    with torch.no_grad(), pytest.raises(AssertionError):
        decode.route(x, torch.randn(4, 8, dtype=torch.bfloat16), torch.zeros(4), 2, 1e-12)


def norm_in_child() -> None:
    torch.set_num_threads(2)
    x = torch.randn(64, 32)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, torch.ones(32), 1e-5), rms_norm_reference(x, torch.ones(32), 1e-5))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    before = torch.get_num_threads()
    norm_in_child()  # the parent's pool has begun
    child = multiprocessing.get_context("fork").Process(target=norm_in_child)
    child.start()
    child.join(30)
    torch.set_num_threads(before)
    assert child.exitcode == 0


CODE = """
import resource, torch
from ernie45.ops.norm import rms_norm, rms_norm_reference
from ernie45.ops.self_attention import Heads, self_attention
from ernie45.ops.rowwise import KERNELS
assert KERNELS.available
x, ones = torch.randn(64, 32), torch.ones(32)
torch.set_num_threads(1)
expected = rms_norm_reference(x, ones, 1e-5)
assert torch.allclose(expected, expected)
torch.set_num_threads(4)
torch.set_grad_enabled(False)
real = open("/proc/self/statm").read().split()[0]
# A thread's stack no longer fits: so no thread can be started.
resource.setrlimit(resource.RLIMIT_AS, (int(real) * resource.getpagesize() + (6 << 20),) * 2)
assert torch.allclose(rms_norm(x, ones, 1e-5), expected)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS") or sys.platform != "linux", reason="limits of Linux")
def test_kernels_do_without_threads_that_cannot_be_had():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("borders", "heads"), [((0, 3, 9), Heads(2, 1)), ((1, 8), Heads(2, 1)), ((0, 9, 8), Heads(2, 1)), ((0, 8), Heads(2, 2))]
)
def test_sequences_that_do_not_fit_their_rows_are_refused(borders: tuple[int, ...], heads: Heads):
    qkv, rotations = torch.randn(8, 4 * 16), torch.ones(8, 1, 8, dtype=torch.complex64)
    self_attention(qkv, rotations, Heads(2, 1), (0, 3, 3, 8))
    with pytest.raises(AssertionError):
        self_attention(qkv, rotations, heads, borders)


def test_sequences_longer_than_their_pages_are_refused():
    qkv, rotations = torch.randn(1, 4 * 16), torch.ones(1, 1, 8, dtype=torch.complex64)
    pages = torch.zeros(2, 4, 1, 16), torch.zeros(2, 4, 1, 16)
    table, slots = torch.tensor([[0, 1]]), torch.tensor([7])
    decode.attention(qkv, rotations, 2, pages, decode.Places(slots, table, [8]))
    with pytest.raises(AssertionError):
        decode.attention(qkv, rotations, 2, pages, decode.Places(slots, table, [9]))
