"""Whatever ends a fit, and in whichever hook of whom: everything is as before it, or as without us, but for Lightning's own.

The same fit runs without our callbacks; what that changes (Lightning leaves a model in eval mode that failed in
validation, and ignores SIGINT after an interrupt) is not ours.
"""

from __future__ import annotations

import errno
import gc
import itertools
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze import FreezeAudit, FreezeScheduler, InputAudit, Phase, Phases
from lightning_freeze.holds.backward import SkipBackward
from lightning_freeze.holds.eval_mode import EvalModes
from lightning_freeze.holds.patch import Patch
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.report.records import FILE_NAME, Recorder
from lightning_freeze.trainer.boundaries import _Boundaries
from tests.conftest import batches, make_trainer
from tests.probe.planted_optimizers import FillsZeros
from tests.process_state import changes, state


class Model(pl.LightningModule):
    """Modes, attention and batch statistics below a head; its optimizer is made with it."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
        self.attention = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.optimizer = make(self.parameters(), lr=0.01)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = self.attention(self.body(batch[0]).unsqueeze(1)).squeeze(1)
        loss = nn.functional.mse_loss(self.head(x), batch[1])
        self.log("loss", loss)
        return loss

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return self.optimizer


class Logger(pl.loggers.logger.DummyLogger):
    """Writes nothing."""


class Own(pl.Callback):
    """A callback of the user's."""


class AlsoFails(Own):
    """Has an error of its own for every error."""

    def on_exception(self, *args: Any) -> None:
        raise RuntimeError("cannot reach the tracking server")


def scheduler(**options: Any) -> list[pl.Callback]:
    turns = Phases([Phase(["body"], updates=2, lr={"body": 0.5}), Phase(["head"], updates=1)], repeat=True)
    return [FreezeScheduler(turns, {"body": "body", "head": "head"}, frozen_modules="eval", **options)]


OURS: dict[str, tuple[Callable[..., Any], Callable[[], list[pl.Callback]]]] = {
    "scheduler": (torch.optim.AdamW, scheduler),
    "frozen rest": (torch.optim.SGD, lambda: scheduler(rest="freeze", optimizer_state="reset")),
    "excluded": (FillsZeros, lambda: [*scheduler(audit=False), InputAudit()]),
    "audits": (torch.optim.AdamW, lambda: [FreezeAudit(inputs=False), InputAudit()]),
}

_NEVER = ("test", "predict", "load")  # not in a fit that begins
CALLBACK = [n for n in dir(pl.Callback) if n.startswith("on_") or n in ("setup", "teardown", "state_dict")]
HOOKS = {
    "before": CALLBACK,
    "after": CALLBACK,
    "module": [
        *(name for name in dir(pl.LightningModule) if name.startswith("on_") and "gpu" not in name),
        *(
            "training_step",
            "validation_step",
            "configure_optimizers",
            "optimizer_step",
            "backward",
            "setup",
            "teardown",
        ),
        *("optimizer_zero_grad", "configure_gradient_clipping", "train_dataloader", "log"),
    ],
    "logger": ["log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint"],
    "optimizer": ["step", "zero_grad", "state_dict"],
    "data": ["__getitem__"],
    "loader": ["__iter__", "__len__"],
}
ERRORS = (ValueError, KeyboardInterrupt, SystemExit)
PLACES = [(who, hook) for who, hooks in HOOKS.items() for hook in hooks if not any(word in hook for word in _NEVER)]
TABLE = [*itertools.product(PLACES, ERRORS, (False, True), (False, True))]
Row = tuple[tuple[str, str], type[BaseException], bool, bool]


def raising(owner: Any, name: str, error: type[BaseException], number: int) -> None:
    """Let a method raise in that call of it, before or after what it does."""
    method, calls = getattr(owner, name), itertools.count(1)

    def bomb(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == number
        if now and number % 2:
            raise error("planned")
        result = method(*args, **kwargs)
        if now:
            raise error("planned")
        return result

    if isinstance(owner, type):
        setattr(owner, name, bomb)
    else:
        vars(owner)[name] = bomb


class Party:
    """Who takes part in a fit, one of whom raises."""

    def __init__(self, row: Row, ours: str | None, kind: str, number: int, root: Path) -> None:
        (who, hook), error, _, fails = row
        make, callbacks = OURS[kind]
        self.model = Model(make)
        self.model.head.bias.requires_grad_(False)  # the user's own, as is the next line
        self.model.attention.norm2.train(hook == "on_validation_model_train")  # which calls `train()`
        tensors: Any = batches(5).dataset
        data = type("Data", (type(tensors),), {})(*tensors.tensors)
        self.loader = type("Loader", (DataLoader,), {})(data, batch_size=4)
        self.parties: dict[str, Any] = {"before": Own(), "after": Own(), "module": self.model, "logger": Logger()}
        self.parties |= {"optimizer": self.model.optimizer, "data": type(data), "loader": type(self.loader)}
        also = [AlsoFails()] if fails else []
        row_of_callbacks = [self.parties["before"], *also, *(callbacks() if ours else []), self.parties["after"]]
        checkpoints = pl.callbacks.ModelCheckpoint(root / "saved", every_n_train_steps=2)
        self.trainer = make_trainer(
            root,
            *row_of_callbacks,
            checkpoints,
            max_epochs=2,
            logger=self.parties["logger"],
            enable_checkpointing=True,
            num_sanity_val_steps=1,
            log_every_n_steps=1,
        )
        raising(self.parties[who], hook, error, number)

    def fit(self) -> BaseException | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.trainer.fit(self.model, self.loader, batches(1))
        except BaseException as error:
            return error
        return None

    def facts(self) -> dict[str, Any]:
        """What is to be as before the fit, or as after one without us."""
        optimizer = self.model.optimizer
        shared = [self.trainer, self.trainer.strategy, self.trainer.fit_loop, self.trainer.progress_bar_callback]
        objects = [*shared, *self.parties.values(), *self.trainer.callbacks, *self.model.modules()]  # type: ignore[attr-defined]
        names = {id(p): name for name, p in self.model.named_parameters()}
        return {
            "requires_grad": {name: p.requires_grad for name, p in self.model.named_parameters()},
            "modes": {name: module.training for name, module in self.model.named_modules()},
            "hooks of modules": [
                (name, key, len(value))
                for name, module in self.model.named_modules()
                for key, value in vars(module).items()
                if key.endswith("_hooks") and value
            ],
            "hooks of tensors": [n for n, p in self.model.named_parameters() if p._backward_hooks],
            "hooks of the optimizer": {k: len(v) for k, v in vars(optimizer).items() if k.endswith("_hooks") and v},
            "patches": [
                (type(each).__name__, name)
                for each in objects
                if each is not None and not type(each).__module__.startswith("lightning_freeze")
                for name, value in vars(each).items()
                if getattr(value, "__module__", None) and str(value.__module__).startswith("lightning_freeze")
            ],
            "callbacks": [type(callback).__name__ for callback in self.parties.values()],
            "param_groups": [
                {key: [names[id(p)] for p in value] if key == "params" else value for key, value in group.items()}
                for group in optimizer.param_groups
            ],
            "state": all(id(p) in names and isinstance(state, dict) for p, state in optimizer.state.items()),
            "attention": torch.backends.mha.get_fastpath_enabled(),
            "collector": gc.isenabled(),
            "signals": {
                number: str(signal.getsignal(number)).partition(" at 0x")[0] for number in signal.valid_signals()
            },
        }


def fill(patch: pytest.MonkeyPatch, room: int) -> None:
    """Let the disk be full after so many writes of ours."""
    opens, saves, left = Path.open, pl.Trainer.save_checkpoint, iter(range(room))

    def write() -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_file(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == FILE_NAME:
            write()
        return opens(path, *args, **kwargs)

    def save(trainer: pl.Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith("freeze-"):
            write()
        saves(trainer, path, *args, **kwargs)

    patch.setattr(Path, "open", open_file)
    patch.setattr(pl.Trainer, "save_checkpoint", save)


Chance = tuple[str, int, int]
"""Who of ours takes part, in which call the error comes, and how many writes the disk has room for."""


def chance(seed: int) -> Chance:
    draw = random.Random(seed)
    return draw.choice([*OURS]), draw.randint(1, 3), draw.randint(0, 3)


def left_over(row: Row, drawn: Chance, root: Path) -> list[str]:
    """What a fit leaves changed that it does not leave without us."""
    (kind, number, room), process = drawn, state()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    found: dict[str | None, tuple[dict[str, Any], dict[str, Any], BaseException | None]] = {}
    for ours in (None, kind):
        with pytest.MonkeyPatch.context() as patch:
            party = Party(row, ours, kind, number, root / str(ours))
            if row[2] and ours:
                fill(patch, room)
            before = party.facts()
            error = party.fit()
            found[ours] = before, party.facts(), error
            for signum, handler in handlers.items():
                if signal.getsignal(signum) is not handler and handler is not None:
                    signal.signal(signum, handler)
    before, after, error = found[kind]
    _, without, expected = found[None]
    problems = [
        f"{name}: {before[name]} became {after[name]}, and {without[name]} without us"
        for name in before
        if not _kept(before[name], after[name], without[name])
    ]
    if type(error) is not type(expected) or str(error) != str(expected):
        problems.append(f"raised {error!r} and {expected!r} without us")
    return problems + changes(process)


def _kept(before: Any, after: Any, without: Any) -> bool:
    """As before or as without us, each entry of a mapping by itself."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return all(after.get(key) in (before.get(key), without.get(key)) for key in keys)
    return after in (before, without)


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_of_errors_leaves_nothing_changed(seed: int, tmp_path: Path) -> None:
    row = random.Random(seed).choice(TABLE)
    assert left_over(row, chance(seed), tmp_path) == [], row


SABOTAGE: dict[str, tuple[Any, str, Any]] = {
    "requires_grad": (SkipBackward, "detach", lambda *_: None),
    "modes": (EvalModes, "detach", lambda *_: None),
    "hooks of the optimizer": (StepHooks, "detach", lambda *_: None),
    "nn.Module.train": (Patch, "discard", lambda *_: None),
    "raised ": (Recorder, "__call__", Recorder._append),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_what_is_not_undone_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row: Row = (("module", "training_step"), ValueError, True, False)
    assert left_over(row, ("scheduler", 3, 0), tmp_path / "whole") == []
    monkeypatch.setattr(*SABOTAGE[name])
    assert any(line.startswith(name) for line in left_over(row, ("scheduler", 3, 0), tmp_path / "sabotaged"))
    monkeypatch.undo()
    gc.collect()


def test_undoing_after_another_s_error_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning calls no callback after one that raises in `on_exception`."""
    row: Row = (("module", "training_step"), ValueError, False, True)
    assert left_over(row, ("scheduler", 3, 0), tmp_path / "whole") == []
    monkeypatch.setattr(_Boundaries, "on_exception", lambda *_: None)
    found = left_over(row, ("scheduler", 3, 0), tmp_path / "last")
    assert {line.partition(":")[0] for line in found} >= {"requires_grad", "modes", "hooks of the optimizer"}
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_every_error_leaves_nothing_changed(place: tuple[str, str], tmp_path: Path) -> None:
    rows = [(number, row) for number, row in enumerate(TABLE) if row[0] == place]
    found = {str(row): left_over(row, chance(number), tmp_path / str(number)) for number, row in rows}
    assert {row: problems for row, problems in found.items() if problems} == {}
