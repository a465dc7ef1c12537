"""The digest of a tensor's bits: any change shows, nothing else does."""

from __future__ import annotations

import logging
import os
import signal
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_freeze.audit import fingerprint as module
from lightning_freeze.audit.fingerprint import Digest, differ, digest, digests, fingerprint, multilinear
from tests.threads import threads

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),  # torch says of CSR and CSC that they are in beta
    pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning"),  # and of complex32 that it is experimental
]

Print = Callable[[Tensor], str]


def digests_of(values: Sequence[object]) -> list[dict[str, Digest | None]]:
    """For each of these values, every name in it with its digest."""
    names, leaves = module.entries(values)
    large = module.Large()
    found = module.Reader(module.described).read(leaves, large)
    large.finish()
    numbers = iter(found)
    return [dict(zip(keys or (), numbers, strict=False)) for keys in names]


class _AcceleratorsHash:
    """In place of xxhash: bytes are digested by `multilinear`, as on an accelerator; salts as ever."""

    xxh3_64_intdigest = staticmethod(xxhash.xxh3_64_intdigest)

    @staticmethod
    def xxh3_128_intdigest(raw: memoryview, seed: int) -> Tensor:
        data = bytearray(raw)
        return multilinear(
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8), seed
        )


def accelerators(tensor: Tensor) -> str:
    """`fingerprint` as an accelerator makes it, on the CPU."""
    with mock.patch.object(module, "xxhash", _AcceleratorsHash):
        return fingerprint(tensor)


both = pytest.mark.parametrize("of", [fingerprint, accelerators], ids=["cpu", "accelerator"])
FEW = settings(max_examples=60, deadline=None)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.complex32,
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def of_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).clone()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- what must show --------------------------------------------------------------------------------------------------


@both
@FEW
@given(data=st.data())
def test_one_flipped_bit_shows(of: Print, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([d for d in DTYPES if d != torch.bool]))
    raw = data.draw(st.binary(min_size=1, max_size=9)) * torch.empty(0, dtype=dtype).element_size()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    assert of(of_bytes(raw, dtype)) != of(of_bytes(flipped(raw, bit), dtype))


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_flipped_element_shows_in_every_dtype(of: Print, dtype: torch.dtype) -> None:
    size = 11 * torch.empty(0, dtype=dtype).element_size()
    prints = [of(of_bytes(bytes(size), dtype))]
    for byte in range(size):
        prints.append(of(of_bytes(flipped(bytes(size), 8 * byte), dtype)))
    assert len(set(prints)) == len(prints)


@both
@FEW
@given(values=st.lists(st.floats(width=32), min_size=2, max_size=12), data=st.data())
def test_a_swap_of_two_elements_shows(of: Print, values: list[float], data: st.DataObject) -> None:
    i, j = (data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    swapped = list(values)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    same = struct.pack("<f", values[i]) == struct.pack("<f", values[j])
    assert (of(torch.tensor(values)) == of(torch.tensor(swapped))) == same


@both
@pytest.mark.parametrize("size", [2, 4, 64, 768])
@pytest.mark.parametrize("scale", [0.999, 1 - 1e-7, 2.0, -1.0])
def test_a_uniform_scaling_of_ones_shows(of: Print, size: int, scale: float) -> None:
    """The leak of weight decay, which an XOR of the elements cannot see."""
    assert of(torch.ones(size)) != of(torch.ones(size) * scale)


@both
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_minus_zero_is_not_zero(of: Print, size: int) -> None:
    assert of(torch.zeros(size)) != of(-torch.zeros(size))


@both
def test_the_bits_of_a_nan_show(of: Print) -> None:
    quiet, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert of(quiet) != of(other)


@both
def test_shape_and_dtype_show(of: Print) -> None:
    zeros = torch.zeros(12, dtype=torch.float32)
    alike = [
        zeros,
        zeros.view(3, 4),
        zeros.view(4, 3),
        zeros.view(1, 12),
        zeros.view(torch.int32),
        zeros.view(torch.int16),
        zeros[:11],
        zeros[:0],
        zeros[:0].view(0, 1),
        zeros[0],
        zeros[:1],
        zeros.view(torch.bfloat16),
        zeros.view(torch.uint8),
    ]
    assert len({of(tensor) for tensor in alike}) == len(alike)


@both
def test_thousands_of_small_tensors_do_not_collide(of: Print) -> None:
    made = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (1500, 12), generator=made, dtype=torch.int8)
    tensors = [*torch.unique(values, dim=0), *torch.randn(500, 2, generator=made), *torch.eye(500), *-torch.eye(500)]
    assert len({of(tensor) for tensor in tensors}) == len(tensors)


def test_a_sum_of_words_would_not_see_what_the_weights_see() -> None:
    """The proof that positions matter: the same words in any order."""
    words = torch.arange(16, dtype=torch.int32)
    prints = {accelerators(words.roll(n)) for n in range(16)} | {accelerators(words.flip(0))}
    assert len(prints) == 17


# --- what must not show ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_copy_is_the_same(of: Print, dtype: torch.dtype) -> None:
    raw = bytes(n % 2 for n in range(48))
    assert of(of_bytes(raw, dtype)) == of(of_bytes(raw, dtype).clone())


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_any_value_equals_itself(of: Print, value: float) -> None:
    assert of(torch.full((3,), value)) == of(torch.full((3,), value))


@both
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2],
        lambda t: t[:, 1:4],
        lambda t: t[1],
        lambda t: t[0, 0],
        lambda t: t[:0],
        lambda t: t[:1].expand(3, 6),
        lambda t: t.flip(0),
        lambda t: t.view(2, 1, 2, 6).to(memory_format=torch.channels_last),
        lambda t: t.to(torch.complex64).mul(1j).conj(),
        lambda t: t.to(torch.complex64).mul(1j).conj().imag,
    ],
    ids=["transposed", "strided", "columns", "row", "scalar", "empty", "expanded", "flipped", "last", "conj", "neg"],
)
def test_strides_do_not_show(of: Print, view: Callable[[Tensor], Tensor]) -> None:
    seen = view(torch.arange(24.0).view(4, 6))
    plain = seen.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    assert of(seen) == of(plain)


@both
def test_requires_grad_does_not_show(of: Print) -> None:
    assert of(torch.nn.Parameter(torch.ones(3))) == of(torch.ones(3))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7, 8])
def test_the_place_in_memory_does_not_show(start: int, size: int) -> None:
    memory = torch.arange(16, dtype=torch.uint8)
    piece = memory[start : start + size]
    assert multilinear(piece, 7).tolist() == multilinear(piece.clone(), 7).tolist()


def test_the_size_of_chunks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.arange(5000).to(torch.uint8).repeat(5)
    whole = multilinear(raw, 3).tolist()
    monkeypatch.setattr(module, "_ROWS", 2)
    assert multilinear(raw, 3).tolist() == whole


# --- the multilinear hash against plain integers ---------------------------------------------------------------------

MASK = (1 << 64) - 1


def weight(index: int, salt: int) -> int:
    """SplitMix64 of position and salt in Python's own integers."""
    z = (index + salt) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) | 1


def expected_sums(data: bytes, salt: int) -> list[int]:
    """Both sums in Python's own integers: a word's weight is its row's times its column's."""
    padded = data + bytes(-len(data) % 4)
    words = struct.unpack(f"<{len(padded) // 4}i", padded)
    return [
        weight(begin - 1025, salt)
        + sum(
            word * weight(begin + number // 1024, salt) * weight(begin - 1 - number % 1024, salt)
            for number, word in enumerate(words)
        )
        & MASK
        for begin in (0, 1 << 62)
    ]


@FEW
@given(st.binary(max_size=40), st.integers(0, MASK))
def test_multilinear_is_a_weighted_sum_of_words(data: bytes, salt: int) -> None:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert [n & MASK for n in multilinear(raw, salt).tolist()] == expected_sums(data, salt)


def test_rows_and_columns_have_weights_of_their_own() -> None:
    data = bytes(number * number % 251 for number in range(4 * 2500))
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    assert [n & MASK for n in multilinear(raw, 7).tolist()] == expected_sums(data, 7)


def test_a_word_that_changes_its_row_or_column_shows() -> None:
    """Also where row and column change places."""
    prints = []
    for place in (0, 1, 2, 1024, 2048, 3 * 1024 + 2, 2 * 1024 + 3, 1023, 4095):
        words = torch.zeros(4096, dtype=torch.int32)
        words[place] = 1
        prints.append(accelerators(words))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("size", [2, 1024, 2048, 4096])
def test_equal_words_do_not_cancel(size: int) -> None:
    prints = {accelerators(torch.full((size,), value, dtype=torch.int32)) for value in (0, 1, -1, 1 << 30, -(1 << 31))}
    assert len(prints) == 5


def test_the_salt_changes_every_sum() -> None:
    raw = torch.ones(8, dtype=torch.uint8)
    sums = [multilinear(raw, salt).tolist() for salt in (0, 2, 1 << 63)]
    assert len({n for pair in sums for n in pair}) == 6


# --- the kernel's place ----------------------------------------------------------------------------------------------


def in_place_of_the_kernel(monkeypatch: pytest.MonkeyPatch, replacement: object) -> None:
    monkeypatch.setattr(module, "_kernel_works", True)
    monkeypatch.setitem(sys.modules, "lightning_freeze.audit.fingerprint_triton", replacement)


def test_a_kernel_that_fails_is_said_once_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def fails(words: Tensor, seed: int) -> Tensor:
        tries.append(seed)
        raise RuntimeError("no C compiler")

    in_place_of_the_kernel(monkeypatch, SimpleNamespace(multilinear=fails))
    with caplog.at_level(logging.WARNING, "lightning_freeze"):
        assert [module._by_kernel(torch.ones(2, dtype=torch.int32), 1) for _ in range(2)] == [None, None]
    assert len(tries) == 1
    (said,) = caplog.messages
    assert said.startswith("the Triton kernel for fingerprints does not work here (RuntimeError: no C compiler). ")
    assert "Torch makes the same digests" in said


def test_without_triton_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    in_place_of_the_kernel(monkeypatch, None)  # as Python notes a module that is not there
    assert module._by_kernel(torch.ones(2, dtype=torch.int32), 1) is None
    assert caplog.messages == []


def test_a_kernel_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    in_place_of_the_kernel(
        monkeypatch, SimpleNamespace(multilinear=lambda words, seed: seen.append(seed) or words.sum())
    )
    assert module._by_kernel(torch.ones(2, dtype=torch.int32), 3) == 2
    assert seen == [module.signed(3 * 0x9E3779B97F4A7C15)]


# --- on threads ------------------------------------------------------------------------------------------------------


LARGE = torch.arange(5 * module._PIECE // 4 + 3, dtype=torch.int32)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_number_of_threads_does_not_show(number: int) -> None:
    with threads(1):
        alone = fingerprint(LARGE)
    with threads(number):
        assert {fingerprint(LARGE) for _ in range(5)} == {alone}


def test_every_thread_gets_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    class Pool:
        def submit(self, work: Callable[[], None]) -> Any:
            sent.append(work)
            return SimpleNamespace(cancel=lambda: False, result=work)

    monkeypatch.setattr(module, "_pool", lambda process: Pool())
    with threads(4):
        found = fingerprint(LARGE)
        assert len(sent) == 3
        fingerprint(LARGE[: module._PIECE // 4])  # a single piece
        assert len(sent) == 3
    with threads(1):
        assert fingerprint(LARGE) == found
    assert len(sent) == 3


def test_one_changed_byte_shows_in_every_piece() -> None:
    raw = LARGE.clone().view(torch.uint8)
    prints = [fingerprint(raw)]
    for start in range(0, len(raw), module._PIECE):
        for place in {start, min(start + module._PIECE, len(raw)) - 1}:
            raw[place] ^= 1
            prints.append(fingerprint(raw))
            raw[place] ^= 1
    assert len(set(prints)) == len(prints) == 13
    assert fingerprint(raw) == prints[0]


def test_swapped_pieces_show() -> None:
    whole = LARGE[: 4 * module._PIECE // 4].view(4, -1)
    assert len({fingerprint(whole[order]) for order in ([0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0])}) == 4


def test_equal_pieces_do_not_cancel() -> None:
    pieces = torch.zeros(4, module._PIECE, dtype=torch.uint8)
    assert len({fingerprint(pieces + value) for value in range(3)}) == 3


def test_without_a_further_thread_this_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def submit(self, work: Callable[[], None]) -> Any:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    expected = fingerprint(LARGE)
    monkeypatch.setattr(module, "_pool", lambda process: Ended())
    with threads(2):
        assert fingerprint(LARGE) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12's; it is what is tested
def test_a_forked_process_has_threads_of_its_own() -> None:
    with threads(2):
        expected = fingerprint(LARGE)
        child = os.fork()
        if child == 0:  # must not return into pytest
            same = False
            try:
                same = fingerprint(LARGE) == expected
            finally:
                os._exit(0 if same else 1)
        for _ in range(200):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0
        assert fingerprint(LARGE) == expected


@pytest.mark.parametrize("number", [1, 2])
def test_digests_of_many_are_those_of_each(number: int) -> None:
    shared = torch.arange(module._SHARED, dtype=torch.int32)
    many = [
        torch.ones(3),
        None,
        shared,
        shared.view(2, -1).t(),
        torch.nn.Parameter(shared.float()),
        torch.nn.LazyLinear(2).weight,
        torch.eye(3).to_sparse(),
        LARGE,
        torch.view_as_complex(shared.float().view(-1, 2)).conj(),
        torch.empty(0),
        shared.to(torch.bfloat16),
    ]
    with threads(number):
        assert digests(many) == [None if number in (1, 5) else digest(tensor) for number, tensor in enumerate(many)]
        assert digests([]) == []


def test_what_has_no_bits_is_refused_among_many() -> None:
    with pytest.raises(ValueError, match="on the meta device has no bits"):
        digests([torch.ones(3), torch.empty(1 << 20, device="meta")])


# --- sparse, quantized, sharded, missing -----------------------------------------------------------------------------


def sparse_of(layout: torch.layout, values: list[list[float]]) -> Tensor:
    return torch.tensor(values).to_sparse(layout=layout)


LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_sparse_tensor_is_the_same_as_its_copy(of: Print, layout: torch.layout) -> None:
    values = [[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]
    assert of(sparse_of(layout, values)) == of(sparse_of(layout, values))


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_value_place_and_shape_of_a_sparse_tensor_show(of: Print, layout: torch.layout) -> None:
    alike = [
        [[0.0, 2.0, 0.0]],
        [[0.0, 3.0, 0.0]],
        [[0.0, 0.0, 2.0]],
        [[0.0, 2.0]],
        [[0.0, 2.0, 0.0], [0.0] * 3],
        [[0.0] * 3],
    ]
    prints = {of(sparse_of(layout, values)) for values in alike}
    assert len(prints) == len(alike)


@both
def test_layouts_of_the_same_values_differ(of: Print) -> None:
    eye = [[1.0, 0.0], [0.0, 1.0]]
    assert len({of(torch.tensor(eye)), *(of(sparse_of(layout, eye)) for layout in LAYOUTS)}) == 4


@both
def test_blocks_of_a_sparse_tensor_show(of: Print) -> None:
    one = torch.eye(4).to_sparse_bsr((2, 2))
    other = torch.eye(4).to_sparse_bsr((2, 2))
    assert of(one) == of(other)
    other.values()[0, 0, 0] = 2
    assert of(one) != of(other)


class Sharded(Tensor):
    """Like a DTensor: more than its own shard, which ``to_local`` hands out."""

    shard: Tensor

    def detach(self) -> Sharded:
        return self

    def to_local(self) -> Tensor:
        return self.shard


@both
def test_a_dtensor_is_digested_by_its_shard(of: Print) -> None:
    whole = torch.zeros(8).as_subclass(Sharded)
    whole.shard = torch.ones(4)
    assert of(whole) == of(torch.ones(4))


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (
            lambda: torch.empty(3, device="meta"),
            "a tensor on the meta device has no bits to fingerprint. Materialise the",
        ),
        (lambda: torch.nn.LazyLinear(2).weight, "a tensor that is not yet materialised has no bits to fingerprint."),
    ],
    ids=["meta", "lazy"],
)
def test_a_tensor_without_bits_is_refused(tensor: Callable[[], Tensor], text: str) -> None:
    with pytest.raises(ValueError, match="has no bits") as caught:
        fingerprint(tensor())
    assert text in str(caught.value)


# --- as text and as digests ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.tensor(1.5), torch.empty(0), torch.eye(2).to_sparse()], ids=str
)
def test_a_fingerprint_is_32_hexadecimal_digits(of: Print, tensor: Tensor) -> None:
    found = of(tensor)
    assert len(found) == 32
    assert set(found) <= set("0123456789abcdef")


def test_the_digest_of_the_cpu_is_stable() -> None:
    """Written down, so that a run resumed under a newer release compares like with like."""
    salt = xxhash.xxh3_64_intdigest(b"torch.float32(2,)")
    assert fingerprint(torch.tensor([1.0, 2.0])) == xxhash.xxh3_128_hexdigest(struct.pack("<2f", 1, 2), seed=salt)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (1, 1, False),
        (1, 2, True),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), True),
    ],
)
def test_digests_differ_where_either_half_does(before: Any, after: Any, expected: bool) -> None:
    assert bool(differ(before, after)) is expected


def states() -> Iterator[dict[str, Any]]:
    """Optimizer states, each a little different from the one before."""
    zeros = torch.zeros(2)
    yield {"step": 1, "m": zeros, "more": [zeros, {"k": None}]}
    yield {"step": 2, "m": zeros, "more": [zeros, {"k": None}]}
    yield {"step": 2.0, "m": zeros, "more": [zeros, {"k": None}]}
    yield {"step": 2.0, "m": -zeros, "more": [zeros, {"k": None}]}
    yield {"step": 2.0, "m": -zeros, "more": [-zeros, {"k": None}]}
    yield {"step": 2.0, "m": -zeros, "more": [-zeros, {"k": False}]}
    yield {"step": 2.0, "m": -zeros, "more": [-zeros]}
    yield {"step": 2.0, "m": -zeros}
    yield {"step": 2.0, "n": -zeros}


def test_any_change_within_nested_state_shows() -> None:
    digests = [digests_of([state])[0] for state in states()]
    assert all(one != other for one, other in pairwise(digests))
    assert digests == [digests_of([state])[0] for state in states()]


def test_digests_of_nested_state_say_where() -> None:
    assert list(digests_of([next(states())])[0]) == ["step", "m", "more[0]", "more[1].k"]


def test_an_objects_address_is_no_change() -> None:
    assert digests_of([{"closure": object()}])[0] == digests_of([{"closure": object()}])[0]


def test_a_tensor_in_state_has_its_own_digest() -> None:
    assert digests_of([torch.ones(3)])[0] == {"": digest(torch.ones(3))}


# --- read by address


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0),
        torch.arange(6.0)[2:5],  # not at the storage's beginning
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(3),
        torch.empty(0, 4),
        torch.ones(3, dtype=torch.bool),
        torch.randn(2, dtype=torch.complex64),
        torch.randn(2, dtype=torch.complex64).conj(),
        torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)),
        torch.ones(3, 4).expand(2, 3, 4),
    ],
    ids=["whole", "part", "transposed", "scalar", "empty", "bool", "complex", "conj", "bf16", "expanded"],
)
def test_a_digest_by_address_is_that_of_the_bytes(tensor: Tensor) -> None:
    plain = tensor.detach().resolve_conj().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    assert digest(tensor) == xxhash.xxh3_128_intdigest(raw, seed=module._salt(tensor.dtype, tensor.shape))


# --- read again and again --------------------------------------------------------------------------------------------


def plain() -> list[Tensor]:
    base = torch.arange(24.0).view(4, 6)
    return [
        base,
        base.t(),
        base[:, 1:4],
        base[:0],
        base[0, 0],
        base.to(torch.bfloat16),
        base > 3,
        torch.arange(1 << 17),
    ]


def kinds_of_state() -> Iterator[object]:
    small, large = torch.arange(5.0), torch.arange(1 << 17, dtype=torch.int32)
    yield from ({}, {"step": torch.tensor(3.0), "exp_avg": small, "exp_avg_sq": large}, {"step": 7, "buffer": None})
    yield from ({"m": [small, large], "more": {"k": (1.5, "x")}}, [{"z": small}, {}])


GOLDEN = [
    "0634ef9a",
    "72a0db97",
    "18f26f3e",
    "57e6098f",
    "1ee65b6e",
    "e13f9929",
    "210a7828",
    "c978c5a3",
    "d091ae98",
    "9771b2cb",
    "a81b6904",
    "dbd6a1e7",
    "df949042",
    "9771b2cb",
    "a81b6904",
    "72e27827",
    "af81b05b",
    "9771b2cb",
]


def test_digests_are_those_of_the_first_version() -> None:
    """A record of then can be compared with one of now."""
    prints = [fingerprint(tensor)[:8] for tensor in plain()]
    assert prints == GOLDEN[:8]
    state = [fingerprint_of(number) for entries in digests_of([*kinds_of_state()]) for number in entries.values()]
    assert state == GOLDEN[8:]


def fingerprint_of(number: object) -> str:
    return f"{number:032x}"[:8]


@pytest.mark.parametrize("kind", ["plain", "state", "mixed"])
def test_what_is_read_again_has_the_same_digest(kind: str) -> None:
    leaves: list[Any] = module.entries(kinds_of_state())[1] if kind == "state" else plain()
    leaves += [torch.ones(3), 2.5, None, torch.eye(2).to_sparse(), torch.ones(2).conj()] if kind == "mixed" else []
    leaves = [leaf for leaf in leaves if kind != "plain" or (leaf.is_contiguous() and leaf.numel())]
    reader, expected = module.Reader(module.described), [digests_of([{"": leaf}])[0][""] for leaf in leaves]
    for number in range(4):
        large = module.Large()
        found = reader.read(leaves, large)
        large.finish()
        assert found == expected
        assert (reader._memory is not None) == (kind == "plain" and number > 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.data.add_(1),
        lambda p: setattr(p, "data", p.data.t()),
        lambda p: setattr(p, "data", p.data.view(1, 16)),
        lambda p: setattr(p, "data", p.data.clone()),
        lambda p: setattr(p, "data", p.data.view(torch.int32)),
        lambda p: setattr(p, "data", p.data[:2]),
        lambda p: p.data.resize_(5, 5).fill_(1),
    ],
    ids=["values", "transposed", "shape", "moved", "dtype", "rows", "resized"],
)
def test_what_changes_between_two_readings_shows(change: Callable[[Any], object]) -> None:
    tensors = [torch.ones(3), torch.arange(16.0).view(4, 4)]
    reader = module.Reader()
    for _ in range(3):
        reader.read(tensors, module.Large())
    change(tensors[1])
    for _ in range(3):
        assert reader.read(tensors, module.Large()) == [digest(tensor) for tensor in tensors]


def test_nothing_is_kept_alive_by_having_been_read() -> None:
    tensors = [torch.ones(3)]
    gone, reader = weakref.ref(tensors[0]), module.Reader()
    for _ in range(3):
        reader.read(tensors, module.Large())
    tensors.clear()
    assert gone() is None


def test_a_lazy_negation_shows_in_what_was_read_before() -> None:
    reader, tensor = module.Reader(), torch.ones(4)
    before = [reader.read([tensor], module.Large()) for _ in range(3)]
    assert before[0] == before[1] == before[2]
    assert reader.read([torch._neg_view(tensor)], module.Large()) != before[0]
