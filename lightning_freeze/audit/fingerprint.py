"""A 128-bit digest of a tensor's bits: 0.0 and -0.0 differ, and a NaN equals itself.

It depends on positions, as `torch.hash_tensor` (an XOR) does not, where any even number of equal elements hashes to 0.
``Tensor._version`` proves nothing: fused optimizers and ``.data`` writes leave it as it is. On the CPU xxh3 reads pieces of
a fixed size, on as many threads as torch computes with; on CUDA one Triton kernel reads each word once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.nn.parameter import is_lazy

Digest = int | Tensor
"""On the CPU an int; elsewhere two int64 on the tensor's own device, so that nothing waits for the host."""
WRITTEN: Any = "written"
"""In place of a digest: the tensor was written to while it was read beside the step."""
_Piece = tuple[Any, int]  # an array of bytes, where they are, and its salt

_LOG = logging.getLogger("lightning_freeze")

PLAIN = frozenset((Tensor, torch.nn.Parameter))  # the types whose memory is all there is to them
_FLAT = {*PLAIN, int, float, bool, str, type(None)}  # the types of leaves, mostly
_NAMES = {str}
_DTYPE, _SHAPE = attrgetter("dtype"), attrgetter("shape")
_PIECE = 1 << 21  # bytes that one thread reads at a time: some 200 µs, several times what waking a thread costs
_SHARED = 1 << 18  # bytes from which it pays to share many tensors among threads
_SAMPLE = 1 << 8  # bytes in which a write to a whole tensor shows
_64_BITS = (1 << 64) - 1
_COLUMNS = 1024
_ROWS = 1 << 12  # at once, in torch: 32 MiB as int64
_SECOND = 1 << 62  # the second sum takes its weights from another quarter of SplitMix64's sequence
_GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed number; the increment of SplitMix64
_MIX = (-4658895280553007687, -7723592293110705685)  # SplitMix64's multipliers
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: Tensor) -> str:
    """The digest of a tensor's bits, shape and dtype, as 32 hexadecimal digits.

    Digests made on one type of device can be compared with each other; a CPU digest (xxh3-128) and one made on an
    accelerator (a multilinear hash with position-dependent odd weights, after Lemire and Kaser, "Strongly Universal
    String Hashing is Fast", 2014) cannot.

    A DTensor is digested by its local shard, a wrapper subclass (torchao's quantised weights) by the tensors that its
    ``__tensor_flatten__`` names, any other subclass by its memory, whatever it overrides. The scales and zero points of
    a quantized tensor are among its bits.

    Args:
        tensor: A tensor of any layout, dtype and shape.

    Raises:
        ValueError: The tensor has no bits that could be read: it is on the meta device or not yet materialised, or it
            wraps others and does not say which.

    Example:
        >>> fingerprint(torch.tensor([0.0])) == fingerprint(torch.tensor([-0.0]))
        False
    """
    found = digest(tensor)
    return f"{found if isinstance(found, int) else unsigned(*found.tolist()):032x}"


def digest(tensor: Tensor) -> Digest:
    """The digest without a wait: an int on the CPU, a tensor on the device elsewhere."""
    if type(tensor) not in PLAIN:
        return _of_subclass(tensor)
    if (found := _by_address(tensor)) is not None:
        return found
    tensor = tensor.detach()
    if tensor.is_meta:
        raise _without_bits("on the meta device")
    if (parts := _plain_parts(tensor)) is not None:
        shape = () if tensor.is_nested else tuple(tensor.shape)  # that of a nested one is among its parts
        return _joined([digest(part) for part in parts], repr((tensor.layout, tensor.dtype, shape)))
    salt = _salt(tensor.dtype, tensor.shape)
    raw = _bytes(tensor)
    if not raw.is_cpu:
        return multilinear(raw.reshape(-1), salt)
    if raw.numel() <= _PIECE:
        return xxhash.xxh3_128_intdigest(raw.numpy(), seed=salt)  # type: ignore[arg-type]
    large, whole = Large(), list[Any]([None])
    large.add(whole, 0, raw, _pieces(raw, salt))
    large.finish()
    return whole[0]  # type: ignore[no-any-return]


def _by_address(tensor: Tensor) -> int | None:
    """The digest of a small plain tensor by its address: a fifth of what a view as a NumPy array takes."""
    if not _in_one_piece(tensor) or (size := tensor.nbytes) > _PIECE or not (address := tensor.data_ptr()):
        return None
    return xxhash.xxh3_128_intdigest(_array(size).from_address(address), seed=_salt(tensor.dtype, tensor.shape))


def digests(tensors: Iterable[Tensor | None]) -> list[Digest | None]:
    """The digest of each; None for a lazy parameter, and a buffer that is gone. Large ones on the CPU share threads."""
    large = Large()
    found = Reader().read([*tensors], large)
    large.finish()
    return found


def entries(values: Iterable[object]) -> tuple[list[tuple[str, ...] | None], list[object]]:
    """The names in each of these nested builtins, such as optimizer state, and all that they name in turn; None for None."""
    names: list[tuple[str, ...] | None] = []
    leaves: list[object] = []
    for value in values:
        if type(value) is dict and _FLAT.issuperset(map(type, value.values())) and _NAMES.issuperset(map(type, value)):
            names.append(tuple(value))  # most optimizer state
            leaves += value.values()
        elif value is None:
            names.append(None)
        else:
            pairs = [*_leaves("", value)]
            names.append(tuple(name for name, _ in pairs))
            leaves += [leaf for _, leaf in pairs]
    return names, leaves


class Reader:
    """Digests the same tensors again and again: what follows from shape, dtype and address is worked out once.

    Args:
        other: Gives the digest of what is no tensor: `described`, or None.
    """

    def __init__(self, other: Callable[[object], Digest | None] = lambda value: None) -> None:
        self._other = other
        self._addresses: list[int] | None = None  # not the tensors, which this must not keep alive
        self._memory: list[Any] | None = None  # of the small ones, once they were read twice at the same addresses
        self._salts: list[int] = []
        self._large: list[tuple[int, list[_Piece]]] = []  # the number of each, and its pieces

    def read(self, leaves: Sequence[Any], large: Large) -> list[Digest | None]:
        """The digest of each; those of large tensors come when ``large`` is finished."""
        if self._memory is None or not self._fits(leaves):
            self._memory = None
            self._learn(leaves)
            return self._each(leaves, large)
        found: list[Digest | None] = list(map(xxhash.xxh3_128_intdigest, self._memory, self._salts))
        for number, pieces in self._large:  # in rising order
            found.insert(number, None)
            large.add(found, number, leaves[number], pieces)
        return found

    def _fits(self, leaves: Sequence[Any]) -> bool:
        """Whether all but the bits is as it was learnt."""
        try:
            return (
                PLAIN.issuperset(map(type, leaves))
                and self._addresses == list(map(Tensor.data_ptr, leaves))
                and self._shapes == list(map(_SHAPE, leaves))
                and self._dtypes == list(map(_DTYPE, leaves))
                and all(map(Tensor.is_contiguous, leaves))
                and not any(map(Tensor.is_neg, leaves))
            )
        except RuntimeError:  # sparse or nested
            return False

    def _learn(self, leaves: Sequence[Any]) -> None:
        """Keep what the digests of the next time follow from, if addresses say all and are those of the last time."""
        before, self._addresses = self._addresses, None
        if not all(map(_is_its_memory, leaves)):
            return
        self._addresses = [leaf.data_ptr() for leaf in leaves]
        if self._addresses != before or 0 in before:
            return
        self._shapes, self._dtypes = list(map(_SHAPE, leaves)), list(map(_DTYPE, leaves))
        pieces = [(number, _pieces(leaf, _salt(leaf.dtype, leaf.shape))) for number, leaf in enumerate(leaves)]
        small = [only for number, (only, *_) in pieces if leaves[number].nbytes < _SHARED]
        self._memory, self._salts = [memory for memory, _ in small], [salt for _, salt in small]
        self._large = [(number, of_one) for number, of_one in pieces if leaves[number].nbytes >= _SHARED]

    def _each(self, leaves: Sequence[Any], large: Large) -> list[Digest | None]:
        found: list[Digest | None] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                found.append(self._other(leaf))
            elif _is_shared(leaf):
                large.add(found, len(found), leaf, _pieces(leaf, _salt(leaf.dtype, leaf.shape)))
                found.append(None)
            else:
                found.append(digest(leaf) if type(leaf) in PLAIN or not is_lazy(leaf) else None)
        return found


def differ(before: Digest | None, after: Digest | None) -> bool | Tensor:
    """Whether two digests differ, on their device; what had no bits before has not moved, whatever it became."""
    if before is None:
        return False
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return (before != after).any()
    return after is None or (type(before) is type(after) and before != after)  # those of two devices prove nothing


def to_builtins(values: Sequence[Any]) -> list[Any]:
    """Flags or digests as builtins; those still on a device are read with one wait for each device."""
    waiting: dict[torch.device, list[Tensor]] = {}
    for value in values:
        if isinstance(value, Tensor):
            waiting.setdefault(value.device, []).append(value)
    read = {device: iter(torch.stack(there).tolist()) for device, there in waiting.items()}
    return [next(read[value.device]) if isinstance(value, Tensor) else value for value in values]


def multilinear(raw: Tensor, salt: int) -> Tensor:
    """Two 64-bit multilinear sums over the 32-bit words of flat bytes, on their device: two int64.

    Words are in rows of 1024. A word's weight is its row's times its column's, each odd and pseudo-random, so a pass costs
    one multiplication a sum. Odd weights make every change of a single word visible for certain: its difference, times an
    odd number, is not 0 modulo 2⁶⁴. Other changes go unseen with a probability of 2⁻⁵⁶ at most in each of the two
    independent sums (2⁻²⁵ for elements that change their sign and nothing else).
    """
    missing = -raw.numel() % 4
    if missing or raw.storage_offset() % 4:
        raw = torch.nn.functional.pad(raw, (0, missing))
    words = raw.view(torch.int32)
    found = _by_kernel(words, salt) if words.is_cuda else None
    return _by_torch(words, salt) if found is None else found


def _by_torch(words: Tensor, salt: int) -> Tensor:
    begins = torch.arange(2, dtype=torch.int64, device=words.device).unsqueeze(1) * _SECOND
    # The sums begin at a weight that no word has, so that the salt shows in zeros, too.
    total = _weights(begins - 1 - _COLUMNS, salt).squeeze(1)
    # Rows count from 0 upwards and columns from -1 downwards: no row shares a column's weight.
    columns = _weights(begins - 1 - torch.arange(_COLUMNS, dtype=torch.int64, device=words.device), salt)
    for start in range(0, words.numel(), _ROWS * _COLUMNS):
        piece = words[start : start + _ROWS * _COLUMNS]
        piece = torch.nn.functional.pad(piece, (0, -piece.numel() % _COLUMNS)).view(-1, _COLUMNS).to(torch.int64)
        first = start // _COLUMNS
        rows = _weights(begins + torch.arange(first, first + len(piece), device=words.device), salt)
        for number in range(2):
            total[number] += ((piece * rows[number].unsqueeze(1)).sum(0) * columns[number]).sum()
    return total


def _by_kernel(words: Tensor, salt: int) -> Tensor | None:
    """The same by Triton, or None where Triton is missing or does not work."""
    global _kernel_works
    if not _kernel_works:
        return None
    try:
        # Triton is imported on a GPU only.
        from lightning_freeze.audit.fingerprint_triton import multilinear as by_triton

        return by_triton(words, signed(salt * _GOLDEN))
    except Exception as error:  # whatever a compiler may say: the audit goes on without it
        _kernel_works = False
        if not isinstance(error, ModuleNotFoundError):
            _LOG.warning(
                "the Triton kernel for fingerprints does not work here (%s: %s). Torch makes the same digests, at a lower rate.",
                type(error).__name__,
                error,
            )
        return None


_kernel_works = True  # until it was tried and did not


def _weights(index: Tensor, salt: int) -> Tensor:
    """An odd pseudo-random int64 for each index: SplitMix64 (Steele, Lea and Flood, 2014) of index and salt."""
    z = index * _GOLDEN + signed(salt * _GOLDEN)
    z = (z ^ _shift(z, 30)) * _MIX[0]
    z = (z ^ _shift(z, 27)) * _MIX[1]
    return (z ^ _shift(z, 31)) | 1


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own fills with the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def signed(number: int) -> int:
    """The lowest 64 bits as a signed number."""
    number &= _64_BITS
    return number - (1 << 64) if number >> 63 else number


def unsigned(high: int, low: int) -> int:
    """Two signed numbers of 64 bits as one of 128 without a sign."""
    return ((high & _64_BITS) << 64) | (low & _64_BITS)


@functools.lru_cache(maxsize=4096)
def _salt(dtype: torch.dtype, shape: torch.Size) -> int:
    return xxhash.xxh3_64_intdigest(f"{dtype}{tuple(shape)}".encode())


@functools.lru_cache(maxsize=4096)
def _array(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def _in_one_piece(tensor: Tensor) -> bool:
    """Whether the bits of a plain tensor are those of its memory on the CPU, in their order."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested)
    )


def _is_its_memory(leaf: Any) -> bool:
    """Whether a digest follows from address, shape and dtype; a complex tensor's may be of its conjugate."""
    return type(leaf) in PLAIN and _in_one_piece(leaf) and not leaf.is_complex()


def _is_shared(tensor: Tensor) -> bool:
    """Whether a tensor is worth a turn on a thread: in one piece, so that no copy is kept, and of some size."""
    return type(tensor) in PLAIN and _in_one_piece(tensor) and tensor.nbytes >= _SHARED and tensor.data_ptr() != 0


def _pieces(raw: Tensor, salt: int) -> list[_Piece]:
    address, size = raw.data_ptr(), raw.nbytes
    starts = range(0, size, _PIECE)
    return [(_array(min(_PIECE, size - start)).from_address(address + start), salt) for start in starts]


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What shows that a large tensor was written to: torch's own count, which ``.data`` does not move, and a sample."""
    sample = _array(min(_SAMPLE, tensor.nbytes)).from_address(tensor.data_ptr())
    return 0 if tensor.is_inference() else tensor._version, xxhash.xxh3_64_intdigest(sample)


class Large:
    """Large tensors in one piece, whose digests are made on threads."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self.tensors: list[tuple[list[Any], int, list[_Piece], Tensor]] = []
        """Where each digest belongs, its pieces, and the tensor, which keeps the memory that is read."""
        self._marks: list[tuple[int, int]] = []
        self._pinned: list[object] = []
        self._helpers: list[Future[None]] = []
        self._begun = False

    def add(self, found: list[Any], number: int, tensor: Tensor, pieces: list[_Piece]) -> None:
        """Put the digest of a tensor there when this is finished."""
        self.tensors.append((found, number, pieces, tensor))
        self._pieces += pieces

    def begin(self, helpers: int) -> None:
        """Begin on so many threads beside this one."""
        self._begun = True
        self._found = [b""] * len(self._pieces)
        self._left = deque(range(len(self._pieces)))
        with suppress(RuntimeError):  # the interpreter is ending, or there may be no more threads: this one does it all
            for _ in range(helpers):
                self._helpers.append(_pool(os.getpid()).submit(self._work))

    def begin_beside(self) -> bool:
        """Begin on one thread beside the step, where that is worth it. What is written to meanwhile is marked as `WRITTEN`."""
        if self._bytes() < _PIECE:
            return False
        # With their memory of now, where another takes its place.
        self.tensors = [(*where, tensor.detach()) for *where, tensor in self.tensors]  # type: ignore[misc]
        self._marks = [_mark(tensor) for *_, tensor in self.tensors]
        # As arrays of NumPy, so that torch resizes no storage whose memory is read.
        self._pinned = [tensor.reshape(-1).view(torch.uint8).numpy() for *_, tensor in self.tensors]
        self.begin(1)
        return True

    def finish(self) -> None:
        """Read what is left, on as many threads as torch computes with, and put every digest where it belongs."""
        if not self.tensors:
            return
        if not self._begun:
            self.begin(min(torch.get_num_threads(), len(self._pieces), self._bytes() // _PIECE) - 1)
        try:
            self._work()
        finally:
            self._left.clear()
            for helper in self._helpers:
                if not helper.cancel():
                    helper.result()
        digests, marks = iter(self._found), iter(self._marks)
        for found, number, pieces, tensor in self.tensors:
            made = _of_pieces([*islice(digests, len(pieces))], pieces[0][1])
            found[number] = WRITTEN if self._marks and _mark(tensor) != next(marks) else made
        self.tensors.clear()
        self._pinned.clear()

    def _bytes(self) -> int:
        return sum(tensor.nbytes for *_, tensor in self.tensors)

    def _work(self) -> None:
        with suppress(IndexError):  # until none is left
            while True:
                number = self._left.popleft()
                self._found[number] = xxhash.xxh3_128_digest(*self._pieces[number])


def _of_pieces(parts: Sequence[bytes], salt: int) -> int:
    """One digest of many, in their order; that of a single piece is its own."""
    if len(parts) == 1:
        return int.from_bytes(parts[0], "big")
    return xxhash.xxh3_128_intdigest(b"".join(parts), seed=salt)


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """This process's own: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="lightning_freeze")


def _of_subclass(tensor: Any) -> Digest:
    """The digest of what a subclass holds, without its overrides of torch's functions in the way."""
    if is_lazy(tensor):
        raise _without_bits("that is not yet materialised")
    with torch._C.DisableTorchFunctionSubclass():
        if hasattr(tensor, "to_local"):  # a DTensor: each rank digests its own shard
            with torch.no_grad():  # with gradients it would be a view, and not every shard can give one
                return digest(tensor.to_local())
        if hasattr(tensor, "trigger_wait"):  # an AsyncCollectiveTensor: what a collective may still be writing
            return digest(tensor.trigger_wait())
        if hasattr(tensor, "__tensor_flatten__"):
            return _of_wrapper(tensor)
        return digest(_own_memory(tensor))


def _of_wrapper(tensor: Any) -> Digest:
    """The digest of a wrapper subclass: of every tensor in it, and of its context's builtins.

    Bools of the context do not count: they often are ``requires_grad``, which is no bit of the tensor's.
    """
    names, context = tensor.__tensor_flatten__()
    leaves = [*_leaves("", {name: getattr(tensor, name) for name in names}), *_leaves("context", context)]
    parts = [digest(leaf) for _, leaf in leaves if isinstance(leaf, Tensor)]
    if not parts:
        return digest(_own_memory(tensor))
    described = [(key, "" if isinstance(leaf, (Tensor, bool)) else _described(leaf)) for key, leaf in leaves]
    shape = [size for size in tensor.shape if isinstance(size, int)]  # that of a jagged one is not all integers
    return _joined(parts, repr((type(tensor).__name__, tensor.dtype, shape, described)))


def _own_memory(tensor: Tensor) -> Tensor:
    """A subclass's own memory as a plain tensor."""
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return Tensor.detach(tensor)
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    try:
        memory = tensor.untyped_storage()
        there = memory.device.type == "meta" or memory.data_ptr() != 0
    except RuntimeError:  # what torch says of a storage that is not there
        there = False
    if there:  # `detach` would ask the subclass
        plain = torch.empty(0, dtype=tensor.dtype, device=memory.device)
        return plain.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
    name = type(tensor).__name__
    raise ValueError(
        f"a tensor of {name} has no memory of its own to fingerprint, and {name} does not say which tensors it wraps. Give it "
        "the method that torch calls for them, here with two of its attributes:\n\n"
        f"class {name}(torch.Tensor):\n"
        "    def __tensor_flatten__(self):\n"
        '        return ["data", "scale"], None'
    )


def _without_bits(where: str) -> ValueError:
    return ValueError(
        f"a tensor {where} has no bits to fingerprint. Materialise the model first: run one forward of lazy modules, or load "
        "its weights."
    )


def _plain_parts(tensor: Tensor) -> list[Tensor] | None:
    """The strided tensors with the bits of a sparse, quantized, nested or mkldnn one; None for a plain one."""
    if tensor.layout is torch.strided:
        if tensor.is_quantized:
            return [tensor.int_repr(), *_scales(tensor)]
        if tensor.is_nested:
            sizes, strides = tensor._nested_tensor_size(), tensor._nested_tensor_strides()
            return [sizes, strides, tensor._nested_tensor_storage_offsets(), tensor.values()]
        return None
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]  # mkldnn's, whose order of the elements is its own


def _scales(quantized: Tensor) -> list[Tensor]:
    """Scales, zero points and, where they are those of channels, their axis."""
    try:
        scheme = quantized.qscheme()
    except RuntimeError:  # `torch.empty` makes tensors of a quantized dtype that have none
        return []
    # On the CPU, where torch keeps what is one number for the whole tensor: nothing is copied to a device.
    if scheme == torch.per_tensor_affine:
        scale, zero_point = quantized.q_scale(), quantized.q_zero_point()
        return [torch.tensor(scale, dtype=torch.float64, device="cpu"), torch.tensor(zero_point, device="cpu")]
    axis = torch.tensor(quantized.q_per_channel_axis(), device="cpu")
    return [quantized.q_per_channel_scales(), quantized.q_per_channel_zero_points(), axis]


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's own memory as uint8 in one piece, copied only where it is not contiguous."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if not tensor.is_contiguous():
        # As integers where that is possible: torch copies no elements of int1 to uint7, and warns of bcomplex32.
        integers = _INTEGERS.get(tensor.itemsize)
        tensor = (tensor if integers is None else tensor.view(integers)).contiguous()
    return (tensor if tensor.dim() else tensor.reshape(1)).view(torch.uint8)


def _joined(parts: Sequence[Digest], kind: str) -> Digest:
    """One digest of several; where some are on a device, it is there, and those of the CPU are in its salt."""
    there = [part for part in parts if isinstance(part, Tensor)]
    if not there:
        return xxhash.xxh3_128_intdigest(repr(parts).encode(), seed=xxhash.xxh3_64_intdigest(kind.encode()))
    here = [(number, part) for number, part in enumerate(parts) if not isinstance(part, Tensor)]
    salt = xxhash.xxh3_64_intdigest(f"{kind}{here or ''}".encode())
    stacked = torch.cat([part.to(there[0].device, non_blocking=True) for part in there])
    return multilinear(_bytes(stacked), salt)


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), part)
    elif isinstance(value, (list, tuple, deque)):
        for number, part in enumerate(value):
            yield from _leaves(f"{key}[{number}]", part)
    else:
        yield key, value


def described(value: object) -> int:
    """The digest of what is no tensor, by its bytes or its ``repr``."""
    return xxhash.xxh3_128_intdigest(_described(value).encode())


def _described(value: object) -> str:
    if hasattr(value, "tobytes"):  # an array or a number of another library
        return f"{getattr(value, 'dtype', '')}{getattr(value, 'shape', '')}{value.tobytes()!r}"
    # An object's default repr holds its address, which says nothing of its content.
    known = isinstance(value, (int, float, str, bytes, bool, complex, type(None)))
    return repr(value) if known else type(value).__name__
