"""The kernel's two sums are torch's, bit for bit: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from lightning_freeze.audit import fingerprint_triton
from lightning_freeze.audit.fingerprint import _by_torch, digest, multilinear, signed

IN_THE_INTERPRETER = """
import warnings
warnings.simplefilter("error")
import torch
from lightning_freeze.audit import fingerprint, fingerprint_triton

fingerprint_triton._PROGRAMS = 3  # so that programs take several rows
torch.manual_seed(0)
for size in (0, 1, 1023, 1024, 1025, 3 * 1024, 7 * 1024 + 3):
    for salt in (0, 2**63, 0x123456789ABCDEF0):
        words = torch.randint(-(2**31), 2**31, (size,), dtype=torch.int32)
        expected = fingerprint._by_torch(words, salt)
        found = fingerprint._by_kernel(words, salt)
        assert found is not None and torch.equal(found, expected), (size, salt, found, expected)
print("equal")
"""


def test_the_kernel_in_the_interpreter() -> None:
    """In a process of its own: Triton asks for the variable as the kernel is defined."""
    pytest.importorskip("triton", reason="Triton is not installed")
    ended = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "equal\n"), ended.stderr


def test_without_triton_the_module_can_be_read_but_not_used() -> None:
    if importlib.util.find_spec("triton"):
        pytest.skip("Triton is installed")
    with pytest.raises(ModuleNotFoundError, match="Triton is not installed"):
        fingerprint_triton.multilinear(torch.ones(2, dtype=torch.int32), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 5_000_003])
def test_the_kernel_on_a_gpu(size: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    words = torch.randint(-(2**31), 2**31, (size,), dtype=torch.int32)
    there = words.cuda()
    expected = _by_torch(words, 3).tolist()
    assert _by_torch(there, 3).tolist() == expected
    assert fingerprint_triton.multilinear(there, signed(3 * 0x9E3779B97F4A7C15)).tolist() == expected
    assert multilinear(there.view(torch.uint8), 3).tolist() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_digest_does_not_wait_for_the_gpu() -> None:
    there = torch.randn(3000, 1000, device="cuda")
    digest(there)  # the first one compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = digest(there)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert isinstance(found, torch.Tensor)
    assert found.is_cuda
