"""Cases that are run by real processes together, one case after the other in one pair, each under its own deadline.

A case is a function of the test package, called by both processes (or by all, of more) with the same arguments; what it
returns, as JSON, is the outcome of its rank, and so is an exception. Where a case ends for one process and not for another,
or one of them is gone, they are all ended and new ones go on with the next case, so that none can hang the others.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A call that both processes make.

    Args:
        name: What its outcome is kept under.
        function: Where the function is, as ``module:function``.
        arguments: Its keyword arguments, which JSON can hold; ``root``, a folder of the case's own, comes on top.
        deadline: Seconds it may take.
        world: The processes that it takes.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = 30.0
    world: int = 2


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
    """The outcomes of each case, by its name: of rank 0, rank 1, and so on.

    Args:
        root: A folder for what the cases write.
        cases: In the order in which they are run; their names differ.
    """
    seed = _seed()
    assert seed.stdin is not None
    assert seed.stdout is not None
    seed.stdin.write(json.dumps({"root": str(root), "cases": [asdict(case) for case in cases]}) + "\n")
    seed.stdin.flush()
    assert seed.stdout.readline() == "done\n", "the process from which pairs are forked is gone"
    return {case.name: [_outcome(root, case.name, rank) for rank in range(case.world)] for case in cases}


class Outcomes:
    """The outcomes of cases, each of which runs when it is first asked for: one test alone runs its own cases alone.

    Args:
        root: A folder for what the cases write.
        cases: The cases; their names differ.
    """

    def __init__(self, root: Path, cases: Sequence[Case]) -> None:
        self.root = root
        self._cases = {case.name: case for case in cases}
        self._found: dict[str, list[Outcome]] = {}

    def __getitem__(self, name: str) -> list[Outcome]:
        """What became of a case, on each rank."""
        if name not in self._found:
            self._found |= run_pairs(self.root, [self._cases[name]])
        return self._found[name]

    def run(self, case: Case) -> None:
        """Run a case whose arguments come from what others have left."""
        self._cases[case.name] = case
        _ = self[case.name]

    def results(self, name: str) -> list[Any]:
        """What each rank returned, of a case that went through on all."""
        outcomes = self[name]
        assert {o.error for o in outcomes} == {""}, [(o.error, o.text, o.trace) for o in outcomes]
        return [outcome.result for outcome in outcomes]


@functools.lru_cache(maxsize=1)
def _seed() -> subprocess.Popen[str]:
    """A process that has imported everything, and has no threads, from which pairs are forked: to import takes seconds."""
    here = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    seed = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.processes.pairs"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(_end, seed)
    return seed


def _end(seed: subprocess.Popen[str]) -> None:
    seed.kill()
    seed.communicate()


def _serve() -> None:
    """In the process that pairs are forked from: run the cases of each line of the input."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")  # what imports and cases print goes elsewhere
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        left = [Case(**plain) for plain in asked["cases"]]
        for module in {case.function.partition(":")[0] for case in left}:
            importlib.import_module(module)
        while left:
            left = left[_one_pair(Path(asked["root"]), left) :]
        answers.write("done\n")
        answers.flush()


def _one_pair(root: Path, cases: Sequence[Case]) -> int:
    """Fork a pair and follow it until it is through with the cases, or must be ended: how many are done, at least one."""
    world = cases[0].world
    cases = list(itertools.takewhile(lambda case: case.world == world, cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(root, cases, rank, port) for rank in range(world)]
    done = 0
    try:
        for case in cases:
            done += 1
            ended = _wait(root, case, children)
            if not ended or len({bool(_outcome(root, case.name, rank).error) for rank in range(world)}) > 1:
                break
    finally:
        for child in children:
            child.end()
    for rank in range(world):
        if not _place(root, cases[done - 1].name, rank).exists():
            said = (root / f"output-{rank}.txt").read_text(errors="replace")
            _write(root, cases[done - 1].name, rank, Outcome(error="gone", text=said[-3000:]))
    return done


@dataclass
class _Child:
    """A forked process."""

    pid: int
    gone: bool = False

    def alive(self) -> bool:
        """Whether it is still there."""
        if not self.gone:
            self.gone = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return not self.gone

    def end(self) -> None:
        """Now."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.gone = True


def _fork(root: Path, cases: Sequence[Case], rank: int, port: int) -> _Child:
    pid = os.fork()
    if pid:
        return _Child(pid)
    try:
        output = os.open(root / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(cases[0].world),
            "LOCAL_WORLD_SIZE": str(cases[0].world),
            "TORCHELASTIC_RUN_ID": "pair",  # so that Lightning starts no processes of its own
        }
        os.chdir(root)
        _work(root, cases, rank)
    finally:
        os._exit(0)


def _wait(root: Path, case: Case, children: Sequence[_Child]) -> bool:
    """Wait until all processes have ended a case. One that is gone gives the others the case's time to notice."""
    until = time.monotonic() + case.deadline + 2
    places = [_place(root, case.name, rank) for rank in range(case.world)]
    while not all(place.exists() for place in places):
        waiting = [child for child, place in zip(children, places, strict=True) if not place.exists() and child.alive()]
        if time.monotonic() > until or not waiting:
            return all(place.exists() for place in places)
        time.sleep(0.005)
    return True


def _place(root: Path, name: str, rank: int) -> Path:
    return root / f"{name.replace('/', '_')}-{rank}.json"


def _outcome(root: Path, name: str, rank: int) -> Outcome:
    return Outcome(**json.loads(_place(root, name, rank).read_text()))


def _write(root: Path, name: str, rank: int, outcome: Outcome) -> None:
    part = _place(root, name, rank).with_suffix(".part")
    part.write_text(json.dumps(asdict(outcome)))
    part.rename(_place(root, name, rank))


def _work(root: Path, cases: Sequence[Case], rank: int) -> None:
    """What each process of a pair does."""
    for case in cases:
        # Past its deadline a process says where it stands, and ends.
        faulthandler.dump_traceback_later(case.deadline, exit=True, file=2)
        begun = time.monotonic()
        try:
            module, _, function = case.function.partition(":")
            folder = root / case.name.replace("/", "_")
            folder.mkdir(exist_ok=True)
            made = getattr(importlib.import_module(module), function)(root=folder, **case.arguments)
            outcome = Outcome(made, seconds=time.monotonic() - begun)
        except Exception as error:
            outcome = Outcome(None, type(error).__name__, str(error), traceback.format_exc(), time.monotonic() - begun)
        _write(root, case.name, rank, outcome)
        while not all(_place(root, case.name, other).exists() for other in range(case.world)):
            time.sleep(0.002)
        if len({bool(_outcome(root, case.name, other).error) for other in range(case.world)}) > 1:
            return
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    # As the module that cases and tests know, and not a second one.
    importlib.import_module("tests.processes.pairs")._serve()
