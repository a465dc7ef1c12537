"""``python -m tests.benchmarks``: ratios, each of two things measured side by side in this run; with ``--out`` as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks import inputs
from tests.benchmarks.details import inputs_table, resident_table
from tests.benchmarks.machine import machine
from tests.benchmarks.ratios import Ratio
from tests.progress import tracked

RATIOS = tuple("costs growth startup checkpoints replacements fingerprints training badam lisa offload llama".split())
"""Modules whose `measure(device, rounds, quick)` gives rows of the table."""

PAGE = Path(__file__).parents[2] / "examples" / "benchmarks.md"


def where_measured(device: str) -> dict[str, Any]:
    """What was measured on, and with."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    threads = 1 if device == "cpu" else torch.get_num_threads()
    return machine() | {"threads": threads, "device": device, "gpu": gpu}


def _cells(row: Ratio) -> list[str]:
    """The aim and the harder one, the median, its quartiles, and whether each aim was met."""
    words = {True: "yes", False: "NO", None: ""}
    aim = "" if row.aim is None else f"{'≤' if row.sense == 'at most' else '≥'} {row.aim:.3g}"
    return [
        aim + ("" if row.stretch is None else f" ({row.stretch:.3g})"),
        "–" if row.median is None else _digits(row.median),
        "–".join(map(_digits, row.quartiles or ())),
        words[row.met] + ("" if row.stretched is None else f" ({words[row.stretched]})"),
    ]


def _digits(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}" if abs(number) >= 10 else f"{number:.3f}"


def _about(where: dict[str, Any]) -> str:
    return (
        "Median and quartiles of the rounds. In each round every contestant makes a run of its own, or all make a few steps "
        "in turn, and the figure is the processor's time (on a GPU, the GPU's): of the median step, where nothing else is "
        f"said. An aim in brackets is a harder one. {where['gpu'] or where['cpu']}, {where['threads']} thread(s), torch "
        f"{where['torch']}, pytorch-lightning {where['lightning']}."
    )


def ratios_page(rows: Sequence[Ratio], where: dict[str, Any], rounds: int) -> str:
    """The table as a page of the guide."""
    lines = [["figure", "over", "aim", "median", "quartiles", "met", "note"], ["---"] * 7]
    lines += [[row.figure, row.over, *_cells(row), row.note] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "# Benchmarks\n\nMade by `python -m tests.benchmarks --write`; not edited. Each row is a ratio of two things that "
        "were measured side by side, in turns, in one run. An empty row needs a GPU or a package that was not there.\n\n"
        f"{_about(where)} {rounds} rounds. {os.cpu_count()} CPUs, with a load of {os.getloadavg()[2]:.1f} in the last 15 minutes: "
        f"above 1 it was shared with other work, and what is measured in seconds says less.\n\n{table}\n"
    )


def ratios_table(rows: Sequence[Ratio], where: dict[str, Any]) -> Table:
    """One line for each ratio."""
    table = Table(
        title="Ratios of what was measured side by side",
        caption=_about(where),
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("figure, over what, and a note", overflow="fold")
    for column in ("aim", "median", "quartiles"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("met")
    for row in rows:
        what = Text(row.figure).append(f"\nover {row.over}").append(f"\n{row.note}" if row.note else "", style="dim")
        table.add_row(what, *_cells(row))
    return table


def measure(
    names: Sequence[str],
    device: str,
    rounds: int,
    quick: bool,
    console: Console,
    out: Path | None = None,
    page: Path | None = None,
) -> None:
    """Each benchmark's rows, printed when all are there, and written whenever one is done: an end too soon loses little."""
    rows: list[Ratio] = []
    numbers: dict[str, Any] = {
        "benchmark": "ratios",
        "machine": where_measured(device),
        "rounds": rounds,
        "quick": quick,
        "ratios": [],
    }
    for name in tracked(names, "measuring"):
        fresh = importlib.import_module(f"tests.benchmarks.{name}").measure(device, rounds, quick)
        rows += fresh
        numbers["ratios"] += [{"of": name, **row.as_dict()} for row in fresh]
        write(numbers, out)
    console.print(ratios_table(rows, numbers["machine"]))
    if page is not None:
        page.write_text(ratios_page(rows, numbers["machine"], rounds), encoding="utf-8")


def write(numbers: dict[str, Any], out: Path | None) -> None:
    """The numbers as JSON, if a file was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure_inputs(repeats: int, console: Console, out: Path | None = None) -> None:
    """The input audit, which has tables of its own."""
    result = inputs.measure(repeats)
    for table in (inputs_table(result), resident_table(result)):
        console.print(table)
    write(result, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").strip())
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(RATIOS)}; by default all of them. Or `inputs` alone, which has tables of its own",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="how many runs each contestant makes; by default 5")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, to see that it runs; the ratios mean nothing"
    )
    parser.add_argument("--repeats", type=int, default=15, help="inputs: how often each pass is measured")
    parser.add_argument("--out", type=Path, default=None, help="where to write the numbers as JSON; by default nowhere")
    parser.add_argument("--write", action="store_true", help="write the table of ratios to examples/benchmarks.md")
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(options.names)) or list(RATIOS)
    if unknown := [name for name in names if name not in (*RATIOS, "inputs")]:
        parser.error(f"there is no benchmark {unknown[0]!r}. There are: {', '.join(RATIOS)}, inputs.")
    if len(names) > 1 and "inputs" in names:
        parser.error("'inputs' has tables of its own. Run it alone.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU here. Use --device cpu.")
    for option in ("repeats", "rounds"):
        if getattr(options, option) < 1:
            parser.error(f"--{option} is {getattr(options, option)}. Give at least 1.")
    console = Console()
    if names == ["inputs"]:
        measure_inputs(options.repeats, console, options.out)
    else:
        page = PAGE if options.write else None
        measure(names, options.device, options.rounds, options.quick, console, options.out, page)
    if options.out is not None:
        print(f"numbers: {options.out}")


if __name__ == "__main__":
    main()
