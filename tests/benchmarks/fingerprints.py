"""What fingerprints cost: their rate beside a plain read or copy, and the audit's share of an epoch."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_freeze import AlternatingFreeze, FreezeAudit
from lightning_freeze.audit import fingerprint
from lightning_freeze.audit.weights import WeightAudit
from tests.benchmarks import models
from tests.benchmarks.hooks import Clock
from tests.benchmarks.quiet import quiet_fit
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import threads_for
from tests.threads import threads

AUDIT = ("begin", "freeze", "thaw", "hold_buffers", "stepped", "check", "end_epoch")
"""The audit's work in a run. What is nested is counted once."""

AT_THE_END = ("check", "end_epoch")


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Rates and shares, one sample a round.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: How often each pair is measured, and how many epochs are.
        quick: Small tensors and a small model, to see that it runs; the figures mean nothing then.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return [Ratio("fingerprints", "anything", [], note="there is no GPU here")]
    rates = rates_on_cuda if device == "cuda" else rates_on_cpu
    found = rates(rounds, 1 << 22 if quick else 10**9)
    with threads_for(device):
        return [*found, *shares(device, rounds, quick)]


# --- rates -----------------------------------------------------------------------------------------------------------


def rates_on_cpu(rounds: int, size: int) -> list[Ratio]:
    """A fingerprint's rate over that of a sum, on one thread and on all."""
    data, most = torch.randn(size // 4), torch.get_num_threads()
    rows = []
    for number in sorted({1, most}):
        with threads(number):
            pairs = _in_turns(rounds, lambda: _seconds(lambda: fingerprint.digest(data)), lambda: _seconds(data.sum))
        rows.append(_rate(f"fingerprint on the CPU, {_counted(number, 'thread')}", "sum", size, pairs))
    return rows


def rates_on_cuda(rounds: int, size: int) -> list[Ratio]:
    """A digest's rate over that of a copy, by the device's own clock; each reads so many bytes, the copy writes them."""
    data = torch.randn(size // 4, device="cuda")
    pairs = _in_turns(
        rounds,
        lambda: _device_seconds(lambda: fingerprint.digest(data)),
        lambda: _device_seconds(lambda: torch.empty_like(data).copy_(data)),
    )
    by = "Triton" if fingerprint._kernel_works else "torch, for want of Triton"
    return [
        _rate(
            "fingerprint on the GPU",
            "copy",
            size,
            pairs,
            f"; a copy's bytes counted once; by {by}, on {torch.cuda.get_device_name()}",
        )
    ]


def _in_turns(rounds: int, one: Callable[[], float], other: Callable[[], float]) -> list[tuple[float, float]]:
    """Seconds of both in each round, every second round the other way about; a first round of warm-up is left out."""
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            pairs.append((one(), other()))
        else:
            pairs.append((other(), one())[::-1])
    return pairs[1:]


def _rate(figure: str, over: str, size: int, pairs: list[tuple[float, float]], more: str = "") -> Ratio:
    mine, others = (size / 1e9 / statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    note = f"{size / 1e9:.3g} GB; {mine:.1f} to {others:.1f} GB/s{more}"
    return Ratio(figure, over, [other / one for one, other in pairs], 0.5, "at least", note)


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _device_seconds(function: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()  # type: ignore[no-untyped-call]
    function()
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


# --- the audit's share -----------------------------------------------------------------------------------------------


def shares(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """The audit's share of an epoch of 100 steps, and what the input audit makes of an epoch's first batch."""
    shape, steps = models.shape_for(device, quick), 4 if quick else 100
    clock, ends = Clock(), _Ends(device)
    with _timed(clock, device):
        _fit(shape, steps, rounds + 1, device, ends, _Epochs(clock), _alternating(shape, FreezeAudit(inputs=False)))
    epochs = list(zip(ends.seconds, clock.steps, strict=True))[1:]  # the first is warm-up
    middle = statistics.median(seconds for seconds, _ in epochs)
    threads = "" if device == "cuda" else f", {_counted(torch.get_num_threads(), 'thread')}"
    note = (
        f"epochs of {middle:.3g} s, {_counted(steps, 'step')}, AdamW, freezing half the model every 5 updates{threads}"
    )
    rows = []
    for figure, names, aim in (
        ("the audit of an epoch", AUDIT, 0.01),
        ("of it, at the epoch's end", AT_THE_END, None),
    ):
        spent = [sum(by_name.get(name, 0.0) for name in names) for _, by_name in epochs]
        samples = [part / seconds for part, (seconds, _) in zip(spent, epochs, strict=True)]
        rows.append(Ratio(figure, "the epoch", samples, aim, note=f"{statistics.median(spent) * 1e3:.3g} ms; {note}"))
    return [*rows, first_batch(shape, rounds, device)]


def first_batch(shape: models.Shape, rounds: int, device: str) -> Ratio:
    """An epoch's first batch, whose inputs are audited, over the median of those after it."""
    steps = 6  # the fifth would be the first to freeze nothing
    starts = _Starts(device)
    _fit(shape, steps, rounds + 1, device, starts, _alternating(shape, FreezeAudit(inputs=True)))
    epochs = [starts.seconds[epoch * (steps - 1) : (epoch + 1) * (steps - 1)] for epoch in range(rounds + 1)]
    ratios = [first / statistics.median(others) for first, *others in epochs]
    note = f"{starts.seconds[steps - 1] * 1e3:.3g} ms in the second epoch; the ratio of the first is {ratios[0]:.1f}"
    return Ratio("an epoch's first batch under the input audit", "a later batch", ratios[1:], note=note)


def _alternating(shape: models.Shape, audit: FreezeAudit) -> AlternatingFreeze:
    half = shape.blocks // 2
    slow, fast = ([f"net.blocks.{n}" for n in part] for part in (range(half), range(half, shape.blocks)))
    return AlternatingFreeze(
        ["net.embed", "net.position", *slow], [*fast, "net.norm", "net.head"], every=5, audit=audit
    )


def _fit(shape: models.Shape, steps: int, epochs: int, device: str, *callbacks: pl.Callback) -> None:
    loader = DataLoader(models.batches(shape, steps, device), batch_size=None)  # type: ignore[arg-type]
    quiet_fit(models.task(models.make(shape)), loader, *callbacks, device=device, max_epochs=epochs)


class _Ends(pl.Callback):
    """Seconds of each epoch, from its beginning, before any other callback's, to the next one's or the run's end."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._begun = 0.0
        self.seconds: list[float] = []

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_start(self, *_: Any) -> None:
        self._begun = self._now()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            self.on_train_end()

    def on_train_end(self, *_: Any) -> None:
        now = self._now()
        self.seconds.append(now - self._begun)
        self._begun = now


class _Epochs(pl.Callback):
    """Turns the clock's page where `_Ends` ends an epoch."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            self._clock.next_step()

    def on_train_end(self, *_: Any) -> None:
        self._clock.next_step()


class _Starts(_Ends):
    """Seconds from the beginning of each batch to that of the next one of its epoch."""

    def on_train_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, *_: Any) -> None:
        pass

    def on_train_end(self, *_: Any) -> None:
        pass

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        now = self._now()
        if number:
            self.seconds.append(now - self._begun)
        self._begun = now


@contextlib.contextmanager
def _timed(clock: Clock, device: str) -> Iterator[None]:
    """The audit's own work goes onto the clock; on a GPU with what it leaves to do there, and nobody else's."""
    originals = {name: getattr(WeightAudit, name) for name in AUDIT}
    try:
        for name, original in originals.items():
            timed = clock.wrap(_awaited(original) if device == "cuda" else original, name)
            setattr(WeightAudit, name, _after_others(timed) if device == "cuda" else timed)
        yield
    finally:
        for name, original in originals.items():
            setattr(WeightAudit, name, original)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def awaited(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        torch.cuda.synchronize()
        return found

    return awaited


def _after_others(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def after(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.synchronize()
        return function(*args, **kwargs)

    return after


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
