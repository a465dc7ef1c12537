"""Each refusal of a run, with its text; and what comes close and is not refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import Every, FreezeController, Phase, Phases, UnsupportedError
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.membership import Membership
from lightning_freeze.probe.refusals import REFUSALS, Facts, refuse

FIRST_A, RATED = Phases([Phase(["a"], updates=1), Phase(["b"])]), Phases([Phase(["a"], lr={"a": 0.5})])
TURNS = Phases([Phase(["a"], updates=1), Phase(["b"], updates=1)], repeat=True)


class MakesItsStateAtOnce(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros_like(parameter)

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["sum"] += parameter.grad


class CountsForTheGroup(torch.optim.SGD):
    """Its rate falls with the steps of the param group."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad, alpha=group["lr"] / group["count"])


class Around:
    """No optimizer of torch's, and no hooks."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.state: dict[Any, Any] = {}


class Hooked(Around):
    _optimizer_step_pre_hooks: dict[int, Any] = {}


class Wraps(torch.optim.SGD):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.inner = torch.optim.Adam(self.param_groups[0]["params"])


class Fused(torch.optim.SGD):
    _step_supports_amp_scaling = True


class WithoutARate(torch.optim.SGD):
    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.param_groups[0]["lr"] = None


class Shard(nn.Parameter):
    def to_local(self) -> None: ...


def model_of(kind: Callable[[torch.Tensor], nn.Parameter] = nn.Parameter, dtype: Any = torch.float32) -> nn.Module:
    model = nn.Module()
    model.a, model.b = kind(torch.ones(2, dtype=dtype)), kind(torch.ones(2, dtype=dtype))
    return model


def facts(
    kind: Any, mode: Any = "keep", schedule: Any = FIRST_A, scaler: bool = False, model: Any = None, **options: Any
) -> Facts:
    """A run of two parameters in one optimizer."""
    model = model or model_of()
    members = Membership(model, group_parameters(model, {"a": "a", "b": "b"}), [kind(model.parameters(), **options)])
    return Facts(members, schedule.bind(members.layout), mode, scaler)


SGD, LBFGS = torch.optim.SGD, torch.optim.LBFGS
REFUSED: list[tuple[str, Callable[[], Facts], str]] = [
    (
        "known_to_move",
        lambda: facts(LBFGS),
        "optimizer 0 (LBFGS) flattens all its parameters into one vector, so it moves a parameter whose gradient is None. "
        "Use another optimizer for the groups that freeze (AdamW, SGD), or give LBFGS only parameters of `rest` with `rest: "
        "train`.",
    ),
    (
        "known_to_move",
        lambda: facts(Around),
        "optimizer 0 (Around) has no step hooks, so nothing can be held right before its step. Let its class inherit from "
        "torch.optim.Optimizer.",
    ),
    (
        "state_out_of_reach",
        lambda: facts(SGD, "offload", model=model_of(Shard)),
        "`optimizer_state` is 'offload', and parameters are sharded over processes (DTensor), whose state is not moved yet. "
        "Use `optimizer_state: keep` or `reset`, or FSDP2's own CPUOffloadPolicy.",
    ),
    (
        "state_out_of_reach",
        lambda: facts(Wraps, "offload"),
        "`optimizer_state` is 'offload', and optimizer 0 (Wraps) wraps another, so that state is in two places. Use "
        "`optimizer_state: keep`.",
    ),
    (
        "state_out_of_reach",
        lambda: facts(Hooked, "offload"),
        "`optimizer_state` is 'offload', and optimizer 0 (Hooked) runs no hooks when it is saved. Use `optimizer_state: "
        "keep`.",
    ),
    (
        "state_out_of_reach",
        lambda: facts(CountsForTheGroup, "reset", lr=0.1),
        "`optimizer_state` is 'reset', and optimizer 0 (CountsForTheGroup) does not support a state reset: its first update "
        "is not that of a new optimizer: it keeps a step counter or an average for the whole param group. Use "
        "`optimizer_state: keep`.",
    ),
    (
        "state_out_of_reach",
        lambda: facts(MakesItsStateAtOnce, "reset"),
        "`optimizer_state` is 'reset', and optimizer 0 (MakesItsStateAtOnce) does not support a state reset: KeyError: "
        "'sum'. Use `optimizer_state: keep`.",
    ),
    (
        "without_a_rate",
        lambda: facts(LBFGS, schedule=RATED),
        "the schedule sets learning rates (`lr` or `ramp`) of what optimizer 0 (LBFGS) holds, which has one param group and "
        "reads its rate before anything can be changed. Take those groups out of `lr`.",
    ),
    (
        "without_a_rate",
        lambda: facts(WithoutARate, schedule=RATED),
        "the schedule sets learning rates (`lr` or `ramp`), and optimizer 0 (WithoutARate) has `lr`: None in a param group, "
        "which is not a number. Give the optimizer a learning rate, or take `lr` and `ramp` out of the schedule.",
    ),
    (
        "fused_under_a_scaler",
        lambda: fused_and_idle(),
        "optimizer 1 (Fused) is fused and steps under a GradScaler, and in the phase that trains ['a'] all its groups are "
        'frozen; without any gradient torch\'s scaler fails in the middle of training ("No inf checks were recorded"). Use '
        "`fused=False`, precision 'bf16-mixed' (which needs no scaler), or a schedule in which one of its "
        "groups always trains.",
    ),
]


def fused_and_idle(second: Any = Fused, scaler: bool = True) -> Facts:
    model: Any = model_of()
    optimizers = [SGD([model.a]), second([model.b])]
    members = Membership(model, group_parameters(model, {"a": "a", "b": "b"}), optimizers)
    return Facts(members, FIRST_A.bind(members.layout), scaler=scaler)


def said(run: Facts, name: str) -> list[str]:
    """What one refusal says."""
    return list(next(refusal for refusal in REFUSALS if refusal.__name__ == name)(run))


@pytest.mark.parametrize(("name", "run", "text"), REFUSED)
def test_it_is_refused(name: str, run: Callable[[], Facts], text: str) -> None:
    assert said(run(), name)[:1] == [text]
    with pytest.raises(UnsupportedError):
        refuse(run())


def test_what_deepspeed_has_partitioned_is_named_though_no_optimizer_holds_it() -> None:
    model: Any = model_of()
    model.b.ds_id = 0
    controller = FreezeController(model, Every({"a": 2}, of="b"))
    with pytest.raises(UnsupportedError) as caught:
        controller.attach(SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    assert str(caught.value) == (
        "'b' is partitioned by DeepSpeed ZeRO-3, which keeps gradients of its own, so nothing keeps it frozen. Use DDP, or "
        "FSDP2 (`fully_shard`, ModelParallelStrategy)."
    )


def test_each_refusal_is_in_the_table() -> None:
    assert [refusal.__name__ for refusal in REFUSALS] == list(dict.fromkeys(name for name, _, _ in REFUSED))


ACCEPTED: dict[str, Callable[[], Facts]] = {
    "plain": lambda: facts(SGD),
    "state is kept": lambda: facts(MakesItsStateAtOnce),
    "state is kept in shards": lambda: facts(SGD, "reset", model=model_of(Shard)),
    "no rate is set": lambda: facts(WithoutARate),
    "not fused": lambda: fused_and_idle(SGD),
    "fused, without a scaler": lambda: fused_and_idle(scaler=False),
    "always something to train": lambda: facts(Fused, schedule=TURNS, scaler=True),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_not_refused(name: str) -> None:
    refuse(ACCEPTED[name]())


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "Adagrad", "Adafactor", "NAdam", "RMSprop", "Rprop", "Adadelta"]
)
def test_torchs_own_support_a_state_reset(name: str) -> None:
    assert said(facts(getattr(torch.optim, name), "reset"), "state_out_of_reach") == []


@pytest.mark.parametrize("lr", [0.0, 1e-9])
def test_a_rate_at_which_nothing_moves_hides_no_step_counter(lr: float) -> None:
    run = facts(CountsForTheGroup, "reset", lr=lr, model=model_of(dtype=torch.bfloat16))
    assert "step counter" in said(run, "state_out_of_reach")[0]


def test_the_trial_leaves_every_random_state_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds the devices, too"))
    before = torch.get_rng_state()
    refuse(facts(torch.optim.Adam, "reset"))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_an_optimizer_of_what_freezes_or_is_rated_counts() -> None:
    model: Any = model_of()
    optimizers = [torch.optim.Adam([model.a]), LBFGS([model.b])]
    members = Membership(model, group_parameters(model, {"a": "a"}), optimizers)
    for schedule in (Every({"a": 2}), RATED):
        refuse(Facts(members, schedule.bind(members.layout), "reset"))


def test_a_run_is_refused_before_its_optimizers_are_probed() -> None:
    controller = FreezeController(model := model_of(), FIRST_A)
    with pytest.raises(UnsupportedError, match="flattens all its parameters"):
        controller.attach(LBFGS(model.parameters()))
    assert controller.traits == {}


def test_an_optimizer_that_does_not_show_what_it_holds() -> None:
    controller = FreezeController(model_of(), FIRST_A)
    with pytest.raises(UnsupportedError, match=r"^optimizer 0 \(object\) has no `param_groups`, .* that it wraps\.$"):
        controller.attach(object())  # type: ignore[arg-type]
