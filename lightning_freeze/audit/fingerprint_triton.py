"""The hash of `fingerprint.multilinear` as one Triton kernel, imported on CUDA only.

Each program takes every so-many-th row. A word is read once and multiplied by its row's weight for both sums, which are
multiplied by the columns' at the end. Torch adds up the programs' sums on the device; nothing waits for the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ModuleNotFoundError:
    triton = None  # type: ignore[assignment,unused-ignore]

_COLUMNS = 1024
_PROGRAMS = 2048  # several for each multiprocessor of any device there is


def multilinear(words: Tensor, seed: int) -> Tensor:
    """The two int64 sums over flat int32 words on CUDA, exactly as torch makes them.

    ``seed`` is the place of index 0 in SplitMix64's sequence, as a signed 64-bit number.
    """
    if triton is None:
        raise ModuleNotFoundError("Triton is not installed", name="triton")
    programs = max(1, min(_PROGRAMS, triton.cdiv(words.numel(), _COLUMNS)))
    sums = torch.empty((programs, 2), dtype=torch.int64, device=words.device)
    with torch.cuda.device_of(words):
        _kernel[(programs,)](words, sums, words.numel(), seed, columns=_COLUMNS, num_warps=4)
    return sums.sum(0)


def _jit(**options: Any) -> Any:
    """Triton's decorator; without Triton none, so that this module can be imported all the same."""
    return (lambda function: function) if triton is None else triton.jit(**options)


@_jit()
def _weights(index, seed):  # type: ignore[no-untyped-def]
    z = (index * -7046029254386353131 + seed).to(tl.uint64, bitcast=True)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return (z ^ (z >> 31)).to(tl.int64, bitcast=True) | 1


@_jit(do_not_specialize=["size", "seed"])  # type: ignore[untyped-decorator]
def _kernel(words, sums, size, seed, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    begin: tl.constexpr = 1 << 62  # of the second sum's weights
    program = tl.program_id(0).to(tl.int64)
    seed = seed.to(tl.int64)
    size = size.to(tl.int64)
    column = tl.arange(0, columns).to(tl.int64)
    first = tl.zeros([columns], tl.int64)
    second = tl.zeros([columns], tl.int64)
    rows = size // columns
    for turn in range(0, tl.cdiv(rows - program, tl.num_programs(0))):
        row = program + turn * tl.num_programs(0)
        word = tl.load(words + row * columns + column).to(tl.int64)  # without a mask, so that loads are wide
        first += word * _weights(row, seed)
        second += word * _weights(row + begin, seed)
    if program == rows % tl.num_programs(0):  # whose turn the last, incomplete row is
        rest = rows * columns + column
        word = tl.load(words + rest, mask=rest < size, other=0).to(tl.int64)
        first += word * _weights(rows, seed)
        second += word * _weights(rows + begin, seed)
    one = tl.sum(first * _weights(-1 - column, seed))
    two = tl.sum(second * _weights(begin - 1 - column, seed))
    if program == 0:  # the sums begin at a weight that no word has; `program` is the zero of its index
        one += _weights(program - 1 - columns, seed)
        two += _weights(program + begin - 1 - columns, seed)
    tl.store(sums + 2 * program, one)
    tl.store(sums + 2 * program + 1, two)
