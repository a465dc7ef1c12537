"""The seam to Lightning: its packages `pytorch_lightning` and `lightning.pytorch` are served alike, and named here only.

Importing one package after the other moves Lightning's ``rank_zero_*`` messages to the other's logger and changes the
class of its deprecation warnings. So this file imports neither: it uses what the project has imported.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.patch import Patch
from lightning_freeze.holds.run_context import RunContext

__all__ = ["Callback", "DummyLogger", "LightningArgumentParser", "LightningCLI", "LightningDataModule"]
__all__ += ["LightningModule", "MisconfigurationException", "Trainer", "isolate_rng", "rank_zero_info"]
__all__ += ["rank_zero_warn"]

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
LOGGERS = [logging.getLogger(name) for name in PACKAGES]
_MODULES = dict.fromkeys(("LightningModule", "LightningDataModule", "Trainer"), "")
_MODULES |= {"LightningCLI": ".cli", "LightningArgumentParser": ".cli", "DummyLogger": ".loggers.logger"}
_MODULES |= {"MisconfigurationException": ".utilities.exceptions", "isolate_rng": ".utilities.seed"}
_PREFIXES = tuple(f"{package}." for package in PACKAGES)
# The CPU has none of these precisions; what takes their place has the same bytes.
_PRECISIONS = {
    **dict.fromkeys(("16-true", "transformer-engine", "transformer-engine-float16"), "bf16-true"),
    **dict.fromkeys(("16", "16-mixed"), "32-true"),
}
_ONE_CPU = {
    **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False},
    **{"enable_model_summary": False, "num_sanity_val_steps": 0, "plugins": None, "profiler": None},
}
RUNS = "freeze_runs"  # the folder of records where no logger has one
CLIPPING = {"clip_gradients", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"}

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
    from pytorch_lightning.loggers.logger import DummyLogger
    from pytorch_lightning.utilities.seed import isolate_rng


class _NoCallback:
    """The base of `Callback` while no Lightning package is imported: `object` cannot be exchanged."""


if not TYPE_CHECKING:

    class Callback(_NoCallback):
        """A callback of every Lightning package that is imported, now or later."""

    def __getattr__(name: str) -> Any:
        """A class of the package that the project uses; imports `pytorch_lightning` where it uses neither yet."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        package = next((package for package in PACKAGES if package in sys.modules), PACKAGES[0])
        return getattr(import_module(package + _MODULES[name]), name)


class _ImportHook:
    """Calls functions with a module as soon as it is imported.

    `Callback` inherits so from a Lightning package's own. A Trainer asks ``isinstance``, a LightningCLI ``issubclass``, and
    jsonargparse finds short names by ``__subclasses__``: only real inheritance answers all three. In every order of
    imports, only the import itself comes before them: the entry point of callbacks, for one, is called after the command
    line was parsed.
    """

    calls: dict[str, list[Callable[[ModuleType], None]]] = {}  # by the module's name

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, for those modules; executing it makes the calls."""
        if name not in cls.calls:
            return None
        others = sys.meta_path[sys.meta_path.index(cls) + 1 :]  # one of this file's, executed before, is among them
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for call in cls.calls[name]:
                    call(module)

            vars(spec.loader)["exec_module"] = exec_module
        return spec


def when_imported(name: str, call: Callable[[ModuleType], None]) -> None:
    """Call a function with a module: now where it is imported already, and each time that it is from here on."""
    _ImportHook.calls.setdefault(name, []).append(call)
    if name in sys.modules:
        call(sys.modules[name])


def _add_base(module: ModuleType) -> None:
    """Add a package's callback to the bases of `Callback`."""
    bases = [base for base in Callback.__bases__ if base is not _NoCallback]
    Callback.__bases__ = (*bases, module.Callback)


sys.meta_path.insert(0, _ImportHook)
for _name in PACKAGES:
    when_imported(f"{_name}.callbacks.callback", _add_base)


def one_cpu(precision: Any) -> dict[str, Any]:
    """The arguments of a Trainer in one process on the CPU, in place of those of a run in some precision."""
    return {**_ONE_CPU, "precision": _PRECISIONS.get(str(precision), precision)}


@contextmanager
def log_levels_restored(loggers: Sequence[logging.Logger] = LOGGERS) -> Iterator[None]:
    """Restore the levels of some loggers; by default Lightning's."""
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def trainer_class(trainer: Trainer) -> type[Trainer]:
    """Lightning's own class of a Trainer, of its package."""
    return next(c for c in type(trainer).__mro__ if c.__name__ == "Trainer" and c.__module__.startswith(_PREFIXES))


def log_directory(trainer: Trainer) -> Path:
    """The logger's directory, else ``default_root_dir``. All ranks must call it together."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def record_directory(trainer: Trainer) -> Path:
    """Where records of runs are written: the logger's directory, else a folder of their own. All ranks must call it."""
    directory = trainer.log_dir if trainer.loggers else None
    return Path(directory) if directory is not None else Path(trainer.default_root_dir) / RUNS


def resumes(trainer: Trainer) -> bool:
    """Whether a fit resumes from a checkpoint of the user's, not from one of Lightning's tuners."""
    name = Path(str(trainer.ckpt_path)).name if trainer.ckpt_path is not None else ""
    return bool(name) and not name.startswith((".lr_find_", ".scale_batch_size_"))


def has_scaler(trainer: Trainer) -> bool:
    """Whether a GradScaler steps the optimizers."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(scaler.is_enabled())


def averaging_callbacks(trainer: Trainer) -> list[str]:
    """The callbacks that, by their names, average or swap weights."""
    names = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [name for name in names if any(word in name.lower() for word in ("averag", "ema", "swa"))]


def run_context(trainer: Trainer, module: LightningModule) -> RunContext:
    """What is known of a fit before its first step."""
    return RunContext(
        module,
        trainer.strategy.model or module,
        trainer.world_size,
        manual_optimization=not module.automatic_optimization,
        toggles=method_that_names(module, {"toggle_optimizer", "toggled_optimizer"}),
        strategy=type(trainer.strategy).__name__,
        precision=str(trainer.precision),
        versions={"lightning": _package(trainer)},
        device=trainer.strategy.root_device,
        local_sgd=getattr(trainer.strategy, "_model_averager", None) is not None,
        hook=lambda: getattr(module, "_current_fx_name", None),
        optimizers=lambda: trainer.optimizers,
    )


def _package(trainer: Trainer) -> str:
    """The Lightning package that a Trainer is of, and its version."""
    homes = {kind.__module__ for kind in type(trainer).__mro__}
    name = next((name for name in PACKAGES if any(home.startswith(name) for home in homes)), "")
    return f"{name} {version(name.partition('.')[0].replace('_', '-'))}" if name else ""


def windows_per_epoch(trainer: Trainer, module: LightningModule) -> int | None:
    """The accumulation windows of an epoch; None where the data has no length."""
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return None
    return math.ceil(batches / (trainer.accumulate_grad_batches if module.automatic_optimization else 1))


def batch_sizes_vary(trainer: Trainer) -> bool:
    """Whether the training batches of an epoch may differ in size."""
    loaders: Any = trainer.train_dataloader
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        try:
            samples, size = len(loader.sampler), int(loader.batch_size)
        except Exception:  # an iterable dataset, a sampler of batches or without a length, another kind of loader
            return True
        last = samples % size and not loader.drop_last
        if last and trainer.num_training_batches > samples // size:
            return True
    return False


def may_clip(trainer: Trainer, module: LightningModule) -> bool:
    """Whether gradients may be clipped or read between the callbacks' hook and the step."""
    hooks = {"configure_gradient_clipping", "on_before_optimizer_step"}
    return trainer.gradient_clip_val is not None or any(not hooks.isdisjoint(vars(c)) for c in _user_classes(module))


def method_that_names(module: LightningModule, functions: set[str]) -> str | None:
    """The method of a module whose code names one of some functions."""
    for user_class in _user_classes(module):
        for name, method in vars(user_class).items():
            if isinstance(method, FunctionType) and functions.intersection(method.__code__.co_names):
                return f"{user_class.__name__}.{name}"
    return None


def _user_classes(module: LightningModule) -> list[type]:
    """The classes of a module that are neither Lightning's nor torch's."""
    return [c for c in type(module).__mro__ if not c.__module__.startswith((*_PREFIXES, "torch."))]


def logs_later(trainer: Trainer, module: LightningModule, callback: Callback) -> bool:
    """Whether the model, or a later callback, may log at an epoch's end after a callback did."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    later = callbacks[callbacks.index(callback) + 1 :] if callback in callbacks else []
    hooks = [type(each).on_train_epoch_end for each in (module, *later)]
    return not all(hook.__module__.startswith(_PREFIXES) for hook in hooks)


def redirects(module: object) -> bool:
    """Whether a module's next call is one of its steps, which strategies send through ``forward``."""
    forward = vars(module).get("forward")
    return "_ForwardRedirection" in getattr(forward, "__qualname__", "")


def save_before_stopping(trainer: Trainer, name: str) -> str | None:
    """Save a run that is about to stop, under a name; returns the path, None where that failed."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    file = f"{name}-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
    path = str(trainer.strategy.broadcast(str(log_directory(trainer) / file)))
    failed = ""
    try:
        trainer.save_checkpoint(path)
    except Exception as error:  # the reason for stopping comes first; that this failed is a warning beside it
        failed = f"{type(error).__name__}: {error}"
        trainer.strategy.barrier()  # where the ranks wait that could save their part
    failed = next((each.strip() for each in Ranks(trainer.strategy.root_device).texts(failed) if each.strip()), "")
    if failed:
        rank_zero_warn(f"the run could not be saved to {path!r} before it stops: {failed}")
    return None if failed else path


def say(trainer: Trainer, text: str) -> None:
    """Print on rank zero without tearing a progress bar."""
    bar: Any = trainer.progress_bar_callback  # where tqdm's has not begun to train, it prints nothing
    if getattr(bar, "is_enabled", False) and getattr(bar, "_train_progress_bar", bar) is not None:
        bar.print(text)
    else:
        rank_zero_info(text)


def how_to_go_on(trainer: Trainer) -> str:
    """The call, or under a LightningCLI the option, that goes on from a run's last checkpoint."""
    names = ("_last_checkpoint_saved", "last_model_path", "best_model_path")
    saved = (str(getattr(callback, name, "")) for callback in trainer.checkpoint_callbacks for name in names)
    path = next(filter(None, saved), "").removeprefix(f"{Path.cwd()}/")  # short enough for a line
    if not path:
        return "No checkpoint was saved."
    cli = any(type(each).__name__ == "SaveConfigCallback" for each in trainer.callbacks)  # type: ignore[attr-defined]
    how = f", add to the command: --ckpt_path={quote(path)}" if cli else f": trainer.fit(model, ckpt_path={path!r})"
    return f"To go on from the last checkpoint{how}"


def add_bar_text(trainer: Trainer, key: str, text: Callable[[], str]) -> Callable[[], object]:
    """Show a text beside a progress bar's metrics, which hold numbers only; returns what removes it."""
    bar: Any = trainer.progress_bar_callback
    if bar is None:
        return lambda: None

    def with_text(original: Callable[..., Any], users: Callable[[], Iterator[Any]]) -> Callable[..., Any]:
        return lambda *args, **kwargs: {
            **original(*args, **kwargs),
            **{k: t() for k, t in zip([key], users(), strict=False)},
        }

    return Patch.of(bar, "get_metrics", with_text).add(text)


def refuse_strategy(strategy: object) -> None:
    """Raise UnsupportedError for strategies whose gradients cannot be set to None; before one has wrapped the model."""
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if "DeepSpeedStrategy" in names:
        raise UnsupportedError(
            "the strategy is DeepSpeed, which keeps gradients of its own: in ZeRO 1, 2 or 3 a parameter moves even if its "
            "gradient is None or requires_grad=False. Use strategy='ddp', or FSDP2 through ModelParallelStrategy."
        )
    options = getattr(strategy, "kwargs", None) or getattr(strategy, "_fsdp_kwargs", None) or {}
    if "FSDPStrategy" in names and not options.get("use_orig_params", True):
        raise UnsupportedError(
            "the strategy is FSDP with use_orig_params=False, which shows flattened parameters only, without groups. Use "
            "FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
        )
