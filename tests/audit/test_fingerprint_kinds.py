"""Tensors of every kind: each dtype there is, quantized, wrapped, subclassed, empty, sharded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.testing._internal.two_tensor import TwoTensor

from lightning_freeze.audit import fingerprint as module
from lightning_freeze.audit import fingerprint_triton
from lightning_freeze.audit.fingerprint import digest, digests, fingerprint, multilinear
from tests.audit.test_fingerprint import Print, both, digests_of, expected_sums, flipped
from tests.threads import threads

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning"),  # torch says of complex32 that it is experimental
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),  # of quantized tensors, that they go
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),  # a prototype
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),  # in beta
    pytest.mark.filterwarnings("ignore:BComplex32 support is experimental:UserWarning"),  # of torch 2.14
]

QUANTIZED = [torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4]
DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)} - {*QUANTIZED}, key=str)


def of_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)


def memory_of(tensor: Tensor) -> Tensor:
    """Its bytes, to be written to."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def prints_of_flips(of: Print, tensor: Tensor, *memories: Tensor) -> list[str]:
    """The fingerprint of a tensor, and those after one bit of its memory was flipped, for every bit there is."""
    prints = [of(tensor)]
    for memory in memories:
        for place in range(len(memory)):
            for bit in range(8):
                memory[place] ^= 1 << bit
                prints.append(of(tensor))
                memory[place] ^= 1 << bit
    assert of(tensor) == prints[0]
    return prints


# --- dtypes ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_of_every_dtype_shows(of: Print, dtype: torch.dtype) -> None:
    zeros = bytes(2 * dtype.itemsize)
    prints = [of(of_bytes(zeros, dtype)), *(of(of_bytes(flipped(zeros, bit), dtype)) for bit in range(8 * len(zeros)))]
    assert len(set(prints)) == len(prints) > 16
    assert of(of_bytes(zeros, dtype)) == prints[0]


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_show_in_no_dtype(of: Print, dtype: torch.dtype) -> None:
    """Also where torch itself can copy no such elements."""
    raw = torch.arange(12).to(torch.uint8).repeat_interleave(dtype.itemsize).view(12, -1)
    turned = raw.view(3, 4, -1).transpose(0, 1).reshape(4, -1).view(dtype)
    seen = raw.view(3, -1).view(dtype).t()
    assert not seen.is_contiguous()
    assert of(seen) == of(turned)


@both
def test_dtypes_of_the_same_bytes_differ(of: Print) -> None:
    prints = {of(of_bytes(bytes(2 * dtype.itemsize), dtype)) for dtype in DTYPES}
    assert len(prints) == len(DTYPES)


@both
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)], ids=str)
def test_what_is_empty_has_a_digest_of_its_shape_and_dtype(of: Print, shape: tuple[int, ...]) -> None:
    others = [torch.empty(shape, dtype=dtype) for dtype in DTYPES] + [torch.empty(*shape, 0), torch.empty(1)]
    assert len({of(other) for other in others}) == len(others)
    assert of(torch.empty(shape)) == of(torch.ones(7, *shape)[3])


# --- quantized, nested, mkldnn ---------------------------------------------------------------------------------------


def per_tensor(dtype: torch.dtype, scale: float = 0.1, zero_point: int = 3) -> Tensor:
    return torch.quantize_per_tensor(torch.arange(4.0).view(2, 2), scale, zero_point, dtype)


def per_channel(dtype: torch.dtype, scales: tuple[float, ...] = (0.1, 0.2), axis: int = 0, zero: int = 3) -> Tensor:
    points = torch.tensor([zero, 0])
    return torch.quantize_per_channel(torch.zeros(2, 2), torch.tensor(scales), points, axis, dtype)


def packed(scale: float = 0.1, zero: float = 0.5) -> Tensor:
    """Two elements a byte; scale and zero point are floats."""
    scales, zeros = torch.tensor([scale, 0.2]), torch.tensor([zero, 0.0])
    return torch.quantize_per_channel(torch.zeros(2, 2), scales, zeros, 0, torch.quint4x2)


@both
@pytest.mark.parametrize("make", [per_tensor, per_channel])
@pytest.mark.parametrize("dtype", QUANTIZED[:3], ids=str)
def test_every_bit_of_a_quantized_tensor_shows(of: Print, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    tensor = make(dtype)
    prints = prints_of_flips(of, tensor, memory_of(tensor))
    assert len(set(prints)) == len(prints) > 32
    assert of(make(dtype)) == prints[0]
    assert of(torch.nn.Parameter(make(dtype), requires_grad=False)) == prints[0]


@both
def test_every_bit_of_packed_elements_shows(of: Print) -> None:
    prints = prints_of_flips(of, tensor := packed(), memory_of(tensor)[:2])
    assert len(set(prints)) == len(prints) == 17
    assert of(packed()) == prints[0]


@both
def test_scales_and_zero_points_are_among_the_bits(of: Print) -> None:
    nearly = math.nextafter(0.1, 1)
    values = per_tensor(torch.qint8).int_repr()
    alike = [
        values,
        *(torch._make_per_tensor_quantized_tensor(values, *two) for two in [(0.1, 3), (nearly, 3), (0.1, 4)]),
        per_channel(torch.qint8),
        per_channel(torch.qint8, (0.1 + 2e-8, 0.2)),
        per_channel(torch.qint8, (0.2, 0.1)),
        per_channel(torch.qint8, axis=1),
        per_channel(torch.qint8, zero=4),
        packed(),
        packed(scale=0.3),
        packed(zero=0.25),
    ]
    assert len({of(tensor) for tensor in alike}) == len(alike)


@both
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_a_quantized_dtype_without_a_scale_has_a_digest(of: Print, dtype: torch.dtype) -> None:
    tensor = torch.empty(4, 2, dtype=dtype)
    memory = memory_of(tensor)
    memory.zero_()
    before = of(tensor)
    memory[0] = 1
    assert of(tensor) != before


@both
def test_a_nested_tensor_is_its_values_and_their_shapes(of: Print) -> None:
    def nested(*lengths: int, value: float = 1.0) -> Tensor:
        rows = [torch.full((length, 2), value) for length in lengths]
        return torch.nested.nested_tensor(rows, layout=torch.strided)

    assert len({of(nested(2, 1)), of(nested(1, 2)), of(nested(3)), of(nested(2, 1, value=-1.0))}) == 4
    assert of(nested(2, 1)) == of(nested(2, 1))


@both
def test_a_jagged_tensor_is_its_values_and_their_lengths(of: Print) -> None:
    def jagged(*lengths: int, value: float = 1.0, requires_grad: bool = False) -> Tensor:
        rows = [torch.full((length, 2), value) for length in lengths]
        return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=requires_grad)

    assert len({of(jagged(2, 1)), of(jagged(1, 2)), of(jagged(2, 1, value=-1.0))}) == 3
    assert of(jagged(2, 1)) == of(jagged(2, 1)) == of(jagged(2, 1, requires_grad=True))


@both
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no mkldnn")
def test_an_mkldnn_tensor_is_its_values(of: Print) -> None:
    ones = torch.ones(3, 4)
    assert of(ones.to_mkldnn()) == of(ones.clone().to_mkldnn())
    assert len({of(ones), of(ones.to_mkldnn()), of((-ones).to_mkldnn()), of(ones.t().to_mkldnn())}) == 4


# --- subclasses ------------------------------------------------------------------------------------------------------


class Silent(Tensor):
    """A wrapper that does not say what it wraps, and knows of hardly any operation."""

    data_: Tensor
    scale: Tensor
    context: object

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor, context: object = None) -> Any:
        made: Any = Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32, device=data.device)
        made.data_, made.scale, made.context = data, scale, context
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data_.detach(), args[0].scale.detach(), args[0].context)
        raise NotImplementedError(func)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Scaled(Silent):
    """A wrapper as torchao's are."""

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        return ["data_", "scale"], self.context


class Renamed(Scaled):
    @property
    def values_(self) -> Tensor:
        return self.data_

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        return ["values_", "scale"], self.context


class Nameless(Silent):
    """Says that it wraps nothing."""

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        return [], None


def scaled(context: object = None) -> Scaled:
    return Scaled(torch.arange(3, dtype=torch.int8), torch.tensor([0.5]), context)


@both
@pytest.mark.parametrize("parameter", [False, True])
def test_every_bit_within_a_wrapper_shows(of: Print, parameter: bool) -> None:
    tensor = scaled()
    memories = memory_of(tensor.data_), memory_of(tensor.scale)
    prints = prints_of_flips(of, torch.nn.Parameter(tensor) if parameter else tensor, *memories)
    assert len(set(prints)) == len(prints) == 1 + 8 * 7
    assert of(scaled()) == prints[0]


@both
def test_every_bit_within_a_wrapper_in_a_wrapper_shows(of: Print) -> None:
    inner = scaled()
    outer = torch.nn.Parameter(Scaled(inner, torch.tensor([2.0])))
    assert type(outer) is Scaled
    prints = prints_of_flips(of, outer, memory_of(inner.data_), memory_of(inner.scale), memory_of(outer.scale))
    assert len(set(prints)) == len(prints) == 1 + 8 * 11
    assert of(Scaled(scaled(), torch.tensor([2.0]))) == prints[0]


@both
def test_what_a_wrapper_says_of_itself_shows(of: Print) -> None:
    data, scale = torch.ones(2, dtype=torch.int8), torch.tensor([0.5])
    alike = [
        Scaled(data, scale),
        Renamed(data, scale),
        type("Other", (Scaled,), {})(data, scale),
        Scaled(data, scale, 1),
        Scaled(data, scale, (1, torch.Size([2]))),
        Scaled(data, scale, {"block": [1, 2]}),
        Scaled(data, scale, {"block": [1, 3]}),
        Scaled(data, scale, {"size": [1, 3]}),
        Scaled(data, scale, "e4m3"),
        Scaled(data, scale, {"codebook": torch.ones(2)}),
        Scaled(data, scale, {"codebook": torch.zeros(2)}),
    ]
    assert len({of(tensor) for tensor in alike}) == len(alike)


@both
def test_neither_addresses_nor_requires_grad_show_in_a_wrapper(of: Print) -> None:
    assert of(scaled((object(), True))) == of(scaled((object(), False)))
    assert of(scaled({"requires_grad": True})) == of(scaled({"requires_grad": False}))
    assert of(torch.nn.Parameter(scaled())) == of(torch.nn.Parameter(scaled(), requires_grad=False))


@both
def test_torchs_own_wrapper_of_two_tensors(of: Print) -> None:
    one, other = torch.ones(3), torch.zeros(3)
    assert len({of(TwoTensor(one, other)), of(TwoTensor(other, one)), of(TwoTensor(one, one)), of(one)}) == 4
    assert of(TwoTensor(one, other)) == of(TwoTensor(one.clone(), other.clone()))


def test_tensors_of_a_wrapper_on_several_devices_all_show() -> None:
    """A digest on the CPU is an int; on a device it is a tensor."""
    there, elsewhere = torch.tensor([1, 2]), torch.tensor([1, 3])
    made = [[5, there], [6, there], [there, 5], [5, elsewhere], [5, 5, there], [there], [5, there, there]]
    joined = [module._joined(parts, "kind") for parts in made] + [module._joined(made[0], "other")]
    assert len({tuple(found.tolist()) for found in joined if isinstance(found, Tensor)}) == len(made) + 1


class Params4bit(torch.nn.Parameter):
    """As bitsandbytes makes it: plain memory under a name of its own, with overrides that know little."""

    def __new__(cls, data: Tensor, requires_grad: bool = False) -> Params4bit:
        return Tensor._make_subclass(cls, data, requires_grad)

    def detach(self) -> Tensor:
        return torch.zeros(1)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([7])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"no {func} of four bits")


class Dispatched(Tensor):
    """Has memory of its own, and a say in every operation."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


SUBCLASSES: list[Callable[[Tensor], Tensor]] = [
    Params4bit,
    lambda t: Params4bit(t, requires_grad=t.is_floating_point()),
    torch.nn.Buffer,
    lambda t: t.as_subclass(type("Named", (Tensor,), {})),
    lambda t: Tensor._make_subclass(Dispatched, t),
]


@both
@pytest.mark.parametrize("wrap", SUBCLASSES, ids=["4bit", "4bit-grad", "buffer", "named", "dispatched"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.uint8),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(6.0)[2:5],
        torch.empty(0, 5),
        torch.tensor(2.0),
    ],
    ids=["bytes", "transposed", "middle", "empty", "scalar"],
)
def test_a_subclass_with_memory_is_its_memory(of: Print, wrap: Callable[[Tensor], Tensor], tensor: Tensor) -> None:
    assert of(wrap(tensor.clone())) == of(wrap(tensor)) == of(tensor)
    if tensor.numel():
        assert of(wrap(tensor + 1)) == of(tensor + 1) != of(tensor)


SILENT = """\
a tensor of Silent has no memory of its own to fingerprint, and Silent does not say which tensors it wraps. Give it \
the method that torch calls for them, here with two of its attributes:

class Silent(torch.Tensor):
    def __tensor_flatten__(self):
        return ["data", "scale"], None"""


@pytest.mark.parametrize("wrapper", [Silent, Nameless])
@pytest.mark.parametrize(
    "of",
    [fingerprint, digest, lambda t: digests([t]), lambda t: digests_of([{"exp_avg": t}])],
    ids=["fingerprint", "digest", "digests", "digests_of"],
)
def test_a_wrapper_that_does_not_say_what_it_wraps_is_refused(of: Callable[[Tensor], Any], wrapper: Any) -> None:
    tensor = wrapper(torch.ones(3, dtype=torch.int8), torch.ones(1))
    for each in (tensor, torch.nn.Parameter(tensor), Scaled(tensor, torch.ones(1))):
        with pytest.raises(ValueError, match="has no memory of its own") as caught:
            of(each)
        assert str(caught.value) == SILENT.replace("Silent", wrapper.__name__)


@both
def test_a_silent_wrapper_of_nothing_is_nothing(of: Print) -> None:
    assert of(Silent(torch.empty(0, 5), torch.ones(1))) == of(torch.empty(0, 5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeTensorMode().from_tensor(torch.ones(3)),
        lambda: Scaled(torch.ones(3, device="meta"), torch.ones(1)),
        lambda: Params4bit(torch.ones(3, device="meta")),
    ],
    ids=["fake", "wrapped", "4bit"],
)
def test_a_subclass_without_bits_is_refused(make: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match="a tensor on the meta device has no bits to fingerprint. Materialise the"):
        fingerprint(make())


# --- in the shared path ----------------------------------------------------------------------------------------------


def large(size: int = module._SHARED + 8) -> Tensor:
    return torch.arange(size, dtype=torch.int32)


KINDS: dict[str, Callable[[], Tensor]] = {
    **{str(dtype): lambda dtype=dtype: large().view(torch.uint8)[:-64].view(dtype) for dtype in DTYPES},
    **{f"{d} per tensor": lambda d=d: torch.quantize_per_tensor(large().float(), 1, 0, d) for d in QUANTIZED[:3]},
    **{f"{d} per channel": lambda d=d: per_channel(d) for d in QUANTIZED[:3]},
    "packed": packed,
    "nested": lambda: torch.nested.nested_tensor([large().float(), torch.ones(3)], layout=torch.strided),
    "jagged": lambda: torch.nested.nested_tensor([large().float(), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: large().to_sparse(),
    "csr": lambda: large().view(8, -1).to_sparse_csr(),
    "turned": lambda: large().view(8, -1).t(),
    "wrapper": lambda: Scaled(large(module._PIECE), torch.ones(1)),
    "wrapped wrapper": lambda: torch.nn.Parameter(Scaled(Scaled(large(), torch.ones(1)), torch.ones(1))),
    "two": lambda: TwoTensor(large(), large()),
    "4bit": lambda: Params4bit(large(module._PIECE).view(torch.uint8)),
    "buffer": lambda: torch.nn.Buffer(large()),
    "dispatched": lambda: Tensor._make_subclass(Dispatched, large()),
    "empty": lambda: torch.empty(0, 5),
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_makes_the_same_digest(kind: str, number: int) -> None:
    one, other = KINDS[kind](), KINDS[kind]()
    with threads(number):
        found = digest(one)
        assert digests([large(), one, other, torch.ones(2)])[1:3] == [found, found]
        assert digests_of([{"a": [one, other]}]) == [{"a[0]": found, "a[1]": found}]


# --- an empty grid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "programs"), [(0, 1), (1, 1), (1024, 1), (1025, 2), (1 << 22, 2048)])
def test_no_grid_is_empty(monkeypatch: pytest.MonkeyPatch, size: int, programs: int) -> None:
    """What CUDA refuses to launch; a program without words still writes where the sums begin."""
    launched = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(words: Tensor, sums: Tensor, size: int, seed: int, **options: object) -> None:
                launched.append((grid, tuple(sums.shape), size))
                sums.fill_(1)

            return launch

    monkeypatch.setattr(fingerprint_triton, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b)))
    monkeypatch.setattr(fingerprint_triton, "_kernel", Kernel())
    found = fingerprint_triton.multilinear(torch.zeros(size, dtype=torch.int32), 1)
    assert launched == [((programs,), (programs, 2), size)]
    assert found.tolist() == [programs, programs]


@pytest.mark.parametrize(
    "raw",
    [torch.empty(0, dtype=torch.uint8), torch.ones(8, dtype=torch.uint8)[3:3], torch.empty(0, 5).view(torch.uint8)],
    ids=["new", "sliced", "shaped"],
)
def test_the_sums_over_nothing_are_those_of_the_salt(raw: Tensor) -> None:
    assert [n & (1 << 64) - 1 for n in multilinear(raw.reshape(-1), 7).tolist()] == expected_sums(b"", 7)


# --- sharded ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture(params=[0, 1])
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """One rank of two, the other of which is not there: nothing may be communicated."""
    dist.init_process_group("fake", rank=request.param, world_size=2, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


def same_by_any_path(sharded: Tensor, expected: Tensor) -> bool:
    found = [digest(sharded), *digests([sharded]), digests_of([sharded])[0][""]]
    return found == 3 * [digest(expected)]


@both
@pytest.mark.parametrize("local", [torch.arange(6.0), torch.empty(0, 5), torch.tensor(1.0)], ids=["6", "empty", "one"])
@pytest.mark.usefixtures("alone")
def test_a_dtensor_is_its_shard(of: Print, local: Tensor) -> None:
    sharded = DTensor.from_local(local, init_device_mesh("cpu", (1,)), [Replicate()])
    assert of(sharded) == of(torch.nn.Parameter(sharded)) == of(local)
    assert same_by_any_path(sharded, local)


@both
@pytest.mark.usefixtures("alone")
def test_every_bit_of_a_wrapper_in_a_dtensor_shows(of: Print) -> None:
    local = scaled()
    sharded = DTensor.from_local(torch.zeros(3), init_device_mesh("cpu", (1,)), [Replicate()])
    sharded._local_tensor = local  # as FSDP2 does; `from_local` asks for a view, which not every wrapper can give
    prints = prints_of_flips(of, sharded, memory_of(local.data_), memory_of(local.scale))
    assert len(set(prints)) == len(prints) == 1 + 8 * 7
    assert of(local) == prints[0]
    assert same_by_any_path(sharded, local)


@both
@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.usefixtures("alone")
def test_a_tensor_that_a_collective_still_writes_is_what_it_will_be(of: Print, waited: bool) -> None:
    mesh = init_device_mesh("cpu", (1,))
    awaited = all_reduce(torch.arange(3.0), "sum", mesh)
    assert isinstance(awaited, AsyncCollectiveTensor)
    if waited:
        awaited.trigger_wait()
    assert of(awaited) == of(torch.arange(3.0))
    assert same_by_any_path(DTensor.from_local(awaited, mesh, [Replicate()]), torch.arange(3.0))


@both
def test_an_empty_shard_of_two_is_empty(of: Print, rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    one_row = distribute_tensor(torch.ones(1, 5), mesh, [Shard(0)], src_data_rank=None)
    expected = torch.ones(1, 5) if rank == 0 else torch.ones(0, 5)
    assert of(one_row) == of(torch.nn.Parameter(one_row)) == of(expected)
    assert same_by_any_path(one_row, expected)
    thrice = distribute_tensor(torch.arange(3.0), mesh, [Shard(0)], src_data_rank=None)
    assert of(thrice) == of(torch.tensor([0.0, 1.0] if rank == 0 else [2.0]))


@pytest.mark.usefixtures("alone")
def test_a_dtensor_on_the_meta_device_is_refused() -> None:
    sharded = distribute_tensor(torch.ones(2, device="meta"), init_device_mesh("cpu", (1,)), [Shard(0)])
    with pytest.raises(ValueError, match="a tensor on the meta device has no bits"):
        digest(sharded)
