"""What is refused before a run begins, beside what concerns one hold alone: a small function for each reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Module
from torch.optim import LBFGS, Optimizer

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.optimizer_state import OptimizerState
from lightning_freeze.plan.membership import Membership, Step
from lightning_freeze.plan.schedule import Plan
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.probe.proxies import nested_optimizers
from lightning_freeze.probe.step_counters import supports_state_reset


@dataclass(frozen=True)
class Facts:
    """What is known of a run when it is given its optimizers."""

    members: Membership
    plan: Plan
    optimizer_state: OptimizerState = "keep"
    scaler: bool = False  # whether a GradScaler steps the optimizers

    def holding(self, groups: Collection[str]) -> Iterator[tuple[str, Optimizer]]:
        """Each optimizer that holds something of these groups, with its name for messages."""
        return (
            (_name(step), step.optimizer) for step in self.members.steps if not step.members.keys().isdisjoint(groups)
        )

    def fully_frozen(self) -> Iterator[tuple[Step, str]]:
        """The optimizers that can come under a GradScaler to a step with nothing to train, and why."""
        for step in self.members.steps if self.scaler else ():
            if step.members and (why := self.plan.can_be_fully_frozen(step.index)) is not None:
                yield step, why


def _name(step: Step) -> str:
    return f"optimizer {step.index} ({type(step.optimizer).__qualname__})"


def refuse_partitioned(module: Module) -> None:
    """Raise UnsupportedError for a model that ZeRO-3 has partitioned, of which optimizers hold other tensors."""
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise UnsupportedError(
                f"{clean_name(name)!r} is partitioned by DeepSpeed ZeRO-3, which keeps gradients of its own, so nothing keeps it "
                "frozen. Use DDP, or FSDP2 (`fully_shard`, ModelParallelStrategy)."
            )


def known_to_move(run: Facts) -> Iterator[str]:
    """An optimizer is known, without a probe, to move what is frozen."""
    for name, optimizer in run.holding(run.members.groups.freezable):
        if isinstance(optimizer, LBFGS):
            yield (
                f"{name} flattens all its parameters into one vector, so it moves a parameter whose gradient is None. Use "
                "another optimizer for the groups that freeze (AdamW, SGD), or give LBFGS only parameters of `rest` with "
                "`rest: train`."
            )
        if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            yield (
                f"{name} has no step hooks, so nothing can be held right before its step. Let its class inherit from "
                "torch.optim.Optimizer."
            )


def state_out_of_reach(run: Facts) -> Iterator[str]:
    """An `optimizer_state` is not supported by an optimizer, or for shards."""
    if run.optimizer_state == "keep":
        return
    wanted = {id(parameter): parameter for parameter in run.members.scheduled}
    if run.optimizer_state == "offload" and any(hasattr(parameter, "to_local") for parameter in wanted.values()):
        yield (
            "`optimizer_state` is 'offload', and parameters are sharded over processes (DTensor), whose state is not moved "
            "yet. Use `optimizer_state: keep` or `reset`, or FSDP2's own CPUOffloadPolicy."
        )
    for name, optimizer in run.holding(run.members.groups.freezable):
        for reason in _reasons_to_keep(run.optimizer_state, optimizer, wanted.keys()):
            yield f"`optimizer_state` is {run.optimizer_state!r}, and {name} {reason}. Use `optimizer_state: keep`."


def _reasons_to_keep(mode: OptimizerState, optimizer: Optimizer, wanted: Collection[int]) -> Iterator[str]:
    if len({id(member.state) for member in nested_optimizers(optimizer)}) > 1:
        yield "wraps another, so that state is in two places"
    if not hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):
        yield "runs no hooks when it is saved"
    for group in optimizer.param_groups:
        held = mode == "reset" and any(id(parameter) in wanted for parameter in group["params"])
        if held and (why := supports_state_reset(optimizer, group)) is not None:
            yield f"does not support a state reset: {why}"


def without_a_rate(run: Facts) -> Iterator[str]:
    """A param group has no learning rate that a factor could multiply."""
    for name, optimizer in run.holding(run.plan.rated):
        if isinstance(optimizer, LBFGS):
            yield (
                f"the schedule sets learning rates (`lr` or `ramp`) of what {name} holds, which has one param group and "
                "reads its rate before anything can be changed. Take those groups out of `lr`."
            )
        for group in optimizer.param_groups:
            if not isinstance(group.get("lr"), (int, float, Tensor)):
                yield (
                    f"the schedule sets learning rates (`lr` or `ramp`), and {name} has `lr`: {group.get('lr')!r} in a "
                    "param group, which is not a number. Give the optimizer a learning rate, or take `lr` and `ramp` out "
                    "of the schedule."
                )


def fused_under_a_scaler(run: Facts) -> Iterator[str]:
    """torch's GradScaler fails for a fused optimizer that comes to a step without any gradient."""
    for step, why in run.fully_frozen():
        if getattr(step.optimizer, "_step_supports_amp_scaling", False):
            yield (
                f"{_name(step)} is fused and steps under a GradScaler, and {why}; without any gradient torch's scaler fails in the "
                "middle of training (\"No inf checks were recorded\"). Use `fused=False`, precision 'bf16-mixed' (which "
                "needs no scaler), or a schedule in which one of its groups always trains."
            )


REFUSALS = (known_to_move, state_out_of_reach, without_a_rate, fused_under_a_scaler)
"""In order. What comes before there are facts is refused elsewhere: a strategy, by `trainer/seam.py`; a DeepSpeed engine,
by `unwrapped`; what ZeRO-3 has partitioned, above; what cannot be indexed, by `ParamNames` and `Membership`."""


def refuse(run: Facts) -> None:
    """Raise UnsupportedError for the first reason not to begin a run."""
    for why in (why for refusal in REFUSALS for why in refusal(run)):
        raise UnsupportedError(why)
