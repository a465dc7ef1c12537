"""The probe: what it says of planted habits is what really happens, and it leaves everything as it was."""

from __future__ import annotations

import copy
import random
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_freeze import OptimizerTraits, UnsupportedError, probe_optimizer
from lightning_freeze.holds.param_groups import exclude
from lightning_freeze.holds.snapshots import same, snapshot
from lightning_freeze.probe import probe as probing
from lightning_freeze.probe.proxies import MOST_KINDS, nested_optimizers, small_plan
from lightning_freeze.probe.verdict import hold_method
from tests.conftest import Net, batches
from tests.holds.test_optim_db import configurations
from tests.probe.planted_optimizers import (
    WAYS,
    BeginsAtOnce,
    BeginsOffItsPeriod,
    ByMark,
    FillsZeros,
    GroupCounter,
    IgnoresClosure,
    NeedsSome,
    Parts,
    Plain,
    SyncsRarely,
    Wrapper,
)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_known", type(probing._known)())


def really(make: Callable[[nn.Module], Optimizer], excludes: bool, warm: int, updates: int = 45) -> str:
    """What really happens to layer1 through frozen updates, in plain PyTorch: ``held``, ``moved`` or the exception's name."""
    model = Net()
    optimizer = make(model)
    frozen = list(model.layer1.parameters())
    data = list(batches(4))

    def step(holds: bool) -> None:
        def closure() -> Any:
            model.zero_grad()
            loss = model.training_step(next(iter(data)), 0)
            assert loss is not None
            loss.backward()
            for p in frozen if holds else ():
                p.grad = None
            return loss

        restore = exclude(optimizer, set(map(id, frozen))) if holds and excludes else None
        optimizer.step(closure)  # type: ignore[arg-type]
        if restore is not None:
            restore()

    def now() -> Any:
        states = [snapshot(each.state.get(p)) or None for each in nested_optimizers(optimizer) for p in frozen]
        return [snapshot(p) for p in frozen], states

    try:
        for _ in range(warm):
            step(False)
        before = now()
        for _ in range(updates):
            step(True)
        return "held" if same(before, now()) else "moved"
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "name", [name for name, (_, way) in WAYS.items() if way != "unknown" and "backward" not in name]
)
def test_its_verdict_is_what_really_happens(name: str) -> None:
    make = WAYS[name][0]
    traits = probe_optimizer(make(Net()), closure=True)
    for holds, excludes in ((traits.skips_none, False), (traits.holds_excluded, True)):
        if "others trained differently" in traits.reasons.get("holds_excluded", "") and excludes:
            continue  # it holds, at others' cost
        real = {really(make, excludes, warm) for warm in (0, 3)}
        assert holds is (real == {"held"}), (excludes, real, traits.reasons)


@pytest.mark.parametrize("name", WAYS)
def test_each_habit_has_its_method(name: str) -> None:
    make, way = WAYS[name]
    traits = probe_optimizer(make(Net()))
    if way != "refused":
        assert hold_method(traits, 0) == way, traits
        return
    with pytest.raises(
        UnsupportedError, match=rf"optimizer 0 \({traits.name}\) (cannot keep|updates parameters within)"
    ):
        hold_method(traits, 0)


def test_every_method_is_there() -> None:
    assert {way for _, way in WAYS.values()} == {"none", "excluded", "refused", "unknown"}


def test_reasons_say_what_happened() -> None:
    reasons = {name: probe_optimizer(WAYS[name][0](Net())).reasons for name in WAYS}
    assert reasons["plain"] == {}
    assert reasons["fills zeros"] == {"skips_none": "the value of a parameter whose gradient is None moved"}
    assert reasons["counts all"] == {"skips_none": "the state (step) of a parameter whose gradient is None moved"}
    assert reasons["needs gradients"]["skips_none"] == (
        "a step with a parameter whose gradient is None raised AttributeError: 'NoneType' object has no attribute 'sign'"
    )
    assert reasons["own list"]["holds_excluded"] == "the value of a parameter excluded from the param groups moved"


def test_one_that_needs_some_gradient() -> None:
    traits = probe_optimizer(NeedsSome(Net().parameters()))
    assert (traits.skips_none, traits.all_none_ok) == (True, False)
    assert traits.reasons["all_none_ok"] == (
        "a step in which nothing had a gradient raised ZeroDivisionError: division by zero"
    )


def test_one_whose_state_is_made_at_once() -> None:
    traits = probe_optimizer(BeginsAtOnce(Net().parameters()))
    assert (traits.skips_none, traits.late_first_step_ok) == (True, False)
    assert traits.reasons["late_first_step_ok"] == (
        "the first update of a parameter frozen from the first step on raised KeyError: 'average'"
    )


def test_one_whose_first_update_fails_on_its_period_alone() -> None:
    traits = probe_optimizer(BeginsOffItsPeriod(Net().parameters()))
    assert (traits.skips_none, traits.late_first_step_ok) == (True, False)
    assert "raised KeyError: 'curvature'" in traits.reasons["late_first_step_ok"]


def test_marks_on_parameters_tell_them_apart() -> None:
    def marked(*names: str) -> OptimizerTraits:
        net = Net()
        for name in names:
            getattr(net, name).weight.use_muon = True
        return probe_optimizer(ByMark(net.parameters()))

    assert [marked().skips_none, marked("layer2").skips_none, marked("layer1").skips_none] == [True, False, False]


def test_param_groups_of_different_inner_optimizers_are_not_taken_for_alike() -> None:
    net = Net()
    parts = Parts([{"params": net.layer1.parameters()}, {"params": net.layer2.parameters()}])
    assert probe_optimizer(parts).skips_none is False


@pytest.mark.parametrize(
    "parameters",
    [
        [nn.Parameter(torch.tensor(2.0))],
        [nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))],
        [nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)],
        [nn.Parameter(torch.ones(0, 4)), nn.Parameter(torch.ones(3))],
        [nn.Parameter(torch.ones(300, 3000))],
    ],
    ids=["a scalar", "a scalar among others", "whole numbers of one's own", "without elements", "large"],
)
def test_parameters_of_all_sorts(parameters: list[nn.Parameter]) -> None:
    traits = probe_optimizer(AdamW(parameters))
    assert (traits.skips_none, traits.why) == (True, "")


def test_many_param_groups_that_differ_in_numbers_are_a_few_kinds() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "name": f"{n}", "weight_decay": 0.1 * n} for n in range(50)]
    assert len(small_plan(AdamW(groups)).models) == 2  # with weight decay and without
    named = [{"params": [nn.Parameter(torch.ones(2))], "kind": f"{n}"} for n in range(50)]
    assert len(small_plan(AdamW(named)).models) == MOST_KINDS


def test_what_lightning_makes_of_an_optimizer_is_probed_as_the_optimizer() -> None:
    wrapped = LightningOptimizer(WAYS["fills zeros"][0](Net()))
    assert probe_optimizer(wrapped) == probe_optimizer(WAYS["fills zeros"][0](Net()))


def test_one_that_ignores_its_closure_is_stepped_after_backward() -> None:
    traits = probe_optimizer(IgnoresClosure(Net().parameters()), closure=True)
    assert (traits.skips_none, traits.reads_before_closure) == (True, True)


class Reaches(Plain):
    """Decays all its parameters through something that a copy of it still shares."""

    how = "lambda"

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        held = [p for group in self.param_groups for p in group["params"]]
        decay = self._decay

        def by_default(held: Any = tuple(held)) -> None:
            for p in held:
                p.mul_(0.999)

        self.run: Any = {
            "lambda": lambda: decay(),
            "default": by_default,
            "compiled": torch.compile(self._decay, backend="eager"),
            "weakref": weakref.ref(self),
            "object": SimpleNamespace(decay=lambda: [p.mul_(0.999) for p in held]),
        }[self.how]

    def _decay(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            p.mul_(0.999)

    def begin(self, group: dict[str, Any]) -> None:
        run = self.run()._decay if isinstance(self.run, weakref.ref) else getattr(self.run, "decay", self.run)
        run()


@pytest.mark.parametrize("way", ["lambda", "default", "compiled", "weakref", "object"])
def test_what_a_copy_would_share_is_never_run(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaches, "how", way)
    net = Net()
    optimizer = Reaches(net.parameters())
    before = snapshot(dict(net.state_dict()))
    traits = probe_optimizer(optimizer)
    assert same(before, snapshot(dict(net.state_dict())))
    assert traits.skips_none is False, traits  # as the clone by the constructor shows


def test_a_probe_that_changed_something_all_the_same_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.probe.clone.reaches", lambda *_: False)
    with pytest.raises(UnsupportedError, match="Reaches reaches its parameters .* probing it has changed them"):
        probe_optimizer(Reaches(Net().parameters()))


class ByNumber(FillsZeros):
    """Keeps momentum by a parameter's running number, which leaving out shifts."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.kept: dict[int, Any] = {}

    def begin(self, group: dict[str, Any]) -> None:
        self.number = 0

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        momentum = self.kept.setdefault(self.number, torch.zeros_like(p))
        p.sub_(momentum.mul_(0.9).add_(p.grad), alpha=group["lr"])
        self.number += 1


def test_exclusion_that_changes_how_others_train_does_not_hold() -> None:
    traits = probe_optimizer(ByNumber(Net().parameters()))
    assert (traits.skips_none, traits.holds_excluded) == (False, False)
    same_shape = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    alike = probe_optimizer(ByNumber([p for layer in same_shape for p in layer.parameters()]))
    assert alike.reasons["holds_excluded"] == "others trained differently than with a parameter whose gradient is None"


def test_step_counters_closures_and_what_is_kept_elsewhere() -> None:
    assert probe_optimizer(GroupCounter(Net().parameters())).step_counters == ("step",)
    assert probe_optimizer(AdamW(Net().parameters())).step_counters == ()
    reentrant = {name: probe_optimizer(make(Net())).closure_reentrant for name, (make, _) in WAYS.items()}
    assert [name for name, found in reentrant.items() if found] == ["two passes"]
    assert probe_optimizer(SyncsRarely(Net().parameters())).step_counters == ("counter",)
    assert probe_optimizer(WAYS["one vector"][0](Net())).extra_state == ("momentum",)
    assert probe_optimizer(AdamW(Net().parameters())).extra_state == ()


def test_steps_in_backward_are_known_by_the_hooks() -> None:
    hooked = WAYS["steps in backward"][0](Net())
    assert probe_optimizer(hooked).steps_in_backward is True
    assert probe_optimizer(AdamW(Net().parameters())).steps_in_backward is False

    net = Net()
    others = AdamW(net.parameters())
    net.layer1.weight.register_post_accumulate_grad_hook(lambda p: None)  # somebody's, but not the optimizer's
    assert probe_optimizer(others).steps_in_backward is False


@pytest.mark.parametrize(("info", "options"), configurations()[::3])  # all of them in the zoo
def test_torchs_optimizers_skip_none(info: Any, options: dict[str, Any]) -> None:
    traits = probe_optimizer(info.optim_cls(Net().parameters(), **copy.deepcopy(options)))
    if options.get("capturable"):
        assert "capturable=True" in traits.why  # which torch refuses on a CPU
        return
    learnt = (traits.skips_none, traits.holds_excluded, traits.all_none_ok, traits.late_first_step_ok)
    # Torch 2.13's fused SGD wants all momentum buffers from the first step on, or none.
    late = not (info.optim_cls is SGD and options.get("fused") and options.get("momentum"))
    assert learnt == (True, True, True, late), traits.reasons
    assert (traits.steps_in_backward, traits.step_counters, traits.why) == (False, (), "")


def test_lbfgs_moves_what_has_no_gradient() -> None:
    traits = probe_optimizer(torch.optim.LBFGS(Net().parameters()))
    assert (traits.skips_none, traits.holds_excluded, traits.closure_reentrant) == (False, False, True)


def test_one_that_cannot_be_probed_says_why() -> None:
    class Choosy(SGD):
        def step(self, closure: Any = None) -> Any:
            raise LookupError("not without my data")

    traits = probe_optimizer(Choosy(Net().parameters(), lr=0.1))
    assert (traits.skips_none, traits.why) == (None, "LookupError: not without my data")
    assert probe_optimizer(WAYS["locked"][0](Net())).why == (
        "its `lock` cannot be copied (TypeError: cannot pickle '_thread.lock' object)"
    )
    assert "moved nothing in" in probe_optimizer(WAYS["moves nothing"][0](Net())).why


@pytest.mark.parametrize("name", [*WAYS, "adamw"])
def test_it_leaves_optimizer_parameters_and_random_states_alone(name: str) -> None:
    model = Net()
    make = WAYS[name][0] if name in WAYS else lambda m: AdamW(m.parameters(), lr=0.01)
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps `step` in one bound to this very optimizer
    loss = model.training_step(next(iter(batches(1))), 0)
    assert loss is not None
    loss.backward()
    optimizer.step(lambda: loss)  # type: ignore[arg-type,return-value]
    scheduler.step()

    def now() -> Any:
        held = [
            [snapshot(vars(each), 12), each.param_groups is optimizer.param_groups]
            for each in nested_optimizers(optimizer)
        ]
        random_states = [torch.get_rng_state(), random.getstate(), list(numpy.random.get_state())]
        return [held, snapshot(dict(model.state_dict())), snapshot([p.grad for p in model.parameters()]), random_states]

    before, lists = now(), [list(map(id, group["params"])) for group in optimizer.param_groups]
    probe_optimizer(optimizer)
    assert same(snapshot(before[:-1], 20), snapshot(now()[:-1], 20))
    assert torch.equal(before[-1][0], now()[-1][0])
    assert before[-1][1] == now()[-1][1]
    assert str(before[-1][2]) == str(now()[-1][2])
    assert lists == [list(map(id, group["params"])) for group in optimizer.param_groups]


def test_the_test_of_traces_can_fail() -> None:
    optimizer = AdamW(Net().parameters())
    before = snapshot(vars(optimizer), 12)
    optimizer.param_groups[0]["lr"] *= 2
    assert not same(before, snapshot(vars(optimizer), 12))


def test_global_hooks_are_not_called() -> None:
    calls: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: calls.append(optimizer))
    try:
        optimizer = AdamW(Net().parameters())
        probe_optimizer(optimizer)
        assert calls == []
        optimizer.step()
        assert calls == [optimizer]
    finally:
        handle.remove()


def test_a_rate_of_zero_hides_nothing() -> None:
    model = Net()
    optimizer = WAYS["fills zeros"][0](model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))  # begins at 0
    assert optimizer.param_groups[0]["lr"] == 0
    assert probe_optimizer(optimizer).skips_none is False


def test_a_trained_optimizer_is_probed_with_its_state() -> None:
    model = Net()
    adam = AdamW(model.parameters(), lr=0.01)
    slow = WAYS["syncs slow weights"][0](model)
    for each in (adam, slow):
        loss = model.training_step(next(iter(batches(1))), 0)
        assert loss is not None
        loss.backward()
        each.step()
    assert probe_optimizer(adam).skips_none is True
    assert probe_optimizer(slow).skips_none is False


def test_a_compiled_step_is_probed_as_its_class_has_it() -> None:
    optimizer = AdamW(Net().parameters())
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    assert probe_optimizer(optimizer).skips_none is True


def test_what_was_learnt_is_kept_for_optimizers_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe_optimizer(AdamW(Net().parameters(), lr=0.01))
    monkeypatch.setattr(probing, "_probed", lambda *_: OptimizerTraits("asked again"))
    assert probe_optimizer(AdamW(Net().parameters(), lr=0.01)) is first
    for other in (
        AdamW(Net().parameters(), lr=0.02),
        AdamW(Net().parameters(), lr=0.01, amsgrad=True),
        AdamW(Net().double().parameters(), lr=0.01),
        SGD(Net().parameters(), lr=0.01),
        Wrapper(AdamW(Net().parameters(), lr=0.01)),
    ):
        assert probe_optimizer(other).name == "asked again"


def test_it_takes_milliseconds() -> None:
    """A figure is in the benchmark; here only that nothing takes a hundred times as long."""
    start = time.perf_counter()
    probe_optimizer(AdamW(Net().parameters()))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("former", "name"),
    [("holds_left_out", "holds_excluded"), ("clocks", "step_counters"), ("reads_early", "reads_before_closure")],
)
def test_a_trait_is_found_by_its_former_name(former: str, name: str) -> None:
    traits = OptimizerTraits("Adam", holds_excluded=True, step_counters=("step",), reads_before_closure=True)
    with pytest.warns(DeprecationWarning, match=f"^OptimizerTraits.{former} is now {name}$"):
        assert getattr(traits, former) == getattr(traits, name)
    with pytest.raises(AttributeError, match="'OptimizerTraits' object has no attribute 'clock'"):
        _ = traits.clock
