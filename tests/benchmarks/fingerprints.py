"""What fingerprints cost: their rate beside a plain read or copy, and the audit's share of an epoch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from lightning_freeze import AlternatingFreeze, FreezeAudit
from lightning_freeze.audit import fingerprint
from tests.benchmarks import models
from tests.benchmarks.loops import Beside, Loop, Spent, in_loops
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import fit, threads_for
from tests.threads import threads


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
    whole, steps = models.shape_for(device, quick), 20 if quick else 100
    shape = replace(whole, width=192) if device == "cpu" and not quick else whole
    epochs = [_epoch(shape, steps, device) for _ in range(rounds)]
    seconds, main, everything, end = ([epoch[n] for epoch in epochs] for n in range(4))
    note = (
        f"epochs of {statistics.median(seconds):.3g} s, {steps} steps, AdamW, half of {shape.blocks} blocks of width "
    )
    note += f"{shape.width} freezes every 5 updates; over a run without the audit"
    rows = []
    for figure, spent, aim in (
        ("the audit of an epoch, of the main thread", main, 0.006),
        ("the audit of an epoch, of all threads", everything, 0.02),
        ("of it, at the epoch's end", end, None),
    ):
        samples = [part / whole for part, whole in zip(spent, seconds, strict=True)]
        rows.append(Ratio(figure, "the epoch", samples, aim, note=f"{statistics.median(spent) * 1e3:.3g} ms; {note}"))
    return [*rows, first_batch(whole, rounds, device)]


def _epoch(shape: models.Shape, steps: int, device: str) -> tuple[float, float, float, float]:
    """Seconds of an epoch without the audit; what the audit adds to the main thread and to all; of it at the end."""
    warm_up = 5
    batches, ends = models.batches(shape, steps + warm_up, device), dict[str, Spent]()
    made = {"hooks": _alternating(shape, audit=False), "both": _alternating(shape, FreezeAudit(inputs=False))}

    def end(loops: Mapping[str, Loop]) -> None:
        for name, scheduler in made.items():
            last = Beside(lambda scheduler=scheduler: scheduler.controller.end_epoch(), device)  # type: ignore[misc]
            last.step(0)
            ends[name] = last.spent[0]

    found = in_loops(
        {name: (models.task(models.make(shape)), scheduler) for name, scheduler in made.items()},
        steps + warm_up,
        5,
        work=lambda number, module: module.net.loss(batches[number]),
        device=device,
        at_end=end,
    )
    spent = {name: [*each[warm_up:], ends[name]] for name, each in found.items()}
    main, everything = (
        sum(getattr(step, thread) for step in spent["both"]) - sum(getattr(step, thread) for step in spent["hooks"])
        for thread in ("main", "all")
    )
    return sum(step.whole for step in spent["hooks"]), main, everything, ends["both"].all - ends["hooks"].all


def first_batch(shape: models.Shape, rounds: int, device: str) -> Ratio:
    """An epoch's first batch, whose inputs are audited, over the median of those after it."""
    steps = 6  # the fifth would be the first to freeze nothing
    scheduler = _alternating(shape, FreezeAudit(inputs=True))
    task, batches = models.task(models.make(shape)), models.batches(shape, steps, device)
    seconds = [step.time for step in fit(task, batches, device, scheduler, max_epochs=rounds + 1)]
    epochs = [seconds[epoch * steps : (epoch + 1) * steps - 1] for epoch in range(rounds + 1)]
    ratios = [first / statistics.median(others) for first, *others in epochs]
    note = f"{epochs[1][0] * 1e3:.3g} ms in the second epoch; the ratio of the first is {ratios[0]:.1f}"
    return Ratio("an epoch's first batch under the input audit", "a later batch", ratios[1:], note=note)


def _alternating(shape: models.Shape, audit: FreezeAudit | bool) -> AlternatingFreeze:
    half = shape.blocks // 2
    slow, fast = ([f"net.blocks.{n}" for n in part] for part in (range(half), range(half, shape.blocks)))
    return AlternatingFreeze(
        ["net.embed", "net.position", *slow], [*fast, "net.norm", "net.head"], every=5, audit=audit
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
