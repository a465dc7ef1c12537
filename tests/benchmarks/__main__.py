"""``python -m tests.benchmarks``: what lightning-freeze costs; a table, and with ``--out`` the numbers as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.hooks import measure


def in_time(us: float) -> str:
    """Microseconds, to three digits in the unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us < 1000 * size else f"{us / size:,.0f} {unit}"
    return f"{us:.3g} µs"


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{in_time(numbers['median'])}\n{in_time(numbers['p10'])}\nto {in_time(numbers['p90'])}"


def hooks_table(result: Mapping[str, Any]) -> Table:
    """The hooks' cost beside a bare step, one row a case."""
    machine = result["machine"]
    table = Table(
        title="The cost of the hooks: median, and p10 to p90 below it",
        caption=(
            "Hooks: a step's time summed inside our hooks, without the fingerprints; “mean” takes in the steps where "
            "the trainable set changes. Share: of the bare SGD step over the same parameters, by median and by mean. "
            "Boundary: the fingerprints of one change of the frozen set, and how many a run had. Bare: a Trainer "
            f"without us, in this same process. The clock's own {result['wrapper_us']:.2f} µs a call are taken off. "
            f"{machine['cpu']}, one thread, torch {machine['torch']}, pytorch-lightning {machine['lightning']}."
        ),
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("case", no_wrap=True)
    for column in ("hooks", "mean", "share", "boundary", "bare step", "bare SGD"):
        table.add_column(column, justify="right")
    for case in result["cases"]:
        share = case["share_of_sgd"]
        table.add_row(
            f"{case['name']}\n{case['groups']:,} groups\n{case['parameters']:,} tensors",
            _spread(case["hooks_us"]),
            in_time(case["hooks_us"]["mean"]),
            f"{share['median']:.1%}\n{share['mean']:.1%}",
            f"{_spread(case['boundary_us'])}\n{case['boundary_us']['count']} times",
            _spread(case["bare_step_us"]),
            _spread(case["sgd_step_us"]),
        )
    return table


def detail_table(result: Mapping[str, Any]) -> Table:
    """Where the time goes: each hook's median and mean, and what runs once."""
    table = Table(title="Where it goes")
    table.add_column("case")
    table.add_column("hook")
    for column in ("median", "mean"):
        table.add_column(column, justify="right")
    for case in result["cases"]:
        for hook, numbers in sorted(case["by_hook_us"].items(), key=lambda item: -item[1]["mean"]):
            table.add_row(case["name"], hook, in_time(numbers["median"]), in_time(numbers["mean"]))
        for hook, spent in case["once_us"].items():
            table.add_row(case["name"], f"{hook} (once)", in_time(spent), "", style="dim")
        table.add_section()
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").strip())
    parser.add_argument("--steps", type=int, default=100, help="steps of each large run, 25 of warm-up included")
    parser.add_argument("--out", type=Path, default=None, help="where to write the numbers as JSON; by default nowhere")
    options = parser.parse_args(arguments)
    if options.steps <= 25:
        parser.error(f"--steps is {options.steps}, but the first 25 are warm-up. Give at least 26.")
    result = measure(options.steps)
    console = Console()
    console.print(hooks_table(result))
    console.print(detail_table(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"numbers: {options.out}")


if __name__ == "__main__":
    main()
