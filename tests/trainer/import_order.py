"""A project that imports Lightning's packages and ours in some order: `python -m tests.trainer.import_order …`."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from typing import Any

import lightning_utilities.core.rank_zero as rank_zero
from lightning_utilities.core.rank_zero import rank_zero_deprecation

OURS = "lightning_freeze"
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}


def scheduler() -> Any:
    from lightning_freeze import Every, FreezeScheduler

    return FreezeScheduler(Every({"weight": 2}, of="bias"), {"weight": "layer.weight", "bias": "layer.bias"})


def in_a_trainer(package: Any, model: type, callback: Any) -> None:
    assert isinstance(callback, package.Callback), package
    package.Trainer(callbacks=callback, **QUIET).fit(model())
    assert callback.updates == {"weight": 2, "bias": 4}
    assert callback.findings == []


def in_a_command_line(package: Any, model: type, name: str) -> None:
    cli = import_module(f"{package.__name__}.cli").LightningCLI
    groups = "{weight: layer.weight, bias: layer.bias}"
    schedule = "{class_path: Every, init_args: {periods: {weight: 2}, of: bias}}"
    options = [f"--trainer.callbacks+={name}", f"--trainer.callbacks.groups={groups}"]
    arguments = ["fit", *options, f"--trainer.callbacks.schedule={schedule}"]
    run = cli(model, trainer_defaults=QUIET, seed_everything_default=1, save_config_callback=None, args=arguments)
    (callback,) = (c for c in run.trainer.callbacks if type(c).__name__ == "FreezeScheduler")
    assert callback.updates == {"weight": 2, "bias": 4}


def as_a_forced_callback(package: Any, model: type) -> None:
    from lightning_freeze import FreezeAudit

    class CLI(import_module(f"{package.__name__}.cli").LightningCLI):  # type: ignore[misc]
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(FreezeAudit, "audit")

    run = CLI(model, trainer_defaults=QUIET, save_config_callback=None, run=False, args=["--audit.every_n_updates=2"])
    assert any(isinstance(callback, FreezeAudit) for callback in run.trainer.callbacks)


def unchanged(package: Any) -> None:
    """The messages and deprecation warnings of the one package that a project imports are its own."""
    other = {"pytorch_lightning": "lightning", "lightning.pytorch": "pytorch_lightning"}[package.__name__]
    assert other not in sys.modules, other
    assert rank_zero.log is logging.getLogger(f"{package.__name__}.utilities.rank_zero"), rank_zero.log
    fabric = {"pytorch_lightning": "lightning_fabric", "lightning.pytorch": "lightning.fabric"}[package.__name__]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_deprecation("old")
    assert issubclass(caught[0].category, import_module(f"{fabric}.utilities.rank_zero").LightningDeprecationWarning)


def main(order: list[str]) -> None:
    early: list[Any] = []
    packages = []
    for name in order:
        before = {"lightning", "pytorch_lightning", "jsonargparse"} & sys.modules.keys()
        module = import_module(name)
        if name == OURS:
            early.append(scheduler())
            assert {"lightning", "pytorch_lightning", "jsonargparse"} & sys.modules.keys() == before
        else:
            packages.append(module)
    for package in packages:
        model = import_module(f"{package.__name__}.demos.boring_classes").BoringModel
        for callback in (*early, scheduler()):
            in_a_trainer(package, model, callback)
        in_a_command_line(package, model, "lightning_freeze.FreezeScheduler")
        in_a_command_line(package, model, "FreezeScheduler")
        as_a_forced_callback(package, model)
    if len(packages) == 1:
        unchanged(packages[0])
    print("accepted", *order)


if __name__ == "__main__":
    main(sys.argv[1:])
