"""Cases that are run by two real processes together, one after the other in one pair, each under its own deadline.

A case is a function of the test package, called by both processes with the same arguments; what it returns, as JSON, is the
outcome of its rank, and so is an exception. Where a case ends for one process and not for the other, or one of them is gone,
the pair is ended and a new one goes on with the next case, so that none can hang the others.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WORLD = 2
_START = 120.0  # seconds that a pair has to import everything
_APART = 3


@dataclass(frozen=True)
class Case:
    """A call that both processes make.

    Args:
        name: What its outcome is kept under.
        function: Where the function is, as ``module:function``.
        arguments: Its keyword arguments, which JSON can hold; ``root``, a folder of the case's own, comes on top.
        deadline: Seconds it may take.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """What one process made of a case.

    Args:
        result: What the function returned.
        error: The kind of exception that it raised; ``gone`` where the process did not live to say, or came past its time.
        text: The exception's own text, or the end of what the process wrote.
        trace: The exception's traceback.
        seconds: How long it took.
    """

    result: Any = None
    error: str = ""
    text: str = ""
    trace: str = ""
    seconds: float = 0.0


def run_pairs(root: Path, cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """The outcomes of each case, by its name: of rank 0, and of rank 1.

    Args:
        root: An empty folder for what the cases write.
        cases: In the order in which they are run; their names differ.
    """
    left = list(cases)
    found: dict[str, list[Outcome]] = {}
    while left:
        done = _one_pair(root, left)
        found.update(done)
        left = left[len(done) :]
    return found


def _one_pair(root: Path, cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """Start a pair and follow it until it is through with the cases, or must be ended; at least one is done."""
    (root / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    processes = list(_start(root))
    found: dict[str, list[Outcome]] = {}
    try:
        for number, case in enumerate(cases):
            ended = _wait(root, case, processes, case.deadline + (_START if number == 0 else 0.0))
            found[case.name] = [_outcome(root, case.name, rank) for rank in range(WORLD)]
            if not ended or len({bool(outcome.error) for outcome in found[case.name]}) > 1:
                break
    finally:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # those that are through end by themselves
                process.wait(timeout=10 if len(found) == len(cases) else 0.5)
            process.kill()
            process.wait()
    return found


def _start(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).resolve().parents[2])
    for rank in range(WORLD):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(WORLD),
            "LOCAL_WORLD_SIZE": str(WORLD),
            "TORCHELASTIC_RUN_ID": "pair",  # so that Lightning starts no processes of its own
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        with (root / f"output-{rank}.txt").open("wb") as output:
            yield subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.processes.pairs", str(root)],
                env=environment,
                cwd=root,
                stdout=output,
                stderr=output,
            )


def _wait(root: Path, case: Case, processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Wait until both processes have ended a case. One that is gone gives the other the case's time to notice."""
    until = time.monotonic() + seconds
    while not all(_place(root, case.name, rank).exists() for rank in range(WORLD)):
        alive = [process for process in processes if process.poll() is None]
        written = [_place(root, case.name, rank).exists() for rank in range(WORLD)]
        waiting = [p for p, there in zip(processes, written, strict=True) if not there and p.poll() is None]
        if time.monotonic() > until or not alive or not waiting:
            return all(written)
        time.sleep(0.01)
    return True


def _place(root: Path, name: str, rank: int) -> Path:
    return root / f"{name.replace('/', '_')}-{rank}.json"


def _outcome(root: Path, name: str, rank: int) -> Outcome:
    place = _place(root, name, rank)
    if place.exists():
        return Outcome(**json.loads(place.read_text()))
    output = (root / f"output-{rank}.txt").read_text(errors="replace")
    return Outcome(error="gone", text=output[-3000:])


def _work(root: Path) -> None:
    """What each process of a pair does."""
    importlib.import_module("tests.conftest")  # torch and Lightning, which take their time
    rank = int(os.environ["RANK"])
    for plain in json.loads((root / "cases.json").read_text()):
        case = Case(**plain)
        # Past its deadline a process says where it stands, and ends.
        faulthandler.dump_traceback_later(case.deadline, exit=True)
        begun = time.monotonic()
        try:
            module, _, function = case.function.partition(":")
            folder = root / case.name.replace("/", "_")
            folder.mkdir(exist_ok=True)
            made = getattr(importlib.import_module(module), function)(root=folder, **case.arguments)
            outcome = Outcome(made, seconds=time.monotonic() - begun)
        except Exception as error:
            outcome = Outcome(None, type(error).__name__, str(error), traceback.format_exc(), time.monotonic() - begun)
        place = _place(root, case.name, rank)
        place.with_suffix(".part").write_text(json.dumps(asdict(outcome)))
        place.with_suffix(".part").rename(place)
        other = _place(root, case.name, 1 - rank)
        while not other.exists():
            time.sleep(0.002)
        if bool(json.loads(other.read_text())["error"]) != bool(outcome.error):
            sys.exit(_APART)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
