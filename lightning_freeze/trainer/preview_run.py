"""A plan in Python: what a Trainer's fit will do, from copies, so that all that is given stays as it was."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.report.plan_table import Forecast
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.forecast import Horizon, forecast
from lightning_freeze.trainer.metrics_file import read_metrics
from lightning_freeze.trainer.scheduler import FreezeScheduler

_LOOPS = ["fit_loop", "fit_loop.epoch_loop"]  # which count how far a Trainer has come
_LOOPS += ["fit_loop.epoch_loop.automatic_optimization", "fit_loop.epoch_loop.manual_optimization"]
_LIMITS = ("max_epochs", "max_steps", "limit_train_batches", "overfit_batches")


def preview_run(
    trainer: seam.Trainer,
    model: seam.LightningModule,
    data: Any = None,
    *,
    updates: int | None = None,
    epochs: int | None = None,
    batches: int | None = None,
    metrics: Mapping[int, Mapping[str, float]] | Path | str | None = None,
    ckpt_path: Path | str | None = None,
) -> Forecast:
    """Show what ``trainer.fit(model, data)`` will train when, without training.

    A copy of the model is set up on one CPU, and the run's own code says what would follow; Trainer, model, data and random
    states stay as they are. No batch is read, unless the model is in manual optimization: then its copy runs one, to see
    which optimizers step when. Of a Trainer that has fitted, it shows how it would go on. A LightningCLI of your own shows it
    in its `before_fit`: ``print(preview_run(self.trainer, self.model, self.datamodule))``.

    Args:
        trainer: The Trainer, with its `FreezeScheduler`, on whatever devices.
        model: The model.
        data: A LightningDataModule or loaders of training batches; by default the model's own.
        updates: Optimizer steps to show; by default the whole run.
        epochs: Epochs to show; by default the whole run.
        batches: Training batches in an epoch of a process; by default as many as the data has.
        metrics: Epoch to the metrics logged in it, for phases that end by one, or the path of a ``metrics.csv`` of CSVLogger.
        ckpt_path: A checkpoint from which the run would go on.

    Returns:
        Its `steps`, `sizes` and `notes`; `print` prints the plan's tables, a notebook shows them, `draw` draws them.

    Raises:
        ScheduleError: There is no scheduler, or no end to what is to be shown.
        UnsupportedError: The model has no copy, or the run itself would refuse its optimizer or strategy.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from lightning_freeze import AlternatingFreeze
        >>> from lightning_freeze.demos import DigitsData, TwoLayerNet
        >>> callback = AlternatingFreeze(slow="layer1", fast="layer2", every=5)
        >>> trainer = Trainer(callbacks=[callback], max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> preview_run(trainer, TwoLayerNet(), DigitsData())
        <Forecast of TwoLayerNet: 46 updates of 2 groups>
    """
    seam.refuse_strategy(trainer.strategy)
    given = read_metrics(Path(metrics)) if isinstance(metrics, (str, Path)) else metrics or {}
    horizon = Horizon(updates, epochs, batches, trainer.num_devices * trainer.num_nodes, given)
    failed: BaseException | None = None
    with seam.isolate_rng(torch.cuda.is_initialized()), seam.log_levels_restored(), torch.enable_grad():
        for logger in seam.LOGGERS:
            logger.setLevel(logging.WARNING)
        try:
            own, beside = _trainer_like(trainer)
            copied, data = _copied(model), copy.copy(data) if isinstance(data, seam.LightningDataModule) else data
            path = str(ckpt_path) if ckpt_path is not None else None
            return forecast(own, lambda: own.fit(copied, data, ckpt_path=path), horizon, beside)
        except BaseException as error:  # raised below: Lightning restores random states only if nothing is
            failed = error
    raise failed


def _trainer_like(trainer: Any) -> tuple[seam.Trainer, list[Any]]:
    """A Trainer on one CPU that stands where another does, and the callbacks of that one which it has not."""
    scheduled = [callback for callback in trainer.callbacks if hasattr(callback, "get_accumulate_grad_batches")]
    schedulers = [callback for callback in trainer.callbacks if isinstance(callback, FreezeScheduler)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of devices that are there and not used
        own: Any = seam.trainer_class(trainer)(
            **seam.one_cpu(trainer.precision),
            **{name: getattr(trainer, name) for name in _LIMITS},
            accumulate_grad_batches=1 if scheduled else trainer.accumulate_grad_batches,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=trainer.default_root_dir,
        )
    own.callbacks += [*copy.deepcopy(scheduled), *(scheduler.copy_for(trainer, own) for scheduler in schedulers)]
    for path in _LOOPS:
        mine, theirs = attrgetter(path)(own), attrgetter(path)(trainer)
        counts = {key: value for key, value in vars(theirs).items() if key.endswith(("progress", "_that_stepped"))}
        vars(mine).update(copy.deepcopy(counts))
    return own, [callback for callback in trainer.callbacks if callback not in [*scheduled, *schedulers]]


def _copied(model: seam.LightningModule) -> seam.LightningModule:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and a preview needs a copy, so that "
            "your model stays as it is. Give the class a __deepcopy__, or run `lightning-freeze plan`."
        ) from error
