"""``python -m tests.suites lightning|finetuning-scheduler PATH``: another project's tests, without our audit and with it.

PATH is a checkout that fits the Lightning that is installed. Its tests run three times: as they are, and with
``LIGHTNING_FREEZE_AUDIT=warn`` and ``=raise``. What passes without must pass with, but for the tests listed here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

VARIABLE = "LIGHTNING_FREEZE_AUDIT"
MODES = ("warn", "raise")


@dataclass(frozen=True)
class Suite:
    """The tests of another project."""

    folder: str
    """Where they are run, below the checkout."""
    parts: tuple[str, ...]
    sources: tuple[str, ...] = ()
    """What of the checkout is imported."""
    excused: Mapping[str, str] = field(default_factory=dict)
    """Tests, as globs, that count warnings or callbacks, and so differ; each with what it counts."""


SUITES = {
    "lightning": Suite(
        "tests/tests_pytorch",
        ("callbacks", "trainer/optimization", "loops", "models", "tuner", "checkpointing"),
        ("tests",),
        {"*.test_restore::test_callbacks_state_fit_ckpt_path": "counts the Trainer's callbacks while a fit runs"},
    ),
    "finetuning-scheduler": Suite("tests", ("test_finetuning_scheduler_callback.py",), ("src", ".")),
}


def outcomes(report: Path) -> dict[str, str]:
    """Test id to its outcome, from a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {each.tag for each in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = min(kinds, default="passed")
    return found


def run(suite: Suite, checkout: Path, mode: str, parts: Sequence[str], workers: str) -> dict[str, str]:
    """Run tests with the audit in a mode, or without; their outcomes."""
    environment = {**os.environ, VARIABLE: mode}
    paths = [*(str(checkout / source) for source in suite.sources), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=120",
            "--tb=no",
            "-o",
            "addopts=",
        ]
        command += ["-n", workers, f"--basetemp={folder}/tests", f"--junitxml={report}", *parts]
        ended = subprocess.run(command, cwd=checkout / suite.folder, env=environment, capture_output=True, text=True)
        if not report.exists():
            raise SystemExit(f"the tests could not be run:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        print(f"{VARIABLE}={mode or '(unset)'}: {(ended.stdout.strip().splitlines() or ['no output'])[-1]}", flush=True)
        return outcomes(report)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The tests whose outcome is another, with both outcomes."""
    both = {test: (before.get(test, "not run"), after.get(test, "not run")) for test in {**before, **after}}
    return {test: f"{one} → {other}" for test, (one, other) in sorted(both.items()) if one != other}


def report(mode: str, differ: Mapping[str, str], excused: Mapping[str, str]) -> int:
    """Print what differs and why; how many tests differ without a reason."""
    unknown = 0
    for test, change in differ.items():
        reason = next((why for glob, why in excused.items() if fnmatchcase(test, glob)), "")
        unknown += not reason
        print(f"{mode}: {test}: {change}{f' (listed: {reason})' if reason else ''}")
    return unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a suite without the audit and with it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("path", type=Path, help="the checkout")
    parser.add_argument("parts", nargs="*", help="files or folders of its tests; by default those that matter here")
    parser.add_argument("-n", default="2", help="processes")
    given = parser.parse_intermixed_args(arguments)
    suite = SUITES[given.suite]
    checkout = given.path.resolve()
    if not (checkout / suite.folder).is_dir():
        parser.error(f"{checkout} has no {suite.folder}: it is not a checkout of {given.suite}")
    parts = given.parts or suite.parts
    before = run(suite, checkout, "", parts, given.n)
    unknown = sum(
        report(mode, differences(before, run(suite, checkout, mode, parts, given.n)), suite.excused) for mode in MODES
    )
    print(f"{len(before)} tests; {unknown} differ without a reason")
    return int(unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
