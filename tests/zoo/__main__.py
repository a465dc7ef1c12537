"""The zoo: ``python -m tests.zoo`` runs all that is installed and prints the table; ``--write`` puts it into ``examples/zoo.md``.

``--old`` names a folder with another version of pytorch_optimizer, which runs in a process of its own and joins the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.zoo.database import torchs
from tests.zoo.survey import Row, survey
from tests.zoo.table import faults, page
from tests.zoo.zoo import PACKAGES, specimens, versions

FILE = Path(__file__).parents[2] / "examples" / "zoo.md"
ROOT = Path(__file__).parents[2]


def run(packages: Sequence[str]) -> list[Row]:
    """The rows of these packages, ``torch`` for its own database."""
    rows: list[Row] = []
    for package in packages:
        rows += survey(torchs() if package == "torch" else specimens(package), versions())
    return rows


def beside(packages: Sequence[str], kept: Path, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """The same in a process of its own, which leaves its rows in a file.

    Args:
        packages: Which.
        kept: The file.
        folder: Where packages are looked for first.
    """
    paths = [str(folder.resolve()) if folder else "", os.environ.get("PYTHONPATH", "")]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "tests.zoo", "--only", *packages, "--json", str(kept)]
    return subprocess.Popen(command, cwd=ROOT, env=where, stdout=subprocess.DEVNULL)


def run_all(old: Path | None) -> list[Row]:
    """All that is installed, and what a folder holds: in up to three processes."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as away:
        others = {Path(away) / "torch.json": beside(["torch"], Path(away) / "torch.json")}
        if old is not None:
            others[Path(away) / "old.json"] = beside(["pytorch_optimizer"], Path(away) / "old.json", old)
        try:
            rows += run(list(PACKAGES))
            for kept, process in others.items():
                if process.wait() not in (0, 1) or not kept.exists():
                    raise RuntimeError(
                        f"the run that was to write {kept.name} ended with {process.returncode}; it says why above"
                    )
                rows += [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
        finally:
            for process in others.values():
                process.kill()
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run all of it; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into examples/zoo.md")
    parser.add_argument("--old", type=Path, help="a folder with another version of pytorch_optimizer")
    parser.add_argument("--only", nargs="+", choices=["torch", *PACKAGES], help="these packages alone")
    parser.add_argument("--json", type=Path, help="write the rows there, for another process")
    asked = parser.parse_args(arguments)
    if asked.only and (asked.write or asked.old):
        parser.error("`--only` leaves packages out, so that there is no table to `--write`, and no `--old` to join it")
    rows = run(asked.only) if asked.only else run_all(asked.old)
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    print(page(rows))
    problems = faults(rows)
    print("\n".join(problems), file=sys.stderr)
    if asked.write:
        FILE.write_text(page(rows), encoding="utf-8")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
