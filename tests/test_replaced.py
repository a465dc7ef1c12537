"""Parameters, modules and optimizers that are replaced or added in the middle of a run: held, trained, counted, or reported."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze import Every, FreezeAudit, FreezeController, FreezeScheduler, Phase, Phases, SelectionError
from lightning_freeze.holds import optimizer_state
from lightning_freeze.holds.optimizer_state import OffloadState
from lightning_freeze.holds.param_groups import LearningRateFactors
from lightning_freeze.plan.membership import OptimizerIndex
from lightning_freeze.plan.named_parameters import NamedParameters

RATE = 0.05
RESTS = ("train", "freeze", "error")


class Net(nn.Module):
    """Four layers in a row, so that each gets a gradient; what is added later is used, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.more = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c, self.d, *self.more.values()):
            x = layer(x) + 0.1
        return x


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def void(_: object) -> None:
    """Nothing."""


def swap(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter into an optimizer in the place of another."""
    for group in optimizer.param_groups:
        group["params"][:] = [new if p is old else p for p in group["params"]]
    optimizer.state.pop(old, None)


class Run:
    """A run in a plain loop, and an observer of its bits that knows nothing of the package."""

    def __init__(self, schedule: Any, groups: dict[str, Any], rest: Any = "train", **options: Any) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer: Optimizer = self.new_optimizer()
        self.lines: list[str] = []
        self.controller = FreezeController(self.model, schedule, groups, rest, say=self.lines.append, **options)
        self.controller.attach(self.optimizer)
        self.controller.begin()
        self.moved: list[set[str]] = []

    def new_optimizer(self) -> Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=RATE)

    def batch(self, late: Callable[[], None] = lambda: None) -> set[str]:
        """One batch; the layers that moved in its step. ``late`` is called once the batch has begun."""
        self.controller.begin_step(optimizers=[self.optimizer])
        late()
        self.optimizer.zero_grad()
        self.model(torch.ones(2, 3)).pow(2).mean().backward()
        self.controller.before_optimizer_step(self.optimizer)
        before = {name: bits(p) for name, p in self.model.named_parameters()}
        self.optimizer.step()
        moved = {name.rpartition(".")[0] for name, p in self.model.named_parameters() if bits(p) != before[name]}
        self.moved.append(moved)
        return moved

    def replace(self, name: str, *, value: Tensor | None = None, held: bool = True) -> nn.Parameter:
        """Replace a parameter on the module, and in the optimizer where it is to be held."""
        layer, _, key = name.rpartition(".")
        module = self.model.get_submodule(layer)
        old = getattr(module, key)
        new = nn.Parameter(old.detach().clone() if value is None else value)
        setattr(module, key, new)
        if held:
            swap(self.optimizer, old, new)
        return new


@contextmanager
def run_of(*arguments: Any, **options: Any) -> Iterator[Run]:
    run = Run(*arguments, **options)
    with run.controller:
        yield run


ONLY_B = Phases([Phase(["b"])])
GROUPS = {"a": "a", "b": "b"}


@pytest.mark.parametrize("skip", [True, False], ids=["skipped", "not skipped"])
@pytest.mark.parametrize("late", [True, False], ids=["in a batch", "between batches"])
def test_a_frozen_parameter_replaced_by_its_bits_stays_frozen(late: bool, skip: bool) -> None:
    with run_of(ONLY_B, GROUPS, "freeze", skip_backward=skip) as run:
        run.batch()
        if late:
            run.batch(late=lambda: void(run.replace("a.weight")))
        else:
            run.replace("a.weight")
        run.batch()
        assert run.moved == [{"b"}] * len(run.moved)
        assert run.controller.end_epoch() == []
        assert [line for line in run.lines if "replaced" in line] == [
            f"freeze, epoch 0, after {1} update: 1 parameter replaced: 'a.weight'."
        ]
    assert run.model.a.weight.requires_grad


@pytest.mark.parametrize("value", [torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.float64), torch.ones(1, 3)])
def test_other_bits_in_its_place_are_an_error_of_the_frozen_audit(value: Tensor) -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.replace("a.weight", value=value)
        run.controller.begin_step()
        (finding,) = run.controller.end_epoch()
    assert (finding.severity, finding.cause, finding.parameter) == ("error", "replaced", "a.weight")
    kind = f"{tuple(value.shape)} of {value.dtype}".replace("torch.", "")
    assert f"it was (3, 3) of float32, now it is {kind}" in finding.message


def test_a_write_that_torch_does_not_tell_of_is_found_at_the_epochs_end() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.model.a._parameters["weight"] = nn.Parameter(torch.zeros(3, 3))
        run.batch()
        (finding,) = run.controller.end_epoch()
        assert finding.cause == "replaced"


def test_what_trains_and_no_optimizer_holds_stops_the_next_step() -> None:
    with run_of(ONLY_B, GROUPS) as run:
        run.batch()
        run.replace("b.weight", held=False)
        with pytest.raises(
            SelectionError, match=r"no optimizer holds 'b.weight' of group 'b', epoch 0, after 1 update"
        ) as error:
            run.batch()
        assert "optimizer.add_param_group" in str(error.value)
        run.optimizer.add_param_group({"params": [run.model.b.weight]})
        assert run.batch() == {"b", "c", "d"}, "held by its optimizer, it trains"
        assert run.controller.end_epoch() == []


def test_what_is_frozen_and_no_optimizer_holds_may_come_back_before_it_trains() -> None:
    with run_of(Phases([Phase(["b"], updates=2), Phase(["a"])]), GROUPS, "freeze") as run:
        run.batch()
        new = run.replace("a.weight", held=False)
        assert run.batch() == {"b"}
        run.optimizer.add_param_group({"params": [new]})
        assert run.batch() == {"a"}


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "taken out"])
def test_of_the_rest_an_optimizer_must_hold_what_was_replaced_alone(replaced: bool) -> None:
    """Code that takes a parameter of the rest out of an optimizer freezes it in its own way."""
    with run_of(ONLY_B, GROUPS) as run:
        run.batch()
        if replaced:
            run.replace("c.weight", held=False)
            with pytest.raises(SelectionError, match="no optimizer holds 'c.weight' of group 'rest'"):
                run.batch()
        else:
            run.optimizer.param_groups[0]["params"] = [*run.model.b.parameters(), *run.model.d.parameters()]
            run.optimizer.add_param_group({"params": list(run.model.a.parameters())})
            assert run.batch() == {"b", "d"}


def test_loading_by_assignment_takes_the_groups_along() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        old = dict(run.model.named_parameters())
        state = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
        run.model.load_state_dict(state, assign=True)
        for name, new in run.model.named_parameters():
            swap(run.optimizer, old[name], new)
        assert run.batch() == {"b"}
        assert run.controller.end_epoch() == []


def test_a_frozen_module_may_be_replaced_by_its_copy() -> None:
    with run_of(ONLY_B, GROUPS, "freeze", frozen_modules="eval", skip_backward=True) as run:
        run.batch()
        run.controller.begin_step()
        old = run.model.a
        run.model.a = copy.deepcopy(old)
        for p, q in zip(old.parameters(), run.model.a.parameters(), strict=True):
            swap(run.optimizer, p, q)
        assert run.batch() == {"b"}
        assert not run.model.a.training
        assert run.controller.end_epoch() == []
    assert run.model.a.weight.requires_grad
    assert old.training
    assert run.model.a.training, "the mode of what it was copied from"


def test_copies_made_in_a_batch_require_gradients() -> None:
    with run_of(ONLY_B, GROUPS, "freeze", skip_backward=True) as run:
        run.batch()
        run.controller.begin_step()
        assert not run.model.a.weight.requires_grad
        made = copy.deepcopy(run.model)
        assert all(parameter.requires_grad for parameter in made.parameters())
        pickled = pickle.loads(pickle.dumps(run.model))
        assert all(parameter.requires_grad for parameter in pickled.parameters())
        assert not run.model.a.weight.requires_grad
        run.controller.pause()
        run.model.a = made.a
        assert "__deepcopy__" in vars(nn.Parameter)
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_what_was_replaced_before_a_pause_trains_again_after_it() -> None:
    with run_of(Phases([Phase(["b"], updates=2), Phase(["a"])]), GROUPS, "freeze", skip_backward=True) as run:
        run.batch()
        state = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
        old = dict(run.model.named_parameters())
        run.model.load_state_dict(state, assign=True)  # with the `requires_grad` of what was there
        for name, new in run.model.named_parameters():
            swap(run.optimizer, old[name], new)
        run.controller.pause()
        assert [run.batch(), run.batch()] == [{"b"}, {"a"}]


@pytest.mark.parametrize("value", [None, torch.zeros(3, 3)], ids=["its bits", "others"])
def test_a_tied_weight_replaced_under_one_of_its_names(value: Tensor | None) -> None:
    with run_of(ONLY_B, {"b": "b"}, "freeze") as run:
        run.controller.detach()
        run.model.a.weight = run.model.c.weight
        run.optimizer = run.new_optimizer()
        controller = FreezeController(run.model, ONLY_B, {"b": "b"}, "freeze")
        with controller:
            controller.attach(run.optimizer)
            controller.begin()
            controller.begin_step()
            new = nn.Parameter(run.model.c.weight.detach().clone() if value is None else value)
            run.model.c.weight = new
            run.optimizer.add_param_group({"params": [new]})
            controller.begin_step()
            found = controller.end_epoch()
    assert [(f.cause, f.parameter) for f in found] == [("replaced", "c.weight")] * (value is not None)


def test_two_parameters_that_exchange_their_names() -> None:
    """Each name keeps its group, so what is frozen is the other object, with other bits: a violation, once."""
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.model.a.weight, run.model.b.weight = run.model.b.weight, run.model.a.weight
        assert run.batch() == {"b"}
        assert [(f.cause, f.parameter) for f in run.controller.end_epoch()] == [("replaced", "a.weight")]


def test_what_is_put_into_a_module_without_parameters_is_seen() -> None:
    with run_of(ONLY_B, {"a": ["a", "c", "d"], "b": "b"}, "error") as run:
        run.model.more["empty"] = nn.Sequential()
        run.batch()
        run.model.more["empty"].append(nn.Linear(3, 3))
        with pytest.raises(SelectionError, match="more.empty.0.weight"):
            run.batch()


@pytest.mark.parametrize("put", [nn.Identity(), nn.Sequential(nn.Linear(3, 3))], ids=["nothing", "another module"])
def test_a_frozen_module_that_is_taken_away_is_said(put: nn.Module) -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.model.a = put  # type: ignore[assignment]
        assert run.batch() == {"b"}
        assert "2 parameters removed: 'a.weight', 'a.bias'." in " ".join(run.lines)
        assert run.controller.end_epoch() == []


def test_pruning_removes_nothing() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        nn.utils.prune.l1_unstructured(run.model.a, "weight", amount=0.5)
        assert run.batch() == {"b"}
        assert not any("removed" in line or "added" in line for line in run.lines)


def test_clipping_sees_only_what_trains_where_something_was_replaced_in_the_batch() -> None:
    with run_of(ONLY_B, GROUPS, "freeze", skip_backward=False) as run:
        run.batch()
        run.batch(late=lambda: void(run.replace("a.weight")))
        assert run.model.a.weight.grad is None


def grow(run: Run, name: str = "new") -> None:
    run.model.more[name] = nn.Linear(3, 3)
    run.optimizer.add_param_group({"params": list(run.model.more[name].parameters())})


def test_what_is_added_under_rest_freeze_is_held() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        grow(run)
        assert run.batch() == {"b"}
        assert "2 parameters added: 'more.new.weight', 'more.new.bias'" in " ".join(run.lines)


def test_what_is_added_under_rest_train_trains() -> None:
    with run_of(ONLY_B, GROUPS, "train") as run:
        run.batch()
        grow(run)
        assert run.batch() == {"b", "c", "d", "more.new"}


def test_what_is_added_under_rest_error_stops_the_run_before_the_step() -> None:
    with run_of(ONLY_B, {"a": ["a", "c", "d"], "b": "b"}, "error") as run:
        run.batch()
        grow(run)
        text = r"epoch 0, after 1 update: 2 parameters in no group.*more.new.weight"
        with pytest.raises(SelectionError, match=text):
            run.batch()


def test_what_is_added_joins_the_group_that_names_it() -> None:
    groups = {"a": "a", "b": "b", "more": {"select": ["c", "more"]}}
    with run_of(Phases([Phase(["b"], updates=2), Phase(["more"])]), {**groups, "more": ["c", "re:more.*|d.*"]}) as run:
        run.batch()
        grow(run)
        assert run.batch() == {"b"}
        assert run.batch() == {"c", "d", "more.new"}


def test_rebuilt_optimizers_go_on_where_the_run_is() -> None:
    with run_of(Every({"a": 3}, of="b"), GROUPS, "freeze") as run:
        for number in range(9):
            if number == 4:
                run.optimizer = torch.optim.AdamW(run.model.parameters())
            run.batch()
        assert [("a" in moved) for moved in run.moved] == [True, False, False] * 3
        assert run.controller.updates == {"a": 3, "b": 9}
        assert run.controller.end_epoch() == []
        said = [line for line in run.lines if "rebuilt" in line]
        assert said == ["freeze, epoch 0, after 4 updates: the optimizers were rebuilt (AdamW); the schedule goes on."]


def test_what_is_replaced_as_optimizers_are_rebuilt_is_said_too() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.replace("a.weight")
        run.optimizer = run.new_optimizer()
        run.batch()
        after = [line.partition("update: ")[2] for line in run.lines if "after 1 update" in line]
        assert after == [
            "1 parameter replaced: 'a.weight'.", "the optimizers were rebuilt (SGD); the schedule goes on.",
        ]  # fmt: skip


def test_rebuilt_optimizers_that_cannot_be_held_say_when() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.optimizer = torch.optim.SGD(run.model.b.parameters(), lr=RATE)
        text = r"the optimizers were rebuilt, epoch 0, after 1 update: 'a.weight' of group 'a' is in no optimizer"
        with pytest.raises(SelectionError, match=text):
            run.batch()
    with run_of(ONLY_B, {"a": ["a", "c", "d"], "b": "b"}, "error") as run:
        run.batch()
        run.optimizer = torch.optim.SGD([*run.model.parameters(), nn.Parameter(torch.zeros(1))], lr=RATE)
        with pytest.raises(SelectionError, match=r"after 1 update.*holds 1 tensor that the model does not have"):
            run.batch()


def test_offloaded_state_of_an_optimizer_that_stays_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is simulated by another dtype, with which the optimizer's step would fail."""
    monkeypatch.setattr(optimizer_state, "_on_accelerator", lambda tensor: tensor.numel() > 1)
    monkeypatch.setattr(OffloadState, "_to_host", lambda self, tensor: tensor.double())
    monkeypatch.setattr(OffloadState, "_to_device", lambda self, tensor, device: tensor.float())
    model = Net()
    first, second = (torch.optim.Adam([*layer.parameters()]) for layer in (model.a, model.b))
    schedule = Phases([Phase(["a", "b"], updates=2), Phase(["a"], updates=30), Phase(["b"])])
    with FreezeController(model, schedule, GROUPS, optimizer_state="offload", skip_backward=False) as controller:
        controller.attach(first, second)
        controller.begin()
        for number in range(36):
            if number == 4:
                assert second.state[model.b.weight]["exp_avg"].dtype == torch.float64
                first = torch.optim.Adam([*model.a.parameters()])
            controller.begin_step(optimizers=[first, second])
            model(torch.ones(2, 3)).pow(2).mean().backward()
            for optimizer in (first, second):
                optimizer.step()
        assert controller.trainable >= {"b"}
        assert second.state[model.b.weight]["exp_avg"].dtype == torch.float32


def test_names_that_collide_by_the_end_leave_no_hooks() -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        run.model.b = nn.ModuleDict({"_orig_mod": nn.Linear(3, 3)})  # type: ignore[assignment]
        run.model.b.weight = nn.Parameter(torch.zeros(3, 3))
        with pytest.raises(SelectionError, match="both called"):
            run.controller.detach()
        assert not run.optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]
        assert run.model.a.weight.requires_grad


def test_a_learning_rate_factor_comes_with_the_group() -> None:
    with run_of(Phases([Phase(["a", "b"], lr={"a": 0.01})]), GROUPS, "freeze") as run:
        run.batch()
        new = run.replace("a.weight")
        before = new.detach().clone()
        run.batch()
        assert new.grad is not None
        assert torch.allclose(before - new, 0.01 * RATE * new.grad, atol=1e-6)


def test_rates_are_those_of_the_param_groups_now() -> None:
    """``load_state_dict`` gives an optimizer other dicts: a rate of zero there is no reason to move."""
    with run_of(Phases([Phase(["a", "b"])]), GROUPS, "freeze") as run:
        state = copy.deepcopy(run.optimizer.state_dict())
        state["param_groups"][0]["lr"] = 0.0
        run.optimizer.load_state_dict(state)
        assert run.batch() == set()
        assert run.controller.end_epoch() == []


def test_tensors_that_the_model_does_not_have_are_named() -> None:
    model, other = Net(), nn.Parameter(torch.zeros(2, 5))
    optimizer, lines = torch.optim.SGD([*model.parameters(), other], lr=0.1), list[str]()
    controller = FreezeController(model, ONLY_B, GROUPS, say=lines.append)
    with controller:
        controller.attach(optimizer)
        controller.begin()
    said = " ".join("".join(lines).split())
    assert "an optimizer (SGD) holds 1 tensor that the model does not have, such as one of shape (2, 5)" in said
    controller = FreezeController(model, ONLY_B, {"a": ["a", "c", "d"], "b": "b"}, "error")
    with controller, pytest.raises(SelectionError, match=r"does not have.*`rest: error` forbids that"):
        controller.attach(optimizer)


# --- any sequence of these ------------------------------------------------------------------------------------------------


SCHEDULES: dict[str, Callable[[], Any]] = {
    "every": lambda: Every({"a": 3}, of="b"),
    "phases": lambda: Phases(
        [Phase(["a"], updates=2), Phase(["b"], updates=1), Phase(["a", "b"], updates=1)], repeat=True
    ),
    "rates": lambda: Phases(
        [Phase(["a"], updates=2), Phase(["a", "b"], updates=2, lr={"a": 0.1}, ramp=2)], repeat=True
    ),
}


class Changes:
    """Random changes to a run, each of which keeps bits: what is frozen then must not move."""

    def __init__(self, run: Any, seed: int, grows: bool) -> None:
        self.run, self.random = run, random.Random(seed)
        self.kinds = [
            self.replace,
            self.module,
            self.load,
            self.rates,
            self.rebuild,
            *[self.grow] * grows,
            self.nothing,
        ]
        self.done: list[str] = []

    def __call__(self) -> None:
        change = self.random.choice(self.kinds)
        self.done.append(change.__name__)
        change()

    def nothing(self) -> None:
        pass

    def replace(self) -> None:
        self.run.replace(self.random.choice([name for name, _ in self.run.model.named_parameters()]))

    def module(self) -> None:
        name = self.random.choice("abcd")
        old = getattr(self.run.model, name)
        setattr(self.run.model, name, copy.deepcopy(old))
        for p, q in zip(old.parameters(), getattr(self.run.model, name).parameters(), strict=True):
            swap(self.run.optimizer, p, q)

    def load(self) -> None:
        old = dict(self.run.model.named_parameters())
        state = {name: value.detach().clone() for name, value in self.run.model.state_dict().items()}
        self.run.model.load_state_dict(state, assign=True)
        for name, new in self.run.model.named_parameters():
            swap(self.run.optimizer, old[name], new)

    def rates(self) -> None:
        self.run.optimizer.load_state_dict(self.run.optimizer.state_dict())

    def rebuild(self) -> None:
        self.run.optimizer = self.run.new_optimizer()

    def grow(self) -> None:
        if len(self.run.model.more) < 3:
            grow(self.run, f"m{len(self.run.model.more)}")


SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_sequence_of_changes_keeps_the_plan(schedule: str, rest: str, seed: int) -> None:
    """What is frozen by the plan keeps its bits, what is to train trains at the planned rate, and counts are true."""
    groups: dict[str, Any] = {"a": ["a", "c"], "b": ["b", "d"]} if rest == "error" else {"a": "a", "b": "b"}
    with run_of(SCHEDULES[schedule](), groups, rest, skip_backward=bool(seed % 2)) as run:
        changes = Changes(run, seed, grows=rest != "error")
        counted = dict.fromkeys(groups, 0)
        for number in range(24):
            changes()
            run.controller.begin_step(optimizers=[run.optimizer])
            planned = run.controller.trainable
            if number % 3 == 0:
                changes()
            factors = run.controller._loop.plan.lr_factors(run.controller._place.at)
            before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
            moved = run.batch()
            for name, p in run.model.named_parameters():
                group = next((group for group, layers in groups.items() if name.partition(".")[0] in layers), "rest")
                if name.rpartition(".")[0] in moved and p.grad is not None:
                    by = RATE * factors.get(group, 1.0)
                    assert torch.allclose(p, before[name] - by * p.grad, atol=1e-7), (name, number, changes.done)
            expected = {layer for group in planned & groups.keys() for layer in groups[group]}
            if rest == "train":
                expected |= {"c", "d", *(f"more.{name}" for name in run.model.more)}
            assert moved == expected, (number, changes.done)
            for group in planned & groups.keys():
                counted[group] += 1
            if number % 8 == 7:
                assert run.controller.end_epoch() == []
        assert {group: run.controller.updates[group] for group in groups} == counted
        assert len(set(changes.done)) > 3


def test_without_the_comparison_the_observer_sees_what_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamedParameters, "changed", lambda self, walk=False: False)
    monkeypatch.setattr(OptimizerIndex, "changed", lambda self, index, in_parts=(): False)
    with run_of(ONLY_B, GROUPS, "freeze", audit=False) as run:
        run.replace("a.weight")
        assert run.batch() == {"a", "b"}


def test_without_the_factors_the_observer_sees_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LearningRateFactors, "before_step", lambda self, step: None)
    with pytest.raises(AssertionError):
        test_any_sequence_of_changes_keeps_the_plan("rates", "train", 0)


# --- under a Trainer ------------------------------------------------------------------------------------------------------


def fitted(package: Any, callback: Any, observer: Callable[[Any], Any], epochs: int = 3, **options: Any) -> Any:
    """Fit under a Trainer of a package, with an observer after our callback; the observer."""

    class Model(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch[0]).pow(2).mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(16, 3)), batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    found = observer(package.Callback)
    trainer = package.Trainer(
        max_epochs=epochs, callbacks=[callback, found], **{**quiet, "enable_checkpointing": False, **options}
    )
    trainer.fit(Model(), data)
    return found


def watcher(seed: int, callback: Any, grows: bool) -> Callable[[type], Any]:
    """Changes what runs at random moments, and notes what moved in each step and what was to move."""

    def build(base: type) -> Any:
        class Watcher(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                self.changes = Changes(self, seed, grows)
                self.rows: list[tuple[set[str], frozenset[str]]] = []
                self.counted: dict[str, int] = {}

            replace = Run.replace

            @property
            def model(self) -> Net:
                return self.trainer.lightning_module.net  # type: ignore[no-any-return]

            @property
            def optimizer(self) -> Optimizer:
                return self.trainer.optimizers[0]  # type: ignore[no-any-return]

            @optimizer.setter
            def optimizer(self, value: Optimizer) -> None:
                self.trainer.optimizers = [value]

            def new_optimizer(self) -> Optimizer:
                return torch.optim.SGD(self.model.parameters(), lr=RATE)

            def on_fit_start(self, trainer: Any, module: Any) -> None:
                self.trainer = trainer

            def on_train_epoch_start(self, *_: Any) -> None:
                self.changes()

            def on_train_batch_start(self, *_: Any) -> None:
                if len(self.rows) % 3 == 0:
                    kinds, self.changes.kinds = (
                        self.changes.kinds,
                        [
                            kind
                            for kind in self.changes.kinds
                            if kind.__name__ != "rebuild"  # the batch has begun
                        ],
                    )
                    self.changes()
                    self.changes.kinds = kinds

            def on_before_zero_grad(self, *_: Any) -> None:
                self.before = {name: bits(p) for name, p in self.model.named_parameters()}
                self.planned = callback.trainable

            def on_train_batch_end(self, *_: Any) -> None:
                now = {name: bits(p) for name, p in self.model.named_parameters()}
                moved = {name.rpartition(".")[0] for name in now if now[name] != self.before[name]}
                self.rows.append((moved, self.planned))
                self.changes()

        return Watcher()

    return build


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("package", [pl, unified], ids=["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_sequence_of_changes_keeps_the_plan_under_a_trainer(
    schedule: str, package: Any, rest: Any, seed: int, tmp_path: Path
) -> None:
    layers = {"a": ["a", "c"], "b": ["b", "d"]} if rest == "error" else {"a": ["a"], "b": ["b"]}
    groups = {group: [f"net.{layer}" for layer in found] for group, found in layers.items()}
    callback = FreezeScheduler(SCHEDULES[schedule](), groups, rest)  # type: ignore[arg-type]
    found = fitted(package, callback, watcher(seed, callback, rest != "error"), default_root_dir=tmp_path)
    counted = dict.fromkeys(groups, 0)
    for moved, planned in found.rows:
        for group in planned & groups.keys():
            counted[group] += 1
            assert moved.issuperset(layers[group])
        frozen = {layer for group in groups.keys() - planned for layer in layers[group]}
        frozen |= {"c", "d"} if rest == "freeze" else set()
        assert moved.isdisjoint(frozen)
        assert rest != "freeze" or not any(layer.startswith("more") for layer in moved)
    assert callback.updates == counted | ({"rest": 24} if rest == "train" else {})
    assert callback.findings == []


class Grows(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 1:
            module.net.more["new"] = nn.Linear(3, 3)
            trainer.optimizers[0].add_param_group({"params": list(module.net.more.parameters())})


def test_a_run_that_stops_for_what_was_added_is_saved(tmp_path: Path) -> None:
    callback = FreezeScheduler(ONLY_B, {"a": ["net.a", "net.c", "net.d"], "b": "net.b"}, "error")
    with pytest.raises(SelectionError, match=r"epoch 1, after 8 updates: 2 parameters in no group") as error:
        fitted(pl, callback, lambda _: Grows(), default_root_dir=tmp_path)
    (saved,) = tmp_path.rglob("*.ckpt")
    assert error.value.__notes__ == [f"freeze: the run was saved to {str(saved)!r}."]
    assert torch.load(saved)["callbacks"]["lightning_freeze.FreezeScheduler"]["position"]["total"] == 8


# --- the audit alone ------------------------------------------------------------------------------------------------------


class Frozen(pl.Callback):
    """Freezes a layer as users do, and changes it in the second epoch."""

    def __init__(self, change: Callable[[Any, Optimizer], None]) -> None:
        self.change = change

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.net.a.requires_grad_(False)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 1:
            self.change(module.net, trainer.optimizers[0])


def replaced_by(value: Tensor | None) -> Callable[[Net, Optimizer], None]:
    def change(net: Net, optimizer: Optimizer) -> None:
        old = net.a.weight
        net.a.weight = nn.Parameter(old.detach().clone() if value is None else value, requires_grad=False)
        swap(optimizer, old, net.a.weight)

    return change


@pytest.mark.parametrize("value", [None, torch.zeros(3, 3)], ids=["its bits", "others"])
def test_the_audit_alone_follows_what_is_replaced(value: Tensor | None, tmp_path: Path) -> None:
    audit = FreezeAudit(on_finding="warn", inputs=False)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        fitted(pl, audit, lambda _: Frozen(replaced_by(value)), default_root_dir=tmp_path)
    assert [finding.cause for finding in audit.findings] == ["replaced"] * (value is not None)


def rebuild_and_thaw(net: Net, optimizer: Optimizer) -> None:
    net.a.requires_grad_(True)


def test_the_audit_alone_counts_what_is_frozen_first_and_trains_later(tmp_path: Path) -> None:
    audit = FreezeAudit(inputs=False)
    fitted(pl, audit, lambda _: Frozen(rebuild_and_thaw), default_root_dir=tmp_path)
    assert audit._engine is not None
    assert audit._engine.audit.counts()["updates"] == {"requires_grad=True": 24, "requires_grad=False": 16}


def test_the_audit_alone_says_what_no_optimizer_holds(tmp_path: Path) -> None:
    def on_the_module_alone(net: Net, optimizer: Optimizer) -> None:
        net.b.weight = nn.Parameter(net.b.weight.detach().clone())

    audit = FreezeAudit(inputs=False)
    with pytest.warns(
        UserWarning, match=r"no optimizer holds 'net.b.weight' since it was replaced, in epoch 1 after 8"
    ):
        fitted(pl, audit, lambda _: Frozen(on_the_module_alone), epochs=2, default_root_dir=tmp_path)
    assert [finding.parameter for finding in audit.findings] == ["net.b.weight"]


class MovesA(pl.Callback):
    """Moves a frozen layer as an average does, which gets a parameter in the second epoch."""

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.net.a.requires_grad_(False)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and not hasattr(module.net.a, "extra"):
            module.net.a.extra = nn.Parameter(torch.zeros(2), requires_grad=False)
        for parameter in module.net.a.parameters():
            parameter.data += 0.01


def test_what_an_exempt_module_gets_later_is_exempt_too(tmp_path: Path) -> None:
    audit = FreezeAudit(inputs=False, exempt={"net.a": "moved by an average"})
    fitted(pl, audit, lambda _: MovesA(), default_root_dir=tmp_path)
    assert audit.findings == []


class RebuildsLate(pl.Callback):
    """Rebuilds the optimizers once a batch has begun."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if (trainer.current_epoch, index) == (1, 3):
            trainer.strategy.setup_optimizers(trainer)


@pytest.mark.parametrize("skip", [True, False], ids=["skipped", "not skipped"])
def test_optimizers_rebuilt_within_a_batch_are_held_and_counted_at_their_step(skip: bool, tmp_path: Path) -> None:
    phases = Phases([Phase(["b"], updates=3), Phase(["a"], updates=2)], repeat=True)
    callback = FreezeScheduler(phases, {"a": "net.a", "b": "net.b"}, "freeze", skip_backward=skip)
    fitted(pl, callback, lambda _: RebuildsLate(), default_root_dir=tmp_path)
    assert callback.updates == {"a": 9, "b": 15}
    assert callback.findings == []


def test_an_optimizer_that_the_run_does_not_have_begins_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_of(ONLY_B, GROUPS, "freeze") as run:
        run.batch()
        monkeypatch.setattr(run.controller, "begin_step", lambda *_: pytest.fail("no other optimizers were given"))
        run.controller.before_optimizer_step(run.new_optimizer(), optimizers=[run.optimizer])


class Rebuilds(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.strategy.setup_optimizers(trainer)


def test_the_audit_alone_goes_on_with_rebuilt_optimizers(tmp_path: Path) -> None:
    audit = FreezeAudit(inputs=False)
    fitted(pl, audit, lambda _: Rebuilds(), default_root_dir=tmp_path)
    assert audit._engine is not None
    assert audit._engine.total == 24
    assert audit.findings == []
