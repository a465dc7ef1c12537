"""The one seam to Lightning, whose two packages (`pytorch_lightning`, `lightning.pytorch`) are served alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import UnsupportedError
from lightning_freeze.trainer.fsdp2_checkpoints import LateLoading, loads_later

__all__ = ["Callback", "LateLoading", "LightningModule", "Trainer", "loads_later"]
__all__ += ["rank_zero_info", "rank_zero_only", "rank_zero_warn"]

LightningModule = pl.LightningModule
Trainer = pl.Trainer

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    def _callback_base() -> type:
        """A callback that either package's Trainer and LightningCLI accept: it inherits from both."""
        if find_spec("lightning") is None:
            return pl.Callback
        try:
            from lightning.pytorch import Callback as UnifiedCallback
        except ImportError:
            return pl.Callback
        return type("Callback", (pl.Callback, UnifiedCallback), {"__module__": __name__})

    Callback = _callback_base()


def log_directory(trainer: Trainer) -> Path:
    """Where a run's files belong: the logger's directory, else ``default_root_dir``. Ranks must call it together."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def resumes(trainer: Trainer) -> bool:
    """Whether a fit goes on from a checkpoint of the user's, and not from one that Lightning's tuners made in between."""
    name = Path(str(trainer.ckpt_path)).name if trainer.ckpt_path is not None else ""
    return bool(name) and not name.startswith((".lr_find_", ".scale_batch_size_"))


def has_scaler(trainer: Trainer) -> bool:
    """Whether a GradScaler steps the optimizers."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(scaler.is_enabled())


def suspects(trainer: Trainer) -> list[str]:
    """The callbacks of a run that, by their names, average or swap weights."""
    names = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [name for name in names if any(word in name.lower() for word in ("averag", "ema", "swa"))]


def local_sgd(trainer: Trainer) -> bool:
    """Whether the strategy lets ranks go apart between averages of their weights, as post-local SGD does."""
    return getattr(trainer.strategy, "_model_averager", None) is not None


def windows_per_epoch(trainer: Trainer, module: LightningModule) -> int | None:
    """Optimizer windows in an epoch; None where the data says no length."""
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return None
    return math.ceil(batches / (trainer.accumulate_grad_batches if module.automatic_optimization else 1))


def batch_sizes_vary(trainer: Trainer) -> bool:
    """Whether the training batches of an epoch may differ in size, as far as their loaders show."""
    loaders: Any = trainer.train_dataloader
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        try:
            samples, size = len(loader.sampler), int(loader.batch_size)
        except Exception:  # an iterable dataset, a sampler of batches, or without a length; a loader of another kind
            return True
        last = samples % size and not loader.drop_last
        if last and trainer.num_training_batches > samples // size:
            return True
    return False


def may_clip(trainer: Trainer, module: LightningModule) -> bool:
    """Whether gradients may be clipped, or looked at, between the callbacks' part of a step and the step itself."""
    hooks = {"configure_gradient_clipping", "on_before_optimizer_step"}
    return trainer.gradient_clip_val is not None or any(not hooks.isdisjoint(vars(kind)) for kind in _own(module))


def clips_by_hand(module: LightningModule) -> str | None:
    """The method of a module in manual optimization that clips gradients itself, as far as its code shows."""
    return _names(module, _CLIPPERS)


def toggles_by_hand(module: LightningModule) -> str | None:
    """The method of a module that toggles optimizers, as far as its code shows."""
    return _names(module, {"toggle_optimizer", "toggled_optimizer"})


def _names(module: LightningModule, functions: set[str]) -> str | None:
    """The method of a module whose code names one of these functions."""
    for kind in _own(module):
        for name, method in vars(kind).items():
            if isinstance(method, FunctionType) and functions.intersection(method.__code__.co_names):
                return f"{kind.__name__}.{name}"
    return None


def _own(module: LightningModule) -> list[type]:
    """The classes of a module that are neither Lightning's nor torch's."""
    theirs = ("pytorch_lightning.", "lightning.", "torch.")
    return [kind for kind in type(module).__mro__ if not kind.__module__.startswith(theirs)]


_CLIPPERS = {"clip_gradients", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"}


def redirects(module: object) -> bool:
    """Whether a module's next call is one of its steps: under DDP and its like, Lightning sends them through ``forward``."""
    forward = vars(module).get("forward")
    return "_ForwardRedirection" in getattr(forward, "__qualname__", "")


def save_before_stopping(trainer: Trainer, why: str) -> str | None:
    """Save a run that is about to be stopped; where that fails, say so and return None.

    Args:
        trainer: The run's.
        why: The beginning of the checkpoint's name.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    name = f"{why}-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
    path = str(trainer.strategy.broadcast(str(log_directory(trainer) / name)))
    failed = ""
    try:
        trainer.save_checkpoint(path)
    except Exception as error:  # why it stops is what must be told; that it could not be saved is said with it
        failed = f"{type(error).__name__}: {error}"
        trainer.strategy.barrier()  # where the others wait who could save their part
    failed = next((each.strip() for each in Ranks(trainer.strategy.root_device).texts(failed) if each.strip()), "")
    if failed:
        rank_zero_warn(f"the run could not be saved to {path!r} before it stops: {failed}")
    return None if failed else path


def say(trainer: Trainer, text: str) -> None:
    """Print a line on rank zero without tearing a progress bar."""
    bar = trainer.progress_bar_callback
    if bar is not None and getattr(bar, "is_enabled", False) and trainer.training:
        bar.print(text)
    else:
        rank_zero_info(text)


class BarText:
    """A text beside a progress bar's metrics, which hold numbers only; taken away again by `remove`.

    Args:
        trainer: Its progress bar is the one.
        key: What the text is called there.
        text: Gives the text of the moment.
    """

    def __init__(self, trainer: Trainer, key: str, text: Callable[[], str]) -> None:
        self._bar: Any = trainer.progress_bar_callback
        if self._bar is None:
            return
        original = self._bar.get_metrics

        def get_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return {**original(*args, **kwargs), key: text()}

        vars(self._bar)["get_metrics"] = get_metrics

    def remove(self) -> None:
        """Take the text away."""
        if self._bar is not None and "get_metrics" in vars(self._bar):
            del vars(self._bar)["get_metrics"]
        self._bar = None


def refuse_strategy(strategy: object) -> None:
    """Refuse Lightning strategies that keep gradients where they cannot be emptied.

    Args:
        strategy: The trainer's strategy, of either Lightning package.

    Raises:
        UnsupportedError: DeepSpeed, or FSDP without original parameters.
    """
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if "DeepSpeedStrategy" in names:
        raise UnsupportedError(
            "the strategy is DeepSpeed, which keeps gradients of its own: neither an emptied gradient nor "
            "requires_grad=False holds a parameter still in ZeRO 1, 2 or 3. Use strategy='ddp', or FSDP2 through "
            "ModelParallelStrategy."
        )
    options = getattr(strategy, "kwargs", None) or getattr(strategy, "_fsdp_kwargs", None) or {}
    if "FSDPStrategy" in names and not options.get("use_orig_params", True):
        raise UnsupportedError(
            "the strategy is FSDP with use_orig_params=False, which shows only flattened parameters, so groups cannot "
            "be told apart. Use FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
        )
