"""What `audit_inputs` costs a forward and a backward: ratios of what is audited to what is plain, in one run.

Audited and plain take turns, one by one, and each audited one is divided by the plain one after it, so that what else
the machine does meets both. What is audited includes entering and leaving the audit, as `InputAudit` does for a batch;
one `InputsAudit` is entered again and again, also as there. Its first forward, which confirms by replay what it finds,
stands by itself.

Memory is measured in two ways. What torch's allocator has handed out is summed over the profiler's memory events, every
one of them: exact to the byte and the same in every run, but blind to Python's objects. The peak of the resident set
has these, too; it belongs to a process, so each variant has processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes to the screen that it starts and stops

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.audit import InputsAudit
from tests.benchmarks.machine import machine
from tests.benchmarks.ratios import spread
from tests.threads import threads

Built = tuple[nn.Module, dict[str, Any]]
"""A model, and what it is called with: all by keyword, labels included."""

VOCABULARY = 2000
ROOT = Path(__file__).resolve().parents[2]


# ---- models


def _of_transformers(name: str, head: str, **settings: Any) -> nn.Module:
    import transformers

    return getattr(transformers, name + head)(getattr(transformers, name + "Config")(**settings))  # type: ignore[no-any-return]


def _text(batch: int, length: int) -> dict[str, Any]:
    """Tokens, and a mask for the padding of the last text."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -length // 4 :] = 0
    return {"input_ids": torch.randint(VOCABULARY, (batch, length)), "attention_mask": mask}


def bert(layers: int, hidden: int, batch: int, length: int) -> Built:
    """A classifier of texts."""
    model = _of_transformers(
        "Bert", "ForSequenceClassification", vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64), intermediate_size=4 * hidden, max_position_embeddings=length,
    )  # fmt: skip
    return model, _text(batch, length) | {"labels": torch.randint(2, (batch,))}


def llama(layers: int, hidden: int, batch: int, length: int) -> Built:
    """A language model."""
    heads = max(2, hidden // 64)
    model = _of_transformers(
        "Llama", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, intermediate_size=11 * hidden // 4,
        max_position_embeddings=length,
    )  # fmt: skip
    text = _text(batch, length)
    return model, text | {"labels": text["input_ids"]}


def t5(layers: int, hidden: int, batch: int, length: int) -> Built:
    """An encoder and a decoder, of so many layers each."""
    heads = max(1, hidden // 64)
    model = _of_transformers(
        "T5", "ForConditionalGeneration", vocab_size=VOCABULARY, d_model=hidden, d_kv=hidden // heads,
        d_ff=4 * hidden, num_layers=layers, num_heads=heads, decoder_start_token_id=0,
    )  # fmt: skip
    return model, _text(batch, length) | {"labels": torch.randint(VOCABULARY, (batch, length))}


def vit(layers: int, hidden: int, batch: int, size: int) -> Built:
    """A classifier of square pictures, cut into patches of 16."""
    model = _of_transformers(
        "ViT", "ForImageClassification", hidden_size=hidden, num_hidden_layers=layers, intermediate_size=4 * hidden,
        num_attention_heads=max(1, hidden // 64), image_size=size, patch_size=16,
    )  # fmt: skip
    return model, {"pixel_values": torch.randn(batch, 3, size, size), "labels": torch.randint(2, (batch,))}


class Recurrent(nn.Module):
    """`torch.nn.LSTM` over the whole sequence."""

    def __init__(self, layers: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.lstm(x)[0][:, -1]), labels)


class Unrolled(nn.Module):
    """`torch.nn.LSTMCell`, called once for each place of the sequence and each layer."""

    def __init__(self, layers: int, hidden: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(hidden, hidden) for _ in range(layers)])
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        states: list[tuple[Tensor, Tensor] | None] = [None] * len(self.cells)
        for place in x.unbind(1):
            for number, cell in enumerate(self.cells):
                states[number] = state = cell(place, states[number])
                place = state[0]
        return nn.functional.cross_entropy(self.head(place), labels)


def lstm(kind: type[nn.Module], layers: int, hidden: int, batch: int, length: int) -> Built:
    """A classifier of sequences."""
    return kind(layers, hidden), {"x": torch.randn(batch, length, hidden), "labels": torch.randint(10, (batch,))}


CASES: dict[str, Callable[[], Built]] = {
    "BERT, small": lambda: bert(layers=2, hidden=128, batch=4, length=32),
    "BERT, middle": lambda: bert(layers=6, hidden=512, batch=4, length=128),
    "Llama, middle": lambda: llama(layers=6, hidden=512, batch=4, length=128),
    "T5, middle": lambda: t5(layers=3, hidden=512, batch=4, length=128),
    "ViT, middle": lambda: vit(layers=6, hidden=512, batch=4, size=160),
    "LSTM": lambda: lstm(Recurrent, layers=2, hidden=256, batch=32, length=64),
    "LSTMCell, unrolled": lambda: lstm(Unrolled, layers=2, hidden=256, batch=32, length=64),
}
RESIDENT = ("BERT, middle", "Llama, middle")
"""Cases whose resident set is measured; each needs processes of its own."""

QUICK = 0.05
"""Seconds of a forward and backward below which a case is measured ten times as often."""


# ---- one forward, and one forward and backward


def run_forward(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """As in an evaluation."""
    with torch.no_grad():
        model(**inputs)


def run_both(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """As in training, but for the optimizer."""
    result = model(**inputs)
    getattr(result, "loss", result).backward()


PASSES: dict[str, Callable[[nn.Module, Mapping[str, Any]], None]] = {
    "forward": run_forward,
    "forward_backward": run_both,
}


def _prepare(model: nn.Module, name: str) -> None:
    model.train(name == "forward_backward")
    model.zero_grad(set_to_none=True)


def _seconds(model: nn.Module, inputs: Mapping[str, Any], name: str, audit: InputsAudit | None) -> tuple[float, float]:
    """Wall clock and the processor's time of one pass, audited or plain."""
    _prepare(model, name)
    begin, worked = time.perf_counter(), time.process_time()
    if audit is None:
        PASSES[name](model, inputs)
    else:
        with audit:
            PASSES[name](model, inputs)
    return time.perf_counter() - begin, time.process_time() - worked


def measure_pass(model: nn.Module, inputs: Mapping[str, Any], name: str, repeats: int, warm_up: int) -> dict[str, Any]:
    """Audited and plain in turns.

    Args:
        model: The model.
        inputs: What it is called with.
        name: ``forward`` or ``forward_backward``.
        repeats: How many of each are counted.
        warm_up: How many of each come before.
    """
    for _ in range(max(1, warm_up)):
        _seconds(model, inputs, name, None)
    audit = audit_inputs(model)
    first = _seconds(model, inputs, name, audit)[0]
    audited, plain = [], []
    for turn in range(warm_up + repeats):
        pair = _seconds(model, inputs, name, audit), _seconds(model, inputs, name, None)
        if turn >= warm_up:
            audited.append(pair[0])
            plain.append(pair[1])
    if audit.failure is not None:
        raise audit.failure
    by_wall = [one[0] / other[0] for one, other in zip(audited, plain, strict=True)]
    by_processor = [one[1] / other[1] for one, other in zip(audited, plain, strict=True)]
    bare = spread([wall for wall, _ in plain])
    return {
        "plain_us": bare,
        "audited_us": spread([wall for wall, _ in audited]),
        "ratio": spread(by_wall, 1.0),
        "ratio_processor": spread(by_processor, 1.0),
        "first_us": first * 1e6,
        "first_ratio": first * 1e6 / bare["median"],
        "inputs": len(audit.verdicts),
        "findings": len(audit.findings),
        "confirmed": sum(finding.confirmed for finding in audit.findings),
        "repeats": repeats,
    }


# ---- memory


def allocator_peak(function: Callable[[], None]) -> int:
    """The most bytes that torch's allocator had handed out at once while a function ran, over those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        function()
    events: Any = watched.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def measure_memory(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The allocator's peak of each pass: plain, in an audit's first pass, and in one that follows."""
    found: dict[str, dict[str, int]] = {}
    for name in PASSES:
        audit = audit_inputs(model)
        peaks: dict[str, int] = {}
        for variant, used in (("plain", None), ("first", audit), ("audited", audit)):
            _prepare(model, name)

            def one_pass(name: str = name, used: InputsAudit | None = used) -> None:
                if used is None:
                    PASSES[name](model, inputs)
                else:
                    with used:
                        PASSES[name](model, inputs)

            peaks[variant] = allocator_peak(one_pass)
        found[name] = peaks
    model.zero_grad(set_to_none=True)
    return found


def resident_peak(build: Callable[[], Built], audited: bool, passes: int = 3) -> int:
    """Bytes of this process's largest resident set so far, after some forwards and backwards."""
    torch.manual_seed(0)
    model, inputs = build()
    audit = audit_inputs(model) if audited else None
    for _ in range(passes):
        _seconds(model, inputs, "forward_backward", audit)
    return process_peak()


def process_peak() -> int:
    """Bytes of this process's largest resident set so far."""
    try:
        # not `ru_maxrss`: after a fork, that has the parent's peak in it
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def measure_resident(case: str, processes: int) -> dict[str, Any]:
    """The peak of the resident set in so many processes of each variant, audited and plain in turns."""
    peaks: dict[str, list[int]] = {"audited": [], "plain": []}
    for _ in range(processes):
        for variant, seen in peaks.items():
            command = [sys.executable, "-m", "tests.benchmarks.inputs", case, variant]
            alone = os.environ | {"OMP_NUM_THREADS": "1"}
            answer = subprocess.run(command, cwd=ROOT, env=alone, check=True, capture_output=True, text=True)
            seen.append(json.loads(answer.stdout.splitlines()[-1]))
    middle = {variant: statistics.median(seen) for variant, seen in peaks.items()}
    return {
        "name": case,
        "processes": processes,
        "bytes": peaks,
        "median": middle,
        "ratio": middle["audited"] / middle["plain"],
    }


# ---- all of it


def measure(
    repeats: int = 15,
    warm_up: int = 2,
    cases: Mapping[str, Callable[[], Built]] | None = None,
    processes: int = 3,
) -> dict[str, Any]:
    """Every case, on one thread.

    Args:
        repeats: How many passes of each kind are counted; of quick models ten times as many.
        warm_up: How many come before.
        cases: What each case is called, and what builds it.
        processes: Processes of each kind in which the resident set is measured; 0 leaves that out.
    """
    found = []
    with threads(1):
        for name, build in (CASES if cases is None else cases).items():
            torch.manual_seed(0)
            model, inputs = build()
            plain = [_seconds(model, inputs, "forward_backward", None)[0] for _ in range(2)]
            often = repeats * (10 if min(plain) < QUICK else 1)
            passes = {key: measure_pass(model, inputs, key, often, warm_up) for key in PASSES}
            found.append(
                {
                    "name": name,
                    "elements": sum(parameter.numel() for parameter in model.parameters()),
                    "modules": sum(1 for _ in model.modules()),
                    **passes,
                    "allocator_bytes": measure_memory(model, inputs),
                }
            )
        resident = [measure_resident(case, processes) for case in RESIDENT] if processes else []
    library = sys.modules.get("transformers")
    versions = machine() | {"transformers": getattr(library, "__version__", "none")}
    return {"benchmark": "inputs", "machine": versions, "cases": found, "resident": resident}


def main() -> None:
    """In a process of its own: print the peak of the resident set of one case."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.inputs", description="one case's resident set")
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("variant", choices=["audited", "plain"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(resident_peak(CASES[options.case], options.variant == "audited")))


if __name__ == "__main__":
    main()
