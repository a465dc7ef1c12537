"""`FreezeController` outside of a Trainer: the examples' loops, plain and with Fabric, in one process and in two."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze import Every, FreezeController, FreezeViolation, Phase, Phases, UnsupportedError, fingerprint
from lightning_freeze.holds.run_context import RunContext, unwrapped
from lightning_freeze.plan.selectors import clean_name
from tests.observer import same
from tests.processes.pairs import Case, Outcomes

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"


def program(name: str) -> ModuleType:
    """An example, as a module."""
    if f"{name}_example" not in sys.modules:
        found = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        sys.modules[found.name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[found.name])
    return sys.modules[f"{name}_example"]


def prints(model: nn.Module) -> dict[str, str]:
    """The fingerprint of each weight, also of a sharded one."""
    named = ((clean_name(name), p.detach()) for name, p in unwrapped(model).module.named_parameters())
    return {name: fingerprint(p.full_tensor() if isinstance(p, DTensor) else p) for name, p in named}


def straight_and_resumed(root: Path, name: str, *options: str, ready: Callable[[], None] = lambda: None) -> Any:
    """What an example's weights are after two epochs, and after one and a resumed second."""
    main: Callable[[list[str]], nn.Module] = program(name).main

    def run(*more: str) -> nn.Module:
        ready()
        return main([*options, *more])

    straight = run("--epochs", "2", "--out", str(root / "straight"))
    half = run("--epochs", "1", "--out", str(root / "half"))
    resumed = run("--epochs", "2", "--resume", str(root / "half"), "--out", str(root / "resumed"))
    return {"straight": prints(straight), "half": prints(half), "resumed": prints(resumed)}


LOOPS = {
    "plain": ("plain_loop",),
    "plain, accumulated": ("plain_loop", "--accumulate", "4"),
    "fabric": ("fabric_loop", "--accelerator", "cpu"),
    "fabric, accumulated": ("fabric_loop", "--accelerator", "cpu", "--accumulate", "4"),
    "fabric, bf16": ("fabric_loop", "--accelerator", "cpu", "--precision", "bf16-mixed"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples came to in this process, and the folders of what they saved."""
    made = {}
    for name, options in LOOPS.items():
        root = tmp_path_factory.mktemp("alone")
        made[name] = {"root": root, **straight_and_resumed(root, *options)}
    return made


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_example_equals_a_straight_one(name: str, alone: dict[str, Any]) -> None:
    assert alone[name]["resumed"] == alone[name]["straight"]
    assert alone[name]["half"] != alone[name]["straight"]
    saved = [torch.load(alone[name]["root"] / file, weights_only=True) for file in ("straight", "resumed")]
    assert same(*saved), "model, optimizer and controller"


@pytest.mark.parametrize("name", LOOPS)
def test_weight1_is_updated_with_the_first_of_every_five_updates_of_weight2(name: str, alone: dict[str, Any]) -> None:
    windows = 2 * (6 if "accumulated" in name else 23)
    saved = torch.load(alone[name]["root"] / "straight", weights_only=True)
    assert saved["controller"]["position"]["updates"] == {"weight1": -(-windows // 5), "weight2": windows}
    steps = {key: int(state["step"]) for key, state in saved["optimizer"]["state"].items()}
    assert list(steps.values()) == [-(-windows // 5), windows], "the optimizer counts the same"


@pytest.mark.parametrize("accumulated", ["", ", accumulated"])
def test_fabric_and_plain_pytorch_come_to_the_same_bits(accumulated: str, alone: dict[str, Any]) -> None:
    assert alone[f"fabric{accumulated}"]["straight"] == alone[f"plain{accumulated}"]["straight"]


def test_an_example_prints_updates_and_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program("plain_loop").main(["--epochs", "1", "--out", str(tmp_path / "saved")])
    first, *table, last = capsys.readouterr().out.splitlines()
    assert first == "lightning-freeze begins. Now training: weight1, weight2."
    assert table[-1] == "- the backward work of frozen groups is skipped: there is only one process."
    assert last.startswith("epoch 0: accuracy 0.")
    assert last.endswith("updates {'weight1': 5, 'weight2': 23}")


def test_an_example_saves_and_stops_on_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_in_step(3, monkeypatch)
    with pytest.raises(FreezeViolation, match=r"'weight1.weight' \(group 'weight1', frozen\) moved") as caught:
        program("plain_loop").main(["--epochs", "2", "--out", str(tmp_path / "saved")])
    assert [finding.kind for finding in caught.value.findings] == ["value"]
    assert caught.value.checkpoint == str(tmp_path / "saved")
    assert torch.load(tmp_path / "saved", weights_only=True)["controller"]["position"]["epoch"] == 1


def write_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something writes to weight1 right before the step of that number, in which it is frozen."""
    steps = iter(range(1, 1 << 62))
    usual = FreezeController.before_optimizer_step

    def written(self: FreezeController, optimizer: object, clipped: bool = True) -> None:
        if next(steps) == number:
            dict(self._attachment._context.module.named_parameters())["weight1.weight"].data.mul_(1.01)
        usual(self, optimizer, clipped)

    monkeypatch.setattr(FreezeController, "before_optimizer_step", written)


# --- two processes --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def plain_in_two(root: Path, ports: list[int]) -> Any:
    """The plain example, accumulating; each of its runs makes a process group of its own."""
    left = iter(ports)

    def ready() -> None:
        os.environ["MASTER_PORT"] = str(next(left))

    return straight_and_resumed(root, "plain_loop", "--accumulate", "2", ready=ready)


def violated_in_two(root: Path, port: int) -> Any:
    """Rank 1 alone writes to the frozen weight."""
    os.environ["MASTER_PORT"] = str(port)
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            write_in_step(3, patch)
        with pytest.raises(FreezeViolation) as caught:
            program("plain_loop").main(["--epochs", "2", "--out", str(root / "saved")])
    return {"text": str(caught.value), "saved": Path(caught.value.checkpoint or "nowhere").exists()}


def fabric_in_two(root: Path, port: int, strategy: str) -> Any:
    os.environ["MASTER_PORT"] = str(port)
    try:
        options = ("--accelerator", "cpu", "--devices", "2", "--strategy", strategy, "--accumulate", "2")
        return straight_and_resumed(root, "fabric_loop", *options)
    finally:
        dist.destroy_process_group()


def odd_in_two(root: Path, port: int) -> Any:
    """What a user may do in another way than the examples."""
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo")
    try:
        # The model is called past the wrapper that the controller knows.
        model = small()
        controller, optimizer = FreezeController(DistributedDataParallel(model), Every({"a": 3}, of="b")), adamw(model)
        controller.attach(optimizer)
        past = [finding.kind for finding in loop(model, controller, optimizer, seed=dist.get_rank())]

        # Wrapped after `attach`, which sees processes and no wrapper.
        model = small()
        controller, optimizer = FreezeController(model, Every({"a": 3}, of="b")), adamw(model)
        controller.attach(optimizer)
        why = controller.backward
        found = loop(DistributedDataParallel(model), controller, optimizer, seed=dist.get_rank())
        assert found == []
        return {"past": past, "skips": why.skips, "why": why.why, "prints": prints(model)}
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    here = "tests.test_loops"
    return Outcomes(
        tmp_path_factory.mktemp("pairs"),
        [
            Case("plain", f"{here}:plain_in_two", {"ports": [free_port() for _ in range(3)]}),
            Case("violated", f"{here}:violated_in_two", {"port": free_port()}),
            Case("odd", f"{here}:odd_in_two", {"port": free_port()}),
            *(Case(s, f"{here}:fabric_in_two", {"port": free_port(), "strategy": s}) for s in ("ddp", "fsdp2")),
        ],
    )


@pytest.fixture
def found(outcomes: Outcomes) -> Callable[[str], list[Any]]:
    """What both ranks returned of a case that went through."""
    return outcomes.results


@pytest.mark.parametrize("name", ["plain", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ddp", "fsdp2"))])
def test_two_processes_hold_the_same_weights_and_resume_exactly(name: str, found: Any) -> None:
    first, second = found(name)
    assert first == second
    assert first["resumed"] == first["straight"]
    assert first["half"] != first["straight"]


@pytest.mark.slow
def test_fabric_under_ddp_and_plain_ddp_come_to_the_same_bits(found: Any) -> None:
    assert found("ddp")[0] == found("plain")[0]


@pytest.mark.slow
def test_a_write_on_one_rank_stops_both_which_know_where_it_was(found: Any) -> None:
    for made in found("violated"):
        assert made["saved"]
        assert "1 violation" in made["text"]
        assert "on rank 1: 'weight1.weight'" in made["text"]


@pytest.mark.slow
def test_a_backward_past_the_wrapper_is_found_as_ranks_that_go_apart(found: Any) -> None:
    assert [made["past"] for made in found("odd")] == [["copies"], ["copies"]]


@pytest.mark.slow
def test_a_wrapper_that_the_controller_never_saw_is_not_skipped_under(found: Any) -> None:
    first, second = found("odd")
    assert not first["skips"]
    assert "something unknown distributes the run over 2 processes" in first["why"]
    assert first["why"].endswith("pass what is called in the model's place, such as DistributedDataParallel(model)")
    assert first["prints"] == second["prints"]


# --- the controller, by its calls -----------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[None]:
    """A world of one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def small() -> Any:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(3, 3, bias=False), "tanh": nn.Tanh(), "b": nn.Linear(3, 3, bias=False)}
    return nn.Sequential(OrderedDict(layers))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def derive(called: nn.Module, seed: int) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
    called(x).square().sum().backward()


def loop(called: nn.Module, controller: FreezeController, optimizer: torch.optim.Optimizer, seed: int = 0) -> list[Any]:
    """Seven steps, after `attach`; the findings."""
    controller.begin()
    for step in range(7):
        controller.begin_step()
        optimizer.zero_grad()
        derive(called, 100 * seed + step)
        controller.after_backward()
        optimizer.step()
    found = controller.end_epoch()
    controller.detach()
    return found


def test_a_loop_that_never_calls_begin_step_is_told() -> None:
    model = small()
    optimizer = adamw(model)
    with FreezeController(model, Phases([Phase(["a"], epochs=1), Phase(["b"])])) as controller:
        controller.attach(optimizer)
        controller.begin()
        derive(model, 0)
        with pytest.raises(
            RuntimeError,
            match=r"optimizer 0 \(\w+\), after 0 updates: it steps before a batch has begun, .*epochs.*begin\. Call `begin_step\(\)` before each forward\.$",
        ):
            optimizer.step()


def test_a_step_before_training_without_gradients_is_nobodys_mistake() -> None:
    model = small()
    optimizer = adamw(model)
    with FreezeController(model, Every({"a": 3}, of="b")) as controller:
        controller.attach(optimizer)
        optimizer.step()
        assert controller.updates == {"a": 0, "b": 0}


def test_a_loop_that_forgets_begin_step_in_a_batch_is_told_before_an_update_is_lost() -> None:
    """It would train what has no gradient, since the backward was skipped for those that trained before."""
    model = small()
    optimizer = adamw(model)
    with FreezeController(model, Phases([Phase(["a"], updates=2), Phase(["b"], updates=2)], repeat=True)) as controller:
        controller.attach(optimizer)
        controller.begin()
        controller.begin_step()
        for step in range(2):
            optimizer.zero_grad()
            derive(model, step)
            optimizer.step()
        optimizer.zero_grad()
        derive(model, 2)
        with pytest.raises(
            RuntimeError,
            match=r"optimizer 0 \(\w+\), after \d+ updates: it steps again within a batch.*`skip_backward: false`",
        ):
            optimizer.step()
    assert controller.updates == {"a": 2, "b": 0}


@pytest.mark.usefixtures("process")
def test_under_plain_ddp_a_loop_that_forgets_after_backward_is_told() -> None:
    model = small()
    called, optimizer = DistributedDataParallel(model), adamw(model)
    with FreezeController(called, Every({"a": 3}, of="b")) as controller:
        controller.attach(optimizer)
        controller.begin()
        controller.begin_step()
        derive(called, 0)
        optimizer.step()  # nothing is frozen yet
        controller.begin_step()
        optimizer.zero_grad()
        derive(called, 1)
        with pytest.raises(RuntimeError, match=r"`after_backward\(\)` was not called .*find_unused_parameters=True"):
            optimizer.step()


@pytest.mark.usefixtures("process")
def test_after_backward_may_stand_within_no_sync_or_after_it() -> None:
    def trained(within: bool) -> dict[str, str]:
        model = small()
        called, optimizer = DistributedDataParallel(model), adamw(model)
        with FreezeController(called, Every({"a": 3}, of="b")) as controller:
            controller.attach(optimizer)
            controller.begin()
            for number in range(14):
                controller.begin_step()
                with nullcontext() if number % 2 else called.no_sync():
                    derive(called, number)
                    if within:
                        controller.after_backward()
                if not within:
                    controller.after_backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
            assert controller.updates == {"a": 3, "b": 7}
            assert controller.end_epoch() == []
        return prints(model)

    assert trained(True) == trained(False)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("after", ["an epoch's end", "an exception"])
def test_with_undoes_everything(after: str) -> None:
    model = small()
    called, optimizer = DistributedDataParallel(model), adamw(model)
    schedule = Phases([Phase(["b"])])
    controller = FreezeController(called, schedule, {"a": "a", "b": "b"}, frozen_modules="eval")
    with pytest.raises(KeyError) if after == "an exception" else nullcontext(), controller:
        controller.attach(optimizer)
        controller.begin()
        controller.begin_step()
        assert not model.a.weight.requires_grad
        assert not model.a.training
        if after == "an exception":
            raise KeyError
        controller.end_epoch()
    assert model.a.weight.requires_grad
    assert model.a.training
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("mode", ["keep", "reset"])
def test_optimizer_state_may_be_loaded_after_attach(mode: Any) -> None:
    def trained(order: str) -> dict[str, str]:
        model = small()
        optimizer = adamw(model)
        controller = FreezeController(model, Every({"a": 3}, of="b"), optimizer_state=mode)
        controller.attach(optimizer)
        loop(model, controller, optimizer)
        saved = (model.state_dict(), optimizer.state_dict(), controller.state_dict())
        again = small()
        again.load_state_dict(saved[0])
        optimizer = adamw(again)
        controller = FreezeController(again, Every({"a": 3}, of="b"), optimizer_state=mode)
        if order == "before":
            optimizer.load_state_dict(saved[1])
        controller.attach(optimizer)
        if order == "after":
            optimizer.load_state_dict(saved[1])
        controller.begin(state=saved[2])
        for step in range(7, 12):
            controller.begin_step()
            optimizer.zero_grad()
            derive(again, step)
            optimizer.step()
        assert controller.end_epoch() == []
        assert controller.updates == {"a": 4, "b": 12}
        controller.detach()
        return prints(again)

    assert trained("before") == trained("after")


def test_skipping_by_force_under_an_unknown_wrapper_is_refused() -> None:
    model = small()
    controller = FreezeController(model, Every({"a": 3}, of="b"), skip_backward=True)
    with pytest.raises(
        UnsupportedError, match=r"something unknown distributes the run over 2 processes.*DistributedDataParallel"
    ):
        controller.attach(adamw(model), run=RunContext(model, model, world=2))


# --- a GradScaler ---------------------------------------------------------------------------------------------------


class Overflow(torch.autograd.Function):
    """Worth nothing forward, infinite backward."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.full(ctx.shape, float("inf"))


OVERFLOWS = {1: "a", 2: "b", 3: "a"}  # batch to the layer; at 1 and 3 it is frozen


@pytest.mark.parametrize("skip", ["auto", False])
@pytest.mark.parametrize("way", ["plain", "fabric"])
def test_under_a_scaler_an_infinity_in_a_frozen_gradient_skips_nobodys_step(way: str, skip: Any) -> None:
    """By `after_backward`; and a step that the scaler skips is no update."""
    scaler = GradScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    called: Any = small()
    model, optimizer = called, adamw(called)
    if way == "fabric":
        called, optimizer = fabric.setup(called, optimizer)
    moved = []
    with FreezeController(called, Every({"a": 3}, of="b"), skip_backward=skip) as controller:
        controller.attach(optimizer, scaler=True)
        controller.begin()
        for number in range(7):
            controller.begin_step()
            optimizer.zero_grad()
            before = model.b.weight.detach().clone()
            loss = called(torch.full((2, 3), 0.1 * number)).float().square().sum()
            if number in OVERFLOWS:
                loss = loss + Overflow.apply(getattr(model, OVERFLOWS[number]).weight)
            if way == "fabric":
                fabric.backward(loss)
                controller.after_backward()
                controller.before_optimizer_step(optimizer)
                fabric.clip_gradients(called, optimizer, max_norm=1.0, error_if_nonfinite=False)
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                controller.after_backward()
                scaler.unscale_(optimizer)
                controller.before_optimizer_step(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            moved.append(not torch.equal(before, model.b.weight))
        assert controller.end_epoch() == []
    assert moved == [number != 2 for number in range(7)]
    assert controller.updates == {"a": 2, "b": 6}
