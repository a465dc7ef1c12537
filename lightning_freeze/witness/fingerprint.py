"""A 128-bit digest of a tensor's bits; knows nobody.

Bits, not values: 0.0 and -0.0 differ, and a NaN equals itself. The digest depends on positions, as `torch.hash_tensor`
(an XOR of the elements) does not: any even number of equal elements hashes to 0 there. Nothing is inferred from
``Tensor._version``, which fused optimizers and ``.data`` writes leave as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

Digest = int | Tensor
"""On the CPU an int; elsewhere two int64 on the tensor's own device, so that nothing waits for the host."""

_CHUNK = 1 << 22
_GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed number; the increment of SplitMix64
_MIX = (-4658895280553007687, -7723592293110705685)  # SplitMix64's multipliers


def fingerprint(tensor: Tensor) -> str:
    """The digest of a tensor's bits, shape and dtype, as 32 hexadecimal digits.

    Digests made on one type of device can be compared with each other; a CPU digest (xxh3-128) and one made on an
    accelerator (a multilinear hash with position-dependent odd weights, after Lemire and Kaser, "Strongly Universal
    String Hashing is Fast", 2014) cannot. A DTensor is digested by its local shard.

    Args:
        tensor: Any strided, sparse or quantized tensor, of any dtype and any shape.

    Raises:
        ValueError: The tensor has no bits: it is on the meta device, or not yet materialised.

    Example:
        >>> fingerprint(torch.tensor([0.0])) == fingerprint(torch.tensor([-0.0]))
        False
    """
    found = digest(tensor)
    if isinstance(found, int):
        return f"{found:032x}"
    high, low = found.tolist()
    return f"{high & 0xFFFFFFFFFFFFFFFF:016x}{low & 0xFFFFFFFFFFFFFFFF:016x}"


def digest(tensor: Tensor) -> Digest:
    """The digest without a wait: an int on the CPU, a tensor on the device elsewhere."""
    lazy = is_lazy(tensor)
    if not lazy:
        tensor = tensor.detach()
        if hasattr(tensor, "to_local"):  # a DTensor: each rank digests its own shard
            tensor = tensor.to_local()
    if lazy or tensor.is_meta:
        raise ValueError(
            f"a tensor {'that is not yet materialised' if lazy else 'on the meta device'} has no bits to "
            "fingerprint. Materialise the model first: run one forward of lazy modules, or load its weights."
        )
    parts = _plain_parts(tensor)
    if parts is not None:
        return _joined([digest(part) for part in parts], repr((tensor.layout, tensor.dtype, tuple(tensor.shape))))
    raw = _bytes(tensor)
    salt = xxhash.xxh3_64_intdigest(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if raw.device.type == "cpu":
        return xxhash.xxh3_128_intdigest(memoryview(raw.numpy()), seed=salt)  # type: ignore[arg-type]
    return multilinear(raw, salt)


def is_lazy(tensor: object) -> bool:
    """Whether this is a parameter or buffer of a lazy module that has not seen its first input yet."""
    return isinstance(tensor, UninitializedTensorMixin)


def digest_if_any(tensor: Tensor | None) -> Digest | None:
    """The digest, or None for what has no bits yet (a lazy parameter) or any more (a buffer that was taken away)."""
    return None if tensor is None or is_lazy(tensor) else digest(tensor)


def digest_all(values: object) -> list[tuple[str, Digest]]:
    """The digest of every tensor, and of everything else by its ``repr``, in nested builtins: an optimizer's state."""
    return list(_walk("", values))


def differ(before: Digest | None, after: Digest | None) -> bool | Tensor:
    """Whether two digests differ: a bool, or a bool tensor still on the device.

    What had no bits before has not moved, whatever it became.
    """
    if before is None:
        return False
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return (before != after).any()
    return before is not after and before != after


def multilinear(raw: Tensor, salt: int) -> Tensor:
    """Two 64-bit multilinear sums over 32-bit words with odd, position-dependent weights, on the tensor's device.

    Odd weights make every change of a single word visible for certain: its difference, times an odd number, is not 0
    modulo 2⁶⁴. Other changes go unseen with a probability of 2⁻⁶⁴ at most over the two sums (2⁻³² in each, for elements
    that change their sign and nothing else).

    Args:
        raw: The bytes, a flat uint8 tensor.
        salt: Mixed into the weights.

    Returns:
        Two int64.
    """
    missing = -raw.numel() % 4
    if missing or raw.storage_offset() % 4:
        raw = torch.nn.functional.pad(raw, (0, missing))
    words = raw.view(torch.int32)
    # The sums begin at the weights of the position before the first, so that the salt shows in zeros, too.
    total = _weights(torch.arange(-1, 1, dtype=torch.int64, device=raw.device), salt)
    for start in range(0, words.numel(), _CHUNK):
        piece = words[start : start + _CHUNK].to(torch.int64)
        index = torch.arange(start, start + piece.numel(), dtype=torch.int64, device=raw.device)
        for lane in range(2):
            total[lane] += (piece * _weights(index, salt + lane)).sum()
    return total


def _weights(index: Tensor, salt: int) -> Tensor:
    """An odd pseudo-random int64 for each position: SplitMix64 (Steele, Lea and Flood, 2014) of position and salt."""
    seed = _signed(salt * 0x9E3779B97F4A7C15)
    z = index * _GOLDEN + seed
    z = (z ^ _shift(z, 30)) * _MIX[0]
    z = (z ^ _shift(z, 27)) * _MIX[1]
    return (z ^ _shift(z, 31)) | 1


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own fills with the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number >= 1 << 63 else number


def _plain_parts(tensor: Tensor) -> list[Tensor] | None:
    """The strided tensors that hold a sparse or quantized one's bits, or None for a plain one."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_quantized:
        return [tensor.int_repr()]
    return None


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's own memory as a flat uint8 tensor, copied only where it is not contiguous."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _joined(parts: list[Digest], salt: str) -> Digest:
    start = xxhash.xxh3_64_intdigest(salt.encode())
    if isinstance(parts[0], int):
        return xxhash.xxh3_128_intdigest(repr(parts).encode(), seed=start)
    stacked = torch.cat([part for part in parts if isinstance(part, Tensor)])
    return multilinear(_bytes(stacked), start)


def _walk(key: str, value: object) -> Iterable[tuple[str, Digest]]:
    if isinstance(value, Tensor):
        yield key, digest(value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _walk(f"{key}.{name}" if key else str(name), part)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _walk(f"{key}[{number}]", part)
    else:
        yield key, xxhash.xxh3_128_intdigest(_plain(value).encode())


def _plain(value: Any) -> str:
    # An object's default repr holds its address, which says nothing of its content.
    return repr(value) if isinstance(value, (int, float, str, bool, complex, type(None))) else type(value).__name__
