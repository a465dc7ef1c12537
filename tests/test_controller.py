"""`FreezeController` in plain PyTorch, without Lightning."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lightning_freeze import Every, FreezeController, Phase, Phases, ScheduleError, SelectionError, UnsupportedError
from lightning_freeze.plan.membership import OptimizerIndex
from lightning_freeze.plan.selectors import ParamNames
from lightning_freeze.report.steps import steps_of
from tests.observer import same


def model_of(*names: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names})


def train(model: Any, optimizer: Any, controller: FreezeController, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        controller.begin_step()
        optimizer.zero_grad()
        x = torch.full((2, 3), 0.1 * (step + 1))
        for layer in model.values():
            x = torch.tanh(layer(x))
        x.square().sum().backward()
        optimizer.step()


def test_a_step_that_failed_leaves_no_split_param_groups_to_the_next_batch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))

    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise MemoryError("planned")

    optimizer = Fails(model.parameters(), lr=0.5)
    controller = FreezeController(model, Phases([Phase(["0", "1"], lr={"0": 0.1})]))
    controller.attach(optimizer)
    controller.begin()
    controller.begin_step()
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(MemoryError):
        optimizer.step()
    controller.begin_step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
    controller.detach()


def test_a_schedule_of_rates_alone_is_not_warned_of() -> None:
    """It freezes nothing, and is not meant to."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    controller = FreezeController(model, Phases([Phase(["0", "1"], lr={"0": 0.1})]))
    controller.attach(torch.optim.SGD(model.parameters(), lr=0.5))  # a warning would be an error here
    assert controller.trainable == {"0", "1"}
    controller.detach()


def test_a_plain_loop() -> None:
    model = model_of("a", "b")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    records: list[Any] = []
    controller = FreezeController(model, Every({"a": 3}, of="b"), record=records.append)
    controller.attach(optimizer)
    controller.begin()
    train(model, optimizer, controller, 7)
    assert controller.end_epoch() == []
    assert controller.updates == {"a": 3, "b": 7}
    assert controller.epoch == 1
    assert [sorted(groups) for _, groups in steps_of(records)] == [["a", "b"], ["b"], ["b"]] * 2 + [["a", "b"]]
    controller.detach()
    assert controller.updates == {"a": 3, "b": 7}


def test_saved_and_loaded_it_goes_on_alike() -> None:
    def fresh() -> tuple[Any, Any, FreezeController]:
        model = model_of("a", "b")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        controller = FreezeController(model, Phases([Phase(["a"], updates=2), Phase(["b"], updates=3)], repeat=True))
        controller.attach(optimizer)
        return model, optimizer, controller

    straight, optimizer, controller = fresh()
    train(straight, optimizer, controller, 4)
    saved = (
        {k: v.clone() for k, v in straight.state_dict().items()},
        torch.utils._pytree.tree_map(lambda v: v.clone() if hasattr(v, "clone") else v, optimizer.state_dict()),
        controller.state_dict(),
    )
    train(straight, optimizer, controller, 5, first=4)
    again, other, resumed = fresh()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed.begin(state=saved[2])
    train(again, other, resumed, 5, first=4)
    assert resumed.updates == controller.updates
    assert same(dict(again.state_dict()), dict(straight.state_dict()))


def test_a_group_over_two_optimizers_waits_part_by_part() -> None:
    """The phase ends when each optimizer that holds a part has made its updates; the first to be done waits."""
    model: Any = model_of("a", "b")
    first = torch.optim.SGD(model["a"].parameters(), lr=0.1)
    second = torch.optim.SGD(model["b"].parameters(), lr=0.1)
    controller = FreezeController(model, Phases([Phase(["both"], updates=2)], repeat=True), {"both": ["a", "b"]})
    controller.attach(first, second)
    moved = []
    for _ in range(3):
        controller.begin_step()
        model["b"](model["a"](torch.ones(1, 3))).sum().backward()
        before = model["a"].weight.detach().clone()
        first.step()
        moved.append(not torch.equal(before, model["a"].weight))
    assert moved == [True, True, False]
    assert controller.trainable == {"both"}  # its other part may train
    for _ in range(2):
        controller.begin_step()
        model["b"](model["a"](torch.ones(1, 3))).sum().backward()
        second.step()
    assert controller.updates == {"both": 4}
    assert controller.audit.check() == []
    controller.detach()


def test_a_parameter_in_two_optimizers_is_frozen_only_where_neither_trains_it() -> None:
    model: Any = model_of("shared", "a", "b")
    first = torch.optim.SGD([*model["shared"].parameters(), *model["a"].parameters()], lr=0.1)
    second = torch.optim.SGD([*model["shared"].parameters(), *model["b"].parameters()], lr=0.1)
    controller = FreezeController(model, Phases([Phase(["shared", "a"], updates=1), Phase(["b"], updates=1)], True))
    controller.attach(first, second)
    for optimizer in (first, second, second, first):
        controller.begin_step()
        (model["a"](model["shared"](torch.ones(1, 3))) + model["b"](torch.ones(1, 3))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert controller.end_epoch() == []
    controller.detach()


def test_before_attach_it_says_what_to_do() -> None:
    controller = FreezeController(model_of("a", "b"), Every({"a": 3}, of="b"))
    with pytest.raises(RuntimeError, match=r"not attached: call attach\(\*optimizers\)"):
        controller.begin_step()


def test_may_train_knows_groups_and_families() -> None:
    model: Any = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]), "head": nn.Linear(2, 2)})
    controller = FreezeController(
        model, Phases([Phase(["layers/1"], updates=1), Phase(["head"])]), {"layers": {"each": "layers.*"}}
    )
    controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert controller.may_train("layers")
    assert controller.may_train("layers/1")
    assert not controller.may_train("layers/0")
    assert not controller.may_train("head")
    with pytest.raises(SelectionError, match="no group 'haed'. Did you mean 'head'"):
        controller.may_train("haed")
    controller.detach()


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Every({"a": 3}), r"every group has a period above 1 and there is no `of`"),
        (Phases([Phase(["rest"])]), r"names 'rest', the reserved group"),
        (Phases([Phase([])]), r"`phases\[0\].train` is empty"),
    ],
)
def test_what_leaves_nothing_trainable_is_refused(schedule: Any, text: str) -> None:
    model = model_of("a")
    controller = FreezeController(model, schedule, {"a": "a"}, rest="freeze")
    with pytest.raises(ScheduleError, match=text):
        controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_step_of_torchs_own_to_see_an_optimizers_state_is_none() -> None:
    """`torch.distributed.checkpoint` steps one without state, with gradients of zero at a rate of zero."""
    model = model_of("a", "b")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = FreezeController(model, Every({"a": 3}, of="b"))
    controller.attach(optimizer)
    get_optimizer_state_dict(model, optimizer)
    controller.begin()
    train(model, optimizer, controller, 4)
    optimizer.zero_grad()
    get_optimizer_state_dict(model, optimizer)
    assert controller.updates == {"a": 2, "b": 4}
    train(model, optimizer, controller, 3, first=4)
    assert controller.end_epoch() == []
    assert controller.updates == {"a": 3, "b": 7}
    controller.detach()


def test_a_warm_up_from_zero_steps_like_any_other() -> None:
    """Also where its step is handed a closure of None by name, as that one of torch's own is."""
    model = model_of("a", "b")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    controller = FreezeController(model, Phases([Phase(["b"])]), {"a": "a", "b": "b"}, skip_backward=False)
    controller.attach(optimizer)
    controller.begin()
    for _ in range(3):
        controller.begin_step()
        optimizer.zero_grad()
        model["b"](torch.tanh(model["a"](torch.ones(2, 3)))).square().sum().backward()  # type: ignore[index]
        optimizer.step(closure=None)
    assert controller.updates == {"a": 0, "b": 3}
    assert {name for name, p in model.named_parameters() if optimizer.state[p]} == {"b.weight"}
    controller.detach()


def test_names_of_before_are_found_where_they_are_now_with_a_warning() -> None:
    controller = FreezeController(model_of("a", "b"), Every({"a": 2}, of="b"))
    for name, value in {"optimizer_state": "keep", "unlogged": {}, "awaits": None, "hears_backward": False}.items():
        with pytest.warns(DeprecationWarning, match=rf"FreezeController\.{name} is now FreezeController\.\w+"):
            assert getattr(controller, name) == value
    with pytest.raises(AttributeError, match="'FreezeController' object has no attribute 'nothing'"):
        _ = controller.nothing


def test_a_param_group_added_in_the_middle_of_a_run_freezes_and_its_module_stays_in_eval_mode() -> None:
    model: Any = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.Linear(3, 3)})
    optimizer = torch.optim.SGD([model["a"].weight, model["a"].bias, *model["b"].parameters()], lr=0.1)
    schedule = Phases([Phase(["a", "b"], updates=2), Phase(["b"])])
    with FreezeController(model, schedule, frozen_modules="eval") as controller:
        controller.attach(optimizer)
        controller.begin()
        for number in range(6):
            controller.begin_step()
            optimizer.zero_grad()
            model["b"](model["a"](torch.randn(4, 3))).sum().backward()
            if number == 3:
                optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            optimizer.step()
            assert model["a"].training == (number < 1), number
            assert controller.trainable == ({"a", "b"} if number < 1 else {"b"})
        assert controller.updates == {"a": 2, "b": 6}
        assert [finding for finding in controller.end_epoch() if finding.severity == "error"] == []


class DecaysAll(torch.optim.Optimizer):
    """Moves what has no gradient, so that what is frozen is excluded from its param groups."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
                if p.grad is not None:
                    p.add_(p.grad, alpha=-0.1)


class Child(DecaysAll):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.parametrize("closure", [False, True])
def test_a_whole_param_group_is_excluded_within_the_step_of_a_parent(closure: bool) -> None:
    """Both steps run hooks, and the param groups are fewer within."""
    DecaysAll([nn.Parameter(torch.ones(1))])  # torch hooks into the class as it makes an object
    model = model_of("a", "b")
    optimizer = Child([{"params": module.parameters()} for module in model.children()])

    def compute() -> None:
        optimizer.zero_grad()
        model["b"](model["a"](torch.ones(1, 3))).sum().backward()

    with FreezeController(model, Every({"a": 2}, of="b")) as controller:
        controller.attach(optimizer)
        controller.begin()
        for _ in range(6):
            controller.begin_step()
            optimizer.step(compute) if closure else (compute(), optimizer.step())
        assert controller.updates == {"a": 3, "b": 6}
        assert controller.end_epoch() == []
    assert len(optimizer.param_groups) == 2


def test_buffers_between_two_epochs_are_watched_by_what_was_decided() -> None:
    model: Any = nn.ModuleDict({name: nn.BatchNorm1d(3) for name in "ab"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Phases([Phase(["a"], epochs=1), Phase(["b"], epochs=1)])
    with FreezeController(model, schedule, frozen_modules="eval") as controller:
        controller.attach(optimizer)
        controller.begin()
        for epoch in range(2):
            controller.begin_step()
            optimizer.zero_grad()
            model["b"](model["a"](torch.randn(4, 3))).square().sum().backward()
            optimizer.step()
            found = [finding.parameter for finding in controller.end_epoch() if finding.severity == "error"]
            assert found == ([] if epoch == 0 else ["a.running_mean"])
            for norm in model.children():
                norm.running_mean.add_(1)  # a frozen from here on, b no longer


def test_what_a_controller_says_of_itself_stays_readable_after_its_run() -> None:
    model = model_of("a", "b")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FreezeController(model, Phases([Phase(["a"], updates=1), Phase(["b"])])) as controller:
        controller.attach(optimizer)
        controller.begin()
        controller.begin_step()
        model["b"](model["a"](torch.ones(1, 3))).sum().backward()
        optimizer.step()
    assert controller.trainable == {"b"}
    assert controller.may_train("b")
    assert controller.preview.position().updates == {"a": 1, "b": 0}
    assert controller.compare_ranks() == []
    assert list(controller.metrics) == []
    assert controller.audit.counts()["updates"] == {"a": 1, "b": 0}
    again = copy.deepcopy(controller)
    again.attach(torch.optim.SGD(again._attachment._context.module.parameters(), lr=0.1))
    assert again.updates == {"a": 0, "b": 0}
    assert controller.updates == {"a": 1, "b": 0}
    assert next(again.preview(1)).trained == {"a"}
    again.detach()
    for sizes in (controller, FreezeController(model, Every({"a": 2}, of="b"))):
        with pytest.raises(RuntimeError, match="the controller is not attached"):
            sizes.preview.sizes()


def test_traits_are_those_of_the_last_attachment_also_of_an_optimizer_that_was_refused() -> None:
    model = model_of("a", "b")
    controller = FreezeController(model, Every({"a": 2}, of="b"))
    controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert controller.traits[0].name == "SGD"
    with pytest.raises(UnsupportedError):
        controller.attach(torch.optim.LBFGS(model.parameters()))
    assert controller.traits == {}


def test_an_attachment_that_is_refused_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ranks that were given different schedules are, late, when most is set up."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = FreezeController(model, Every({"0": 2}, of="1"))

    def refuse(*_: Any) -> None:
        raise ScheduleError("the ranks do not agree")

    with monkeypatch.context() as patch:
        patch.setattr("lightning_freeze.attachment.refuse_mismatch", refuse)
        for _ in range(2):
            with pytest.raises(ScheduleError, match="the ranks do not agree"), controller:
                controller.attach(optimizer)
    assert controller.trainable == frozenset()
    controller.pause()
    with pytest.raises(RuntimeError, match="the controller is not attached"):
        controller.begin_step()
    with controller:
        controller.attach(optimizer)
        assert controller.trainable == {"0", "1"}


def test_a_controller_is_copied_when_it_is_detached() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    controller = FreezeController(model, Every({"0": 2}, of="1"))
    with controller:
        controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(
            TypeError, match=r"attached to optimizers cannot be copied or pickled.*Call `detach\(\)` before"
        ):
            copy.deepcopy(controller)
    assert copy.deepcopy(controller).updates == {"0": 0, "1": 0}


def test_a_true_zero_under_the_second_optimizer_of_a_group_is_no_finding() -> None:
    model: Any = model_of("a", "b", "c")
    model.register_parameter("bias", nn.Parameter(torch.zeros(1)))
    first = torch.optim.SGD([*model["a"].parameters(), *model["c"].parameters()], lr=0.1)
    second = torch.optim.SGD([*model["b"].parameters(), model.bias], lr=0.1)
    with FreezeController(model, Phases([Phase(["net"])]), {"net": ["a", "b", "bias"]}, rest="freeze") as controller:
        controller.attach(first, second)
        controller.begin()
        for _ in range(3):
            controller.begin_step()
            for optimizer, loss in (
                (first, lambda: model["a"](torch.ones(1, 3)).sum()),
                (second, lambda: model["b"](torch.ones(1, 3)).sum() + (model.bias - model.bias).sum()),
            ):
                first.zero_grad()
                second.zero_grad()
                loss().backward()
                optimizer.step()
        assert controller.end_epoch() == []


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize("ends", ["pause", "end_epoch", ""])
def test_a_write_between_the_update_that_freezes_and_the_next_batch(ends: str, state: Any) -> None:
    """In a loop of one's own it is found from `pause` on; an optimizer state that is dropped then is no finding."""
    model = model_of("a", "b")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = Phases([Phase(["a"], updates=2), Phase(["b"])])
    with FreezeController(model, schedule, optimizer_state=state) as controller:
        controller.attach(optimizer)
        for number in range(4):
            controller.begin_step()
            optimizer.zero_grad()
            (model["a"](torch.ones(1, 3)).sum() + model["b"](torch.ones(1, 3)).sum()).backward()
            optimizer.step()
            if number == 1:
                getattr(controller, ends or "compare_ranks")()
                model["a"].weight.data.add_(1)
        found = controller.end_epoch()
    assert [(f.kind, f.parameter, f.first_update, f.last_update) for f in found] == [
        ("value", "a.weight", 2, 2)
    ] * bool(ends)


def test_to_attach_walks_over_the_model_and_its_optimizer_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each group or parameter; and the collector runs again afterwards, also after a refusal."""
    calls: list[str] = []
    for kind in (ParamNames, OptimizerIndex):
        init = kind.__init__

        def counted(self: Any, given: Any, init: Any = init) -> None:
            calls.append(type(self).__name__)
            init(self, given)

        monkeypatch.setattr(kind, "__init__", counted)
    model = model_of(*"abcdefgh")
    with pytest.raises(SelectionError):
        FreezeController(model, Every({"a": 2}, of="b"), {"a": "nothing"})
    assert gc.isenabled()
    calls.clear()
    schedule = Every({f"layers/{name}": 2 for name in "abcdefg"}, of="layers/h")
    with FreezeController(model, schedule, {"layers": {"each": "*"}}) as controller:
        controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        controller.begin()
    assert sorted(calls) == ["OptimizerIndex", "OptimizerIndex", "ParamNames", "ParamNames"]
    assert gc.isenabled()
