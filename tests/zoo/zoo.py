"""The zoo: every optimizer that the packages at hand have, and how each is built over a model."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

Steps = Literal["closure", "plain", "after", "pair", "backward"]
"""How an optimizer is stepped: with a closure, as Lightning does; without one; with one that is called once before (SAM);
the same of one that returns outputs and loss (GSAM); or by backward alone (LOMO). All but the first are manual optimization."""

Build = Callable[[nn.Module], Optimizer]

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "pytorch_optimizer": ("pytorch_optimizer",),
    "schedulefree": ("schedulefree",),
    "bitsandbytes": ("bitsandbytes.optim",),
    "transformers": ("transformers.optimization",),
    "torch_optimizer": ("torch_optimizer",),
    "torch-optimi": ("optimi",),
    "lion-pytorch": ("lion_pytorch",),
    "prodigyopt": ("prodigyopt",),
    "dadaptation": ("dadaptation",),
}
"""Each package, as it is called on PyPI, and the modules that name its optimizers."""


@dataclass(frozen=True)
class Specimen:
    """One optimizer in one configuration.

    Args:
        package: Where it comes from.
        name: What its row is called.
        build: Makes it, over the parameters of a model.
        steps: How it is stepped.
        graph: Whether backward keeps its graph, for those that derive gradients once more.
        sparse: Whether gradients are sparse.
        bias: Whether layers have one; some take nothing but matrices.
        width: How wide the model is; 8-bit optimizers treat fewer than 4,096 elements apart.
    """

    package: str
    name: str
    build: Build
    steps: Steps = "closure"
    graph: bool = False
    sparse: bool = False
    bias: bool = True
    width: int = 8


@dataclass(frozen=True)
class _Needs:
    """What one class needs beside its parameters.

    Args:
        given: Keyword arguments.
        build: Makes it from the class and a model, where keyword arguments do not.
        how: Fields of its `Specimen`.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Any, nn.Module], Optimizer] | None = None
    how: Mapping[str, Any] = field(default_factory=dict)


def _muon(kind: Any, model: nn.Module) -> Optimizer:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return kind([{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}])


def _distributed(kind: Any, model: nn.Module) -> Optimizer:
    """Over a process group of this process alone."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return _muon(kind, model)


def _of_model(kind: Any, model: nn.Module) -> Optimizer:
    return kind(model)


def _around(kind: Any, model: nn.Module) -> Optimizer:
    return kind(AdamW(model.parameters(), lr=0.01))


def _sam(kind: Any, model: nn.Module) -> Optimizer:
    return kind(model.parameters(), base_optimizer=AdamW, lr=0.01)


def _wsam(kind: Any, model: nn.Module) -> Optimizer:
    return kind(model, model.parameters(), base_optimizer=AdamW, lr=0.01)


def _gsam(kind: Any, model: nn.Module) -> Optimizer:
    from pytorch_optimizer import ProportionScheduler

    base = AdamW(model.parameters(), lr=0.01)
    rates = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
    rates.last_lr = [0.01]
    rho = ProportionScheduler(rates, max_lr=0.02, min_lr=0.001)
    return kind(model.parameters(), base, model, rho)


_TWICE = {"graph": True}
_AFTER = {"steps": "after"}
_WRAPS = _Needs(build=_around)
NEEDS: Mapping[str, _Needs] = {
    **dict.fromkeys(("Muon", "AdaMuon", "AdaGO", "NorMuon", "MuonClip"), _Needs(build=_muon)),
    "DistributedMuon": _Needs(build=_distributed),
    **dict.fromkeys(("Lookahead", "OrthoGrad", "PCGrad", "ScheduleFreeWrapper", "Magma"), _WRAPS),
    "SafeFP16Optimizer": _WRAPS,
    "TRAC": _Needs(
        build=lambda kind, model: kind(AdamW(model.parameters(), lr=0.01), s_prev=0.01)
    ),  # at 1e-8 nothing shows
    **dict.fromkeys(("SAM", "FriendlySAM", "LookSAM"), _Needs(build=_sam, how=_AFTER)),
    "WSAM": _Needs(build=_wsam, how=_AFTER),
    "GSAM": _Needs(build=_gsam, how={"steps": "pair"}),
    "BSAM": _Needs({"num_data": 100}, how=_AFTER),
    **dict.fromkeys(("LOMO", "AdaLOMO"), _Needs(build=_of_model, how={"steps": "backward"})),
    "AdamMini": _Needs(build=_of_model),
    **dict.fromkeys(("AdaHessian", "SophiaH", "Adahessian"), _Needs(how=_TWICE)),
    "Ranger21": _Needs({"num_iterations": 100}),
    "SaRA": _Needs(
        {"threshold": 10.0, "lr": 0.01}
    ),  # it trains the weights below that: of a trained model, those that idle
    "SpectralSphere": _Needs(how={"bias": False, "width": 4}),
    "bitsandbytes.SGD": _Needs({"momentum": 0.9}),
    "bitsandbytes.LARS": _Needs({"momentum": 0.9}),
    "PytorchLARS": _Needs({"momentum": 0.9}),
}
"""By class, or by package and the beginning of a class: what the rules of `_build` do not know."""

PLAIN = {"dadaptation.DAdaptAdan", "torch_optimizer.Ranger", "torch_optimizer.RangerVA"}
"""Those that fail with a closure, or never call it."""


def specimens(*packages: str) -> Iterator[Specimen]:
    """The optimizers of these packages, by default of all, where they are installed."""
    for package in packages or PACKAGES:
        for name, kind in classes(package).items():
            yield _specimen(package, name, kind)


def classes(package: str) -> dict[str, Any]:
    """The optimizer classes of a package by their names; none where it is not installed. Torch's own are left out."""
    found: dict[str, Any] = {}
    for module in PACKAGES[package]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                held = importlib.import_module(module)
            except ImportError:
                continue
        for kind in (*_listed(held), *vars(held).values()):
            is_one = isinstance(kind, type) and issubclass(kind, Optimizer) and not inspect.isabstract(kind)
            if is_one and not kind.__module__.startswith("torch.optim"):
                found.setdefault(kind.__name__, kind)
    return dict(sorted(found.items()))


def _listed(module: Any) -> list[Any]:
    """Those that a package tells by other names than its module holds."""
    tell = getattr(module, "get_supported_optimizers", None)
    return [module.load_optimizer(name) for name in tell()] if tell else []


def versions() -> dict[str, str]:
    """The packages that are installed, and which version of each."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _specimen(package: str, name: str, kind: Any) -> Specimen:
    needs = NEEDS.get(name) or next(
        (each for key, each in NEEDS.items() if f"{package}.{name}".startswith(key)), _Needs()
    )
    how = dict(needs.how)
    if f"{package}.{name}" in PLAIN:
        how["steps"] = "plain"
    if package == "bitsandbytes":
        how["width"] = 64
    return Specimen(package, name, lambda model: _build(kind, needs, model), **how)


def _build(kind: Any, needs: _Needs, model: nn.Module) -> Optimizer:
    if needs.build is not None:
        built = needs.build(kind, model)
    else:
        rate = inspect.signature(kind).parameters.get("lr")
        given = {"lr": 0.01} if rate is not None and rate.default is inspect.Parameter.empty else {}
        built = kind(model.parameters(), **given, **needs.given)
    begin = getattr(built, "train", None)
    if callable(begin):  # schedule-free ones ask for it before the first step
        begin()
    return built
