"""With many processes it is as with one: torch wraps, casts and gathers inputs, and the audit follows them through it.

A process group of one wraps what many would. Each case has the same model with an input that one module ignores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from .test_bitwise import Run, differences, everything

pytestmark = [
    pytest.mark.usefixtures("group"),
    pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning"),
    # torch's advice on what a linear layer gives for three dimensions, with and without the audit
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning"),
]


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (1,))


# ------------------------------------------------------------------------------------------------- the model


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Ignores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x)


class Forgets(Ignores):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        extra = mask  # noqa: F841
        return self.linear(x)


class Drops(Ignores):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _ = mask * 2
        return self.linear(x)


class Net(nn.Module):
    def __init__(self, kind: type[Ignores]) -> None:
        super().__init__()
        self.norm, self.feed, self.last = nn.LayerNorm(8), Feed(), kind()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.feed(self.norm(x)), mask)


Make = Callable[[Net], nn.Module]
CASES: dict[str, Make] = {}


def case(make: Make) -> Make:
    CASES[make.__name__] = make
    return make


# ------------------------------------------------------------------------------------------------- tensor parallel

R, S = Replicate(), Shard(0)


@case
def tensor_parallel(net: Net) -> nn.Module:
    return parallelize_module(net, mesh(), {"feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()})


@case
def tensor_parallel_that_gives_dtensors(net: Net) -> nn.Module:
    up, down = ColwiseParallel(use_local_output=False), RowwiseParallel(use_local_output=False)
    return parallelize_module(net, mesh(), {"feed.up": up, "feed.down": down, "last.linear": ColwiseParallel()})


@case
def sequence_parallel(net: Net) -> nn.Module:
    gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=R)
    plan = {"norm": SequenceParallel(), "feed": gathered, "feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()}
    return parallelize_module(net, mesh(), plan)


@case
def prepared_inputs(net: Net) -> nn.Module:
    both = PrepareModuleInput(input_layouts=(R, R), desired_input_layouts=(S, S), use_local_output=True)
    return parallelize_module(net, mesh(), {"last": both, "feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()})


@case
def prepared_inputs_that_stay_dtensors(net: Net) -> nn.Module:
    both = PrepareModuleInput(input_layouts=(R, R), desired_input_layouts=(R, R))
    plan = {"last": both, "last.linear": ColwiseParallel(use_local_output=False)}
    return parallelize_module(net, mesh(), plan)


@case
def prepared_outputs(net: Net) -> nn.Module:
    out = PrepareModuleOutput(output_layouts=R, desired_output_layouts=S)
    return parallelize_module(net, mesh(), {"feed": out, "feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()})


@case
def distributed_module(net: Net) -> nn.Module:
    def wrap(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        return tuple(DTensor.from_local(tensor, mesh, [R]) for tensor in inputs)

    return distribute_module(net, mesh(), None, wrap, lambda module, output, mesh: output.to_local())  # type: ignore


@case
def tensor_parallel_checkpointed(net: Net) -> nn.Module:
    tensor_parallel(net)
    net.feed = checkpoint_wrapper(net.feed)  # type: ignore[assignment]
    return net


# ------------------------------------------------------------------------------------------------- sharded


def _sharded(net: Net, at: DeviceMesh, **options: Any) -> nn.Module:
    for part in (net.feed, net.last):
        fully_shard(part, mesh=at, **options)
    return fully_shard(net, mesh=at, **options)


@case
def sharded(net: Net) -> nn.Module:
    return _sharded(net, mesh())


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)


@case
def sharded_in_mixed_precision(net: Net) -> nn.Module:
    return _sharded(net, mesh(), mp_policy=BF16)


@case
def sharded_and_checkpointed(net: Net) -> nn.Module:
    for name in ("feed", "last"):
        setattr(net, name, checkpoint_wrapper(getattr(net, name), checkpoint_impl=CheckpointImpl.NO_REENTRANT))
    return _sharded(net, mesh(), mp_policy=BF16)


@case
def sharded_and_tensor_parallel(net: Net) -> nn.Module:
    both = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    parallelize_module(net, both["tensor"], {"feed.up": ColwiseParallel(), "feed.down": RowwiseParallel()})
    return _sharded(net, both["data"], mp_policy=BF16)


@case
def fsdp_of_old(net: Net) -> nn.Module:
    return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))


@case
def fsdp_of_old_in_mixed_precision(net: Net) -> nn.Module:
    cast = MixedPrecision(param_dtype=torch.bfloat16, cast_forward_inputs=True)
    return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"), mixed_precision=cast)


@case
def data_parallel(net: Net) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


# ------------------------------------------------------------------------------------------------- the table


def scenario(make: Make, kind: type[Ignores], handed: Callable[[Tensor], Tensor]) -> Callable[[Run], Any]:
    def run_it(run: Run) -> Any:
        model = make(Net(kind))
        shape = (2, 4, 8)
        x, mask = (handed(torch.randn(shape)).requires_grad_() for _ in range(2))
        with run(model):
            output = model(x, mask)
            whole = output.full_tensor() if isinstance(output, DTensor) else output
            whole.float().square().sum().backward()
        return [everything(model, output), x.grad, mask.grad]

    return run_it


def ask(make: Make, kind: type[Ignores], handed: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    differ, run = differences(scenario(make, kind, handed))
    assert differ == []
    (audit,) = run.audits
    assert audit.failure is None
    return audit


@pytest.mark.parametrize("kind", [Ignores, Forgets, Drops])
@pytest.mark.parametrize("name", CASES)
def test_what_is_used_is_not_found_and_what_is_ignored_is(name: str, kind: type[Ignores]) -> None:
    audit = ask(CASES[name], kind)
    assert [(finding.module, finding.argument) for finding in audit.findings] == [("last", "mask")]
    assert audit.findings[0].module_class == kind.__name__
    assert {verdict for key, verdict in audit.verdicts.items() if key[1] in ("x", "input")} == {"used"}


def test_dtensors_that_are_handed_over() -> None:
    def local(net: Net) -> nn.Module:
        plan = {"norm": SequenceParallel(), "feed.up": ColwiseParallel(use_local_output=False)}
        plan["feed.down"] = RowwiseParallel(use_local_output=False)
        return parallelize_module(net, mesh(), {**plan, "last.linear": ColwiseParallel(use_local_output=False)})

    audit = ask(local, Drops, lambda tensor: distribute_tensor(tensor, mesh(), [R]))
    assert [(finding.module, finding.argument) for finding in audit.findings] == [("last", "mask")]


# ------------------------------------------------------------------------------------------------- collectives


class Calls(nn.Module):
    """Does with x what it is told, and never loads the mask."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.function(x)


def all_gather(x: Tensor) -> Any:
    gathered = [torch.zeros_like(x)]
    dist.all_gather(gathered, x)
    return gathered


def reduce_scatter(x: Tensor) -> Any:
    scattered = torch.zeros_like(x)
    dist.reduce_scatter(scattered, [x])
    return scattered


def written_into(x: Tensor) -> Any:
    wrapped = DTensor.from_local(torch.zeros_like(x), mesh(), [R])
    inner = wrapped.to_local()
    wrapped.add_(DTensor.from_local(x, mesh(), [R]))
    return inner


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "distribute_tensor": lambda x: distribute_tensor(x, mesh(), [S]),
    "to_local": lambda x: (DTensor.from_local(x, mesh(), [R]) * 2).to_local(),
    "full_tensor": lambda x: DTensor.from_local(x, mesh(), [S]).sum().full_tensor(),
    "redistribute": lambda x: (DTensor.from_local(x, mesh(), [R]) * 2).redistribute(mesh(), [S]),
    "written into": written_into,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_torch_distributed(name: str) -> None:
    def run_it(run: Run) -> Any:
        model = Calls(FUNCTIONS[name])
        with run(model):
            return model(torch.randn(2, 8), torch.randn(2, 8))

    differ, run = differences(run_it)
    assert differ == []
    assert run.audits[0].failure is None
    assert run.audits[0].verdicts["", "x"] == "used"
    assert [finding.argument for finding in run.audits[0].findings] == ["mask"]
