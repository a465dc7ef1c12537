"""What wraps a model and its optimizers is unwrapped; what cannot be held is refused with a fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import Every, FreezeController, SelectionError, UnsupportedError
from lightning_freeze.holds.run_context import RunContext, is_fsdp1, plain_optimizer, unwrapped
from lightning_freeze.holds.skip_decision import choose


def model_of(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(layers)))


def compiled(module: nn.Module) -> nn.Module:
    made: Any = torch.compile(module, backend="eager")
    return made


def flattened(**options: Any) -> Any:
    return FullyShardedDataParallel(model_of(), device_id=torch.device("cpu"), **options)


def fabric_of(module: nn.Module, **options: Any) -> Any:
    return Fabric(accelerator="cpu", devices=1, **options).setup(module)


# --- unwrapped ------------------------------------------------------------------------------------------------------


def ddp(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


Path = list[Callable[[nn.Module], nn.Module]]


@pytest.mark.parametrize(
    ("path", "wrapper", "is_compiled"),
    [
        ([], None, False),
        ([ddp], 0, False),
        ([ddp, compiled], 0, True),
        ([fabric_of], None, False),
        ([fabric_of, compiled], None, True),
        ([ddp, fabric_of], 0, False),
    ],
    ids=["bare", "ddp", "compiled ddp", "fabric", "compiled fabric", "fabric of ddp"],
)
@pytest.mark.usefixtures("process")
def test_the_model_within_and_what_shares_it_are_found(path: Path, wrapper: int | None, is_compiled: bool) -> None:
    model = model_of()
    made = [model]
    for wrap in path:
        made.append(wrap(made[-1]))
    found = unwrapped(made[-1])
    assert found.module is model
    assert found.wrapper is (model if wrapper is None else made[wrapper + 1])
    assert found.compiled == is_compiled


@pytest.mark.usefixtures("process")
def test_a_model_compiled_within_stays_compiled_and_its_names_are_clean() -> None:
    model = compiled(model_of())
    wrapped = DistributedDataParallel(model)
    assert unwrapped(wrapped) == (model, wrapped, False)
    assert unwrapped(model) == (model, model, False)
    assert FreezeController(wrapped, Every({"0": 2}, of="1")).groups.names() == {"0": ["0.weight"], "1": ["1.weight"]}


def test_fabric_compiles_again_what_it_has_unwrapped() -> None:
    """`fabric.setup` takes the compiler off, wraps, and puts it on again: under DDP around that."""
    model = model_of()
    made = fabric_of(compiled(model))
    assert type(unwrapped(made).module).__name__ == "OptimizedModule"
    assert FreezeController(made, Every({"0": 2}, of="1")).groups.names() == {"0": ["0.weight"], "1": ["1.weight"]}


@pytest.mark.usefixtures("process")
def test_code_compiled_around_ddp_is_noticed_as_code_compiled_within_it() -> None:
    for wrapped in (compiled(ddp(model_of())), ddp(compiled(model_of()))):
        found = unwrapped(wrapped)
        run = RunContext(found.module, found.wrapper, compiled=found.compiled)
        assert "the model is compiled under DDP" in choose("auto", run, [], {}).why
        controller = FreezeController(wrapped, Every({"0": 2}, of="1"))
        controller.attach(torch.optim.SGD(controller._attachment._context.module.parameters(), lr=0.1))
        assert not controller.backward.skips
        assert "the model is compiled under DDP" in controller.backward.why
        controller.detach()


def test_code_compiled_around_a_fabric_module_counts_as_the_whole_model() -> None:
    model = model_of(9)
    found = unwrapped(compiled(fabric_of(model)))
    groups = {id(p): name for name, p in model.named_parameters()}
    run = RunContext(found.module, found.wrapper, compiled=found.compiled)
    why = choose("auto", run, [frozenset({name}) for name in groups.values()], groups).why
    assert "the model is compiled, each set of trainable groups needs a graph of its own" in why


# --- plain_optimizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [lambda o: o, LightningOptimizer, lambda o: Fabric(accelerator="cpu", devices=1).setup(model_of(), o)[1]],
    ids=["plain", "Lightning's", "Fabric's"],
)
def test_the_optimizer_within_is_found(wrap: Any) -> None:
    optimizer = torch.optim.AdamW(model_of().parameters())
    assert plain_optimizer(wrap(optimizer)) is optimizer


def test_an_optimizer_that_happens_to_hold_another_is_left_alone() -> None:
    class Lookahead(torch.optim.SGD):
        optimizer = "something else"

    mine = Lookahead(model_of().parameters(), lr=0.1)
    assert plain_optimizer(mine) is mine


# --- refusals -------------------------------------------------------------------------------------------------------


class DeepSpeedEngine(nn.Module):
    """DeepSpeed's, by name."""


def test_a_deepspeed_engine_is_refused_at_once() -> None:
    class Engine(DeepSpeedEngine):
        """Its subclasses are engines, too."""

    with pytest.raises(UnsupportedError, match="the model is a DeepSpeed engine, .*ZeRO 1, 2 or 3. Use DDP, or FSDP2"):
        FreezeController(Engine(), Every({"0": 2}, of="1"))


@pytest.mark.usefixtures("process")
@pytest.mark.filterwarnings("ignore:FSDP will not .*")
@pytest.mark.filterwarnings("ignore:.*FSDP is switching to use `NO_SHARD`.*")
def test_fsdp1_shows_its_own_parameters_only_where_it_is_told_to() -> None:
    kept = flattened(use_orig_params=True)
    assert is_fsdp1(kept)
    assert unwrapped(kept).wrapper is kept
    controller = FreezeController(kept, Every({"0": 2}, of="1"))
    assert controller.groups.names() == {"0": ["0.weight"], "1": ["1.weight"]}
    controller.attach(torch.optim.SGD(kept.parameters(), lr=0.1))
    assert "FSDP1 keeps several parameters in one flat one" in controller.backward.why
    controller.detach()

    with pytest.raises(SelectionError, match=r"only flattened parameters \('_flat_param'\).*use_orig_params=True"):
        FreezeController(flattened(use_orig_params=False), Every({"0": 2}, of="1"))


@pytest.mark.usefixtures("process")
@pytest.mark.filterwarnings("ignore:.*FSDP is switching to use `NO_SHARD`.*")
def test_a_model_that_fsdp1_flattens_after_its_groups_were_made_is_refused() -> None:
    model = model_of()
    controller = FreezeController(model, Every({"0": 2}, of="1"))
    fsdp = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=False)
    with pytest.raises(SelectionError, match=r"only flattened parameters \('_flat_param'\).*use_orig_params=True"):
        controller.attach(torch.optim.SGD(fsdp.parameters(), lr=0.1))
