"""Optimizers with one habit each, as they are found in the wild: what they do to a parameter without a gradient."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer


class Plain(Optimizer):
    """Subtracts the gradient; what follows adds a habit to it."""

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.begin(group)
            for p in group["params"]:
                self.each(p, group)
        return loss

    def begin(self, group: dict[str, Any]) -> None:
        pass

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is not None:
            p.sub_(p.grad, alpha=group["lr"])


class FillsZeros(Plain):
    """Takes no gradient for a zero one and goes on with its momentum, as several Muons do."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
        p.sub_(momentum.mul_(0.9).add_(p.grad), alpha=group["lr"])


class CountsAll(Plain):
    """Counts the steps of every parameter, and so changes its state alone."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        self.state[p]["step"] = self.state[p].get("step", 0) + 1
        super().each(p, group)


class SyncsSlowWeights(Plain):
    """Every sixth step pulls all weights to slow ones, as a Lookahead does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr, counter=0)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def begin(self, group: dict[str, Any]) -> None:
        group["counter"] += 1

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        super().each(p, group)
        if group["counter"] % 6 == 0:
            self.state[p]["slow"].lerp_(p, 0.5)
            p.copy_(self.state[p]["slow"])


class SyncsRarely(SyncsSlowWeights):
    """Every ``sync_every`` steps, more than a probe runs without being told."""

    def __init__(self, params: Any, lr: float = 0.1, sync_every: int = 23) -> None:
        super().__init__(params, lr)
        self.sync_every = sync_every

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        Plain.each(self, p, group)
        if group["counter"] % self.sync_every == 0:
            p.mul_(0.99)


class NeedsGradients(Plain):
    """Reads every gradient without asking whether there is one."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        p.sub_(p.grad.sign(), alpha=group["lr"])  # type: ignore[union-attr]


class NeedsSome(Plain):
    """Divides by the number of gradients."""

    def begin(self, group: dict[str, Any]) -> None:
        group["scale"] = 1 / sum(p.grad is not None for p in group["params"])


class BeginsAtOnce(Plain):
    """Makes state with its group's first step, whoever has a gradient then."""

    def begin(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is not None:
            if group["step"] == 1:
                self.state[p]["average"] = torch.zeros_like(p)
            p.sub_(self.state[p]["average"].lerp_(p.grad, 0.1), alpha=group["lr"])


class BeginsOffItsPeriod(Plain):
    """Reads state that a first step has not made where that step falls on its period, as SophiaH of 2025 does."""

    def __init__(self, params: Any, lr: float = 0.1, update_period: int = 10) -> None:
        super().__init__(params, lr, update_period=update_period, step=-1)

    def begin(self, group: dict[str, Any]) -> None:
        group["step"] += 1

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is not None:
            if group["step"] and group["step"] % group["update_period"] == 0:
                self.state[p]["curvature"].lerp_(p.grad, 0.1)
            self.state[p].setdefault("curvature", p.grad.clone())
            super().each(p, group)


class GroupCounter(Plain):
    """Adam whose step is the param group's, as most third-party ones have it."""

    def begin(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is not None:
            if not self.state[p]:
                self.state[p].update(mean=torch.zeros_like(p), square=torch.zeros_like(p))
            mean, square = self.state[p]["mean"], self.state[p]["square"]
            mean.lerp_(p.grad, 0.1)
            square.lerp_(p.grad * p.grad, 0.001)
            mean, square = mean / (1 - 0.9 ** group["step"]), square / (1 - 0.999 ** group["step"])
            p.sub_(mean / (square.sqrt() + 1e-8), alpha=group["lr"])


class OneVector(Plain):
    """Steps along one vector of all that it holds, and begins anew when that changes."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.momentum = torch.zeros(sum(p.numel() for g in self.param_groups for p in g["params"]))

    def begin(self, group: dict[str, Any]) -> None:
        held = [p for each in self.param_groups for p in each["params"]]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in held])
        self.momentum = self.momentum.new_zeros(flat.numel()) if len(self.momentum) != len(flat) else self.momentum
        self.momentum.mul_(0.9).add_(flat)
        for p, part in zip(held, self.momentum.split([p.numel() for p in held]), strict=True):
            p.sub_(part.reshape(p.shape), alpha=group["lr"])

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        self.state[p]["seen"] = True


class OwnList(Plain):
    """Steps what it held when it was made, whatever its param groups hold: leaving out does not help."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.mine = [p for group in self.param_groups for p in group["params"]]

    def begin(self, group: dict[str, Any]) -> None:
        for p in self.mine:
            p.mul_(0.99)


class SwapsBeforeClosure(Plain):
    """Moves every weight before it calls its closure, and back after it, as schedule-free ones with a closure do."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.lerp_(self.state[p].setdefault("z", p.detach().clone()), 0.1)
        loss = closure()
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.state[p]["z"].sub_(p.grad, alpha=group["lr"])
        return loss


class TwoPasses(SGD):
    """Climbs along the gradients it finds, calls its closure there, and goes back only where there is a gradient: SAM."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.detach().clone()
                    p.add_(p.grad, alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old"])
        super().step()
        return loss


class StepsInBackward(Plain):
    """Updates each parameter as soon as its gradient is there, as LOMO does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(self.at_once)

    @torch.no_grad()
    def at_once(self, p: nn.Parameter) -> None:
        p.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        pass


class Wrapper(Optimizer):
    """Holds another optimizer, decays everything after its step, and leaves torch's constructor out."""

    def __init__(self, optimizer: Optimizer, decays: bool = True) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.defaults = optimizer.defaults
        self.state = defaultdict(dict)
        self.decays = decays

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)  # torch's own would let the class run hooks that its objects do not have

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            for p in group["params"] if self.decays else ():
                p.mul_(0.999)
        return loss


class DecaysAll(SGD):
    """Steps its parent, whose step runs the hooks, too, and decays everything after that, whatever the gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
        return loss


class HoldsPairs(Plain):
    """Decays its parameters by a list of its own, of pairs."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.todo = [(p, "decay") for group in self.param_groups for p in group["params"]]

    def begin(self, group: dict[str, Any]) -> None:
        for p, _ in self.todo:
            p.mul_(0.999)


class Keeper:
    """An object that holds parameters."""

    def __init__(self, held: Any) -> None:
        self.held = {str(number): {"parameter": p} for number, p in enumerate(held)}


class HoldsObject(Plain):
    """Decays its parameters through an object."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.keeper = Keeper([p for group in self.param_groups for p in group["params"]])

    def begin(self, group: dict[str, Any]) -> None:
        for each in self.keeper.held.values():
            each["parameter"].mul_(0.999)


class ByMark(Plain):
    """Fills zeros for parameters that are marked."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if getattr(p, "use_muon", False):
            FillsZeros.each(self, p, group)  # type: ignore[arg-type]
        else:
            super().each(p, group)


class Parts(Optimizer):
    """Hands its param groups, which look alike, to optimizers of different kinds."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.parts = {"muon": FillsZeros(self.param_groups[0]["params"]), "sgd": Plain(self.param_groups[1]["params"])}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for part in self.parts.values():
            part.step()
        return loss


class IgnoresClosure(Plain):
    """Takes a closure and never calls it, as Ranger of 2020 does."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.each(p, group)


class IgnoresClosureFillsZeros(IgnoresClosure):
    """The same, of one that takes no gradient for a zero one."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        FillsZeros.each(self, p, group)  # type: ignore[arg-type]


class Locked(Adam):
    """Holds what cannot be copied, and asks its constructor for what it does not keep."""

    def __init__(self, params: Any, secret: object, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.lock = threading.Lock()


class MovesNothing(Plain):
    """Only waits."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        pass


class ForMatrices(Plain):
    """Fills zeros for matrices alone."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.dim() == 2:
            FillsZeros.each(self, p, group)  # type: ignore[arg-type]
        else:
            super().each(p, group)


class ForOneGroup(Plain):
    """Fills zeros where its group says so."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if group.get("fills"):
            FillsZeros.each(self, p, group)  # type: ignore[arg-type]
        else:
            super().each(p, group)


class Draws(Plain):
    """Adds noise of the global generators to what has a gradient."""

    def each(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if p.grad is not None:
            p.sub_(p.grad + torch.randn_like(p), alpha=group["lr"])


WAYS: dict[str, tuple[Callable[[nn.Module], Optimizer], str]] = OrderedDict(
    {
        "plain": (lambda m: Plain(m.parameters()), "none"),
        "fills zeros": (lambda m: FillsZeros(m.parameters()), "excluded"),
        "counts all": (lambda m: CountsAll(m.parameters()), "excluded"),
        "syncs slow weights": (lambda m: SyncsSlowWeights(m.parameters()), "excluded"),
        "syncs rarely": (lambda m: SyncsRarely(m.parameters()), "excluded"),
        "needs gradients": (lambda m: NeedsGradients(m.parameters()), "excluded"),
        "group counter": (lambda m: GroupCounter(m.parameters()), "none"),
        "one vector": (lambda m: OneVector(m.parameters()), "refused"),
        "own list": (lambda m: OwnList(m.parameters()), "refused"),
        "swaps before closure": (lambda m: SwapsBeforeClosure(m.parameters()), "excluded"),
        "two passes": (lambda m: TwoPasses(m.parameters(), lr=0.1, momentum=0.9), "none"),
        "steps in backward": (lambda m: StepsInBackward(m.parameters()), "refused"),
        "wrapper": (lambda m: Wrapper(Adam(m.parameters(), lr=0.01)), "excluded"),
        "wrapper that leaves alone": (lambda m: Wrapper(Adam(m.parameters(), lr=0.01), decays=False), "none"),
        "for matrices": (lambda m: ForMatrices(m.parameters()), "excluded"),
        "for one group": (
            lambda m: ForOneGroup(
                [{"params": m.layer1.parameters(), "fills": True}, {"params": m.layer2.parameters()}]
            ),  # type: ignore[union-attr]
            "excluded",
        ),
        "holds pairs": (lambda m: HoldsPairs(m.parameters()), "refused"),
        "holds an object": (lambda m: HoldsObject(m.parameters()), "refused"),
        "draws": (lambda m: Draws(m.parameters()), "none"),
        "locked": (lambda m: Locked(m.parameters(), object()), "unknown"),
        "moves nothing": (lambda m: MovesNothing(m.parameters()), "unknown"),
    }
)
"""Each habit, and the way of holding that it asks for."""
