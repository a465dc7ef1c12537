"""The report of a run as one HTML file that needs nothing else and asks nothing of a network."""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from lightning_freeze.report.repeats import Runs, bin_width
from lightning_freeze.report.run_data import RunData
from lightning_freeze.report.steps import StepKind, unfolded

Data = dict[str, Any]
_MOST_RUNS = 200_000  # that the page's script draws one by one


def html_page(report: RunData) -> str:
    """The page of a run; its policy allows the style and the script in it, and nothing else."""
    data, folder = page_data(report), files(__package__) / "html"
    page, style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    policy = f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")  # nothing in it ends a script, or begins a comment
    return Template(page).substitute(policy=policy, title=escape(data["title"]), style=style, script=script, data=safe)


def in_a_frame(page: str) -> str:
    """A page within another, such as a notebook, that keeps its styles and its script apart."""
    return f'<iframe sandbox="allow-scripts" allow="clipboard-write" width="100%" height="720" srcdoc="{escape(page)}"></iframe>'


def page_data(report: RunData) -> Data:
    """What the page's script makes charts and tables of; what there is nothing of is left out."""
    run, schedule = report.run, report.run.get("schedule")
    data = {
        "title": f"{run.get('model') or 'A run'}: {report.verdict}",
        "verdict": report.verdict,
        "intervals": report.intervals,
        "path": str(report.path),
        "run": run,
        "resumes": [each["run"] for each in report.runs[:-1]],
        "first": report.runs[0].get("updates_before", 0),
        "sizes": [astuple(size) for size in report.sizes.values()],
        "timeline": report.steps.length and _timeline(run["groups"], report.steps),
        "metrics": _metrics(report.path.with_name("metrics.csv")),
        "rates": [(counts["total"], counts["lr"]) for counts in report.counts if counts.get("lr")],
        "seconds": _seconds(report),
        "state_bytes": report.counts[-1].get("state_bytes") if report.counts else None,
        "findings": [finding.as_dict() for finding in report.findings],
        "schedule": schedule and yaml.safe_dump({"schedule": schedule}, sort_keys=False, default_flow_style=None),
    }
    return {key: value for key, value in data.items() if value}


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _timeline(groups: Iterable[str], steps: Runs[StepKind]) -> Data:
    """What was planned and updated when: sets as bits, and runs of steps as pairs of a kind and a count.

    Of too many runs those within a bin are sorted by kind; the page then shows no less than bins.
    """
    width = 1 if steps.number <= _MOST_RUNS else bin_width(steps.length)
    made = steps if width == 1 else (part[1:] for part in steps.binned(width))
    found = set().union(*(step.planned | step.updated for step in steps.counts))
    names = list(dict.fromkeys([*groups, *sorted(found)]))
    bits = {name: 1 << index for index, name in enumerate(names)}
    sets: dict[frozenset[str], int] = {}
    places: dict[str, int] = {}
    kinds: dict[tuple[int, ...], int] = {}
    epochs: dict[int, int] = {}
    runs: list[int] = []
    total = 0
    for step, count in made:
        epochs.setdefault(step.epoch, total)
        updated, planned = (sets.setdefault(each, len(sets)) for each in (step.updated, step.planned))
        kind = (step.optimizer, updated, planned, places.setdefault(step.place, len(places)))
        runs += [kinds.setdefault(kind, len(kinds)), count]
        total += count
    timeline = {"groups": names, "total": total, "runs": runs, "kinds": [*kinds], "places": [*places]}
    timeline["sets"] = [f"{sum(bits[name] for name in each):x}" for each in sets]
    return {**timeline, "epochs": [*epochs.items()], "bin": width}


def _metrics(path: Path, most: int = 2000) -> dict[str, list[Sequence[str]]]:
    """The columns of a `metrics.csv` of Lightning's CSVLogger, each as (epoch, step, value), as they are written."""
    found: dict[str, list[Sequence[str]]] = {}
    with suppress(csv.Error):  # what comes after damage is of no use
        for row in csv.DictReader(path.read_text("utf-8", "replace").splitlines() if path.is_file() else ()):
            for name, text in row.items():
                if text and name and name not in ("epoch", "step") and not name.startswith("freeze/"):
                    found.setdefault(name, []).append((row.get("epoch", ""), row.get("step", ""), text))
    return {name: points[:: -(-len(points) // most)] for name, points in found.items()}


def _seconds(report: RunData) -> list[tuple[list[str], int, float]]:
    """The sets that trained most often, and what trains everything: steps, and the time of the batches that ended so."""
    steps: Counter[frozenset[str]] = Counter()
    seconds: dict[frozenset[str], float] = {}
    before = {run["run"]: run["updates_before"] for run in report.runs}
    for phase in report.phases:
        sets = [*map(frozenset, phase["sets"])]
        made = unfolded(phase["steps"], lambda optimizer, number: number)
        restored = made.head(max(0, before.get(phase.get("run", ""), 0) - phase["first"]))  # without a time
        for number, count in (made.counts - restored.counts).items():
            steps[sets[number]] += count
        for names, spent in zip(sets, phase.get("seconds") or (), strict=False):
            seconds[names] = seconds.get(names, 0.0) + spent
    everything = report.run["groups"].keys()
    often = sorted(seconds, key=lambda names: (names != everything, -steps[names]))[:12]
    return [(sorted(names), steps[names], seconds[names]) for names in often if seconds[names]]
