"""Record files of runs that never ran, by name: `write("small", folder)` writes one, `write_all` all of them.

`python -m tests.report.made_runs FOLDER` writes them to look at.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Set = frozenset[str]

TRAITS = {
    "skips_none": True, "excludes": False, "step_counters": [], "late_first_step_ok": True, "why": "",
}  # fmt: skip


def run(groups: Mapping[str, int], run_id: str = "3f9a0c51d2e7", **more: Any) -> Record:
    """A ``run`` record for groups of so many elements."""
    sizes = {
        name: {"parameters": 4, "elements": n, "bytes": 4 * n, "gradient_bytes": 4 * n, "state_bytes": 8 * n}
        for name, n in groups.items()
    }
    record = {
        "type": "run", "run": run_id, "resumes": None, "time": "2026-12-01T14:03:11Z",
        "versions": {
            "lightning_freeze": "0.1.0", "torch": "2.13.0+cpu", "lightning": "pytorch_lightning 2.6.6", "python": "3.11.7",
        },
        "model": "DigitsMixer", "strategy": "SingleDeviceStrategy", "precision": "32-true", "processes": 1,
        "device": "cpu", "seed": 1,
        "skip_backward": {"asked": "auto", "skips": True, "why": "one process, automatic optimization"},
        "optimizer_state": "keep", "frozen_modules": "train",
        "schedule": {"class_path": "Every", "init_args": {"periods": {"body": 2}, "of": "head"}}, "rest": "train",
        "groups": sizes, "users_own": [],
        "optimizers": [{"name": "AdamW", "groups": [*groups], **TRAITS}],
        "updates_before": 0, "epoch": 0, "resumed": False,
    }  # fmt: skip
    return {**record, **more}


def epoch(
    number: int,
    first: int,
    steps: Sequence[tuple[Set, Set, str]],
    groups: Mapping[str, int],
    before: Mapping[str, int],
    optimizers: Sequence[int] = (),
    intervals: int = 6,
    findings: Sequence[Record] = (),
) -> list[Record]:
    """The ``phase`` and ``counts`` records of an epoch of (updated, planned, place), one a step."""
    known: dict[tuple[Set, Set, str], int] = {}
    runs: list[list[int]] = []
    for at, step in enumerate(steps):
        entry = [optimizers[at] if optimizers else 0, known.setdefault(step, len(known))]
        if runs and runs[-1][:2] == entry:
            runs[-1][2] += 1
        else:
            runs.append([*entry, 1])
    updates = {name: before.get(name, 0) + sum(name in step[0] for step in steps) for name in groups}
    share = [sum(groups[name] for name in step[0]) for step in steps]
    seconds = [
        0.004 * sum(n for _, number, n in runs if number == index) * (0.3 + 0.7 * len(step[0]) / len(groups))
        for index, step in enumerate(known)
    ]
    errors = sum(finding["severity"] == "error" for finding in findings)
    phase = {
        "type": "phase", "epoch": number, "first": first, "steps": runs,
        "sets": [sorted(step[0]) for step in known],
        "planned": [None if step[0] == step[1] else sorted(step[1]) for step in known],
        "places": [step[2] for step in known], "lr_factors": [{} for _ in known], "seconds": seconds,
    }  # fmt: skip
    counts = {
        "type": "counts", "epoch": number, "updates": updates, "updates_before_epoch": dict(before),
        "total": first + len(steps), "intervals": (number + 1) * intervals, "intervals_in_epoch": intervals,
        "findings": {"error": errors, "warning": len(findings) - errors, "info": 0},
        "seconds": sum(seconds), "step_seconds": sum(seconds) / len(steps),
        "trainable_elements": sum(share) / len(steps), "gradient_bytes": 4 * max(share),
        "state_bytes": 8 * sum(n for name, n in groups.items() if updates[name]),
        "lr": {name: 0.002 / (number + 1) * (1 if name == "head" else 0.4) for name in groups},
    }  # fmt: skip
    return [phase, *({"type": "finding", **finding} for finding in findings), counts]


def finding(audit: str, kind: str, severity: str, message: str, **more: Any) -> Record:
    return {"audit": audit, "kind": kind, "severity": severity, "message": message, **more}


OUTSIDE = finding(
    "frozen", "value", "error",
    "'body.weight' (group 'body', frozen) moved between updates 4 and 6, in epoch 0: neither a gradient nor its optimizer "
    "moved it, so something else wrote to it: a `.data` or in-place write, a `load_state_dict`, a callback that averages or "
    "swaps weights. Let it leave frozen parameters alone, or do it where the group trains.",
    cause="outside", epoch=0, parameter="body.weight", group="body", first_update=4, last_update=6,
)  # fmt: skip
LEAKED = finding(
    "frozen", "optimizer_state", "error",
    "the optimizer state of 'head.bias' (group 'head', frozen) (exp_avg, exp_avg_sq) moved between updates 9 and 10, in "
    "epoch 1: it had a gradient when its optimizer stepped after update 9, so something filled `.grad` after it was set to "
    "None: a hook of an optimizer, or a `step()` that runs backward itself. Take frozen parameters out of it "
    "(`scheduler.trainable` names what trains).",
    cause="gradient", epoch=1, parameter="head.bias", group="head", first_update=9, last_update=10,
)  # fmt: skip
UNUSED = finding(
    "inputs", "unused", "warning",
    "'body.0' (Block), net.py:12 is passed `mask` and never uses it (used in 0 of 3 calls). It is 4.0 KiB a call. Use it, or "
    "remove it: `def forward(self, …)` without `mask`, and from the calls of Block.",
    cause="never_used", epoch=0, module="body.0", argument="mask", confirmed=True, module_class="Block", calls=[0, 3],
    bytes_passed=4096, bytes_sole=0, bytes_kept=0, source=["net.py", 12],
)  # fmt: skip
NO_GRADIENT = finding(
    "moved", "no_gradient", "warning",
    "1 of 4 parameters of group 'head' got no gradient in epoch 1, though the group was to train: 'head.scale'. They were "
    "not in the loss (a branch not taken, a `detach`). Use them in the loss, or take them out of what is to train.",
    cause="no_gradient", epoch=1, parameter="head.scale", group="head",
)  # fmt: skip


def drifted(name: str) -> Record:
    message = (
        f"buffer '{name}' of a frozen module moved between updates 0 and 6, in epoch 0: batch-norm statistics follow every "
        "forward in train mode, frozen weights or not. To hold them, set `frozen_modules: eval`."
    )
    return finding(
        "buffers", "buffer", "info", message, cause="statistics", epoch=0, parameter=name, group="body",
        first_update=0, last_update=6,
    )  # fmt: skip


GROUPS = {"body": 3000, "head": 200, "rest": 50}
ALL, HEAD, BODY = frozenset(GROUPS), frozenset({"head", "rest"}), frozenset({"body", "rest"})


def _small() -> Iterator[Record]:
    """Alternates in two phases, then trains everything; every interval held."""
    yield run(GROUPS)
    before: dict[str, int] = {}
    for number in range(3):
        sets = [(HEAD, HEAD, "phases[0]"), (BODY, BODY, "phases[1]")] if number < 2 else [(ALL, ALL, "phases[2]")] * 2
        records = epoch(number, 12 * number, [s for s in sets for _ in range(3)] * 2, GROUPS, before)
        before = records[-1]["updates"]
        yield from records


def _violations() -> Iterator[Record]:
    """Two that moved, an unused input, drifted buffers, and updates that were planned and not made."""
    yield run(GROUPS, optimizers=[{"name": "Adam", "groups": [*GROUPS], **TRAITS}, {"name": "Muon", "groups": [*GROUPS], **TRAITS, "skips_none": False, "excludes": True, "step_counters": ["step"], "late_first_step_ok": False, "why": "it turns None into zeros"}])  # fmt: skip
    buffers = [drifted(f"body.{index}.running_{what}") for index in range(12) for what in ("mean", "var")]
    steps = [(HEAD, HEAD, "phases[0]")] * 4 + [(BODY, BODY, "phases[1]")] * 4
    first = epoch(0, 0, steps, GROUPS, {}, [0, 1] * 4, findings=[OUTSIDE, UNUSED, *buffers])
    yield from first
    steps = (
        [(frozenset({"rest"}), HEAD, "phases[0]")] * 2
        + [(ALL, BODY, "phases[1]")] * 2
        + [(HEAD, HEAD, "phases[0]")] * 4
    )
    yield from epoch(1, 8, steps, GROUPS, first[-1]["updates"], [0, 1] * 4, findings=[LEAKED, NO_GRADIENT])


def _resumed() -> Iterator[Record]:
    """Stopped in the second epoch and resumed at its first step, another run between the two."""
    yield run(GROUPS, "aaaaaaaaaaaa")
    steps = [(HEAD, HEAD, ""), (BODY, BODY, "")] * 4
    first = epoch(0, 0, steps, GROUPS, {})
    yield from ({**record, "run": "aaaaaaaaaaaa"} for record in first)
    yield from ({**record, "run": "aaaaaaaaaaaa"} for record in epoch(1, 8, steps[:3], GROUPS, first[-1]["updates"]))
    yield run(GROUPS, "bbbbbbbbbbbb", model="Other")
    yield from ({**record, "run": "bbbbbbbbbbbb"} for record in epoch(0, 0, [(ALL, ALL, "")] * 4, GROUPS, {}))
    again: Record = {"updates_before": 8, "epoch": 1, "resumed": True, "time": "2026-12-01T15:00:00Z"}
    yield run(GROUPS, "cccccccccccc", resumes="aaaaaaaaaaaa", **again)
    yield from ({**record, "run": "cccccccccccc"} for record in epoch(1, 8, steps, GROUPS, first[-1]["updates"]))


def _audit_alone() -> Iterator[Record]:
    """A FreezeAudit without a schedule, nothing known of what was skipped."""
    none = dict.fromkeys(("skip_backward", "optimizer_state", "frozen_modules", "schedule", "rest", "seed"))
    yield run(GROUPS, model="Finetuned", **none)
    yield from epoch(0, 0, [(HEAD, HEAD, "")] * 6, GROUPS, {})


def _large(groups: int = 200, updates: int = 10_000, epochs: int = 5) -> Iterator[Record]:
    """Another set with every update: 200 groups in families, half of them drawn."""
    names = {f"layers/{index}": 4096 + index for index in range(groups - 2)} | {"embed": 50_000, "head": 9_000}
    drawn = random.Random(0)
    yield run(names, model="Transformer", schedule={"class_path": "Phases", "init_args": {"phases": [{"train": ["head"], "pick": {"family": "layers", "count": groups // 2, "order": "random"}, "updates": 1}], "repeat": True}})  # fmt: skip
    before: dict[str, int] = {}
    each = updates // epochs
    for number in range(epochs):
        steps = []
        for update in range(each):
            chosen = frozenset({"head", *(f"layers/{index}" for index in drawn.sample(range(groups - 2), groups // 2))})
            steps.append((chosen, chosen, f"phases[{update % 2}]"))
        records = epoch(number, number * each, steps, names, before)
        before = records[-1]["updates"]
        yield from records


def folded(times: int = 5_000_000) -> Iterator[Record]:
    """Two hundred updates so many times, then an epoch in which nothing repeats."""
    yield run(GROUPS)
    body = [{"times": 3, "steps": [[0, 0, 4], [0, 1, 1]]}, [0, 2, 5], {"times": 9, "steps": [[0, 1, 1], [0, 0, 19]]}]
    sets: Record = {
        "sets": [sorted(HEAD), sorted(BODY), sorted(ALL)], "planned": [None, sorted(ALL), None], "seconds": [1.0, 2.0, 3.0],
        "places": ["phases[0]", "phases[1]", "phases[2]"], "lr_factors": [{}, {}, {}],
    }  # fmt: skip
    yield {"type": "phase", "epoch": 0, "first": 0, "steps": [{"times": times, "steps": body}], **sets}
    yield {"type": "phase", "epoch": 1, "first": 200 * times, "steps": [[0, 2, 7], [0, 0, 1], [0, 1, 2]], **sets}


def _not_yet() -> Iterator[Record]:
    """Stopped before the first epoch's end."""
    yield run(GROUPS)


def _untrusted() -> Iterator[Record]:
    """Names that would end a script, begin a comment or be markup."""
    names = {"</script><script>alert(1)</script>": 10, "<!--": 20, "[bold]": 30, "<img src=x onerror=alert(1)>": 40}
    yield run(names, model="<b>Net</b>")
    every = frozenset(names)
    yield from epoch(0, 0, [(every, every, "phases[0]")] * 4, names, {})


RUNS: dict[str, Callable[[], Iterator[Record]]] = {
    "small": _small, "violations": _violations, "resumed": _resumed, "audit_alone": _audit_alone, "large": _large, "folded": folded,
    "not_yet": _not_yet, "untrusted": _untrusted,
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write the records of a run to a folder of its own."""
    path = folder / name / "freeze_audit.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    last = ""
    with path.open("w", encoding="utf-8") as file:
        for record in RUNS[name]():
            last = record.get("run", last)
            file.write(json.dumps({"version": 2, "run": last, **record}) + "\n")
    return path


def write_metrics(folder: Path, updates: int = 36, epochs: int = 3) -> None:
    """A ``metrics.csv`` as Lightning's CSVLogger writes it."""
    lines = ["epoch,freeze/head/updates,step,train_loss,val_accuracy,val_loss,word", ",,0,nan,,,none"]
    for step in range(updates):
        number = step * epochs // updates
        lines.append(f"{number},,{step},{2.3 * 0.95**step + 0.1 * (step % 3)},,")
        if (step + 1) * epochs % updates == 0:
            lines.append(f"{number},{step},{step},,{0.3 + 0.2 * number},{2.2 * 0.9**step}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for each in RUNS:
        print(write(each, Path(sys.argv[1])))
