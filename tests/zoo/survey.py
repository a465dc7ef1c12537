"""One optimizer after the other: what it really does, what the probe says of it, and three fits."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_freeze import probe_optimizer
from tests.zoo.hand import observe
from tests.zoo.net import ZooNet
from tests.zoo.trial import TURNS, Outcome, fit
from tests.zoo.zoo import Specimen

TRAITS = (
    "skips_none",
    "holds_excluded",
    "all_none_ok",
    "late_first_step_ok",
    "steps_in_backward",
    "closure_reentrant",
    "step_counters",
)


@dataclass
class Row:
    """What was found of one optimizer.

    Args:
        package: Where it comes from.
        version: Of the package.
        name: Its class.
        not_built: Why it could not be built; the rest is empty then.
        ways: How it was held, in each fit.
        turns: Schedule to what became of the fit.
        broken: What must not be: leaks and crashes.
        step_counters: What runs on in its param groups.
        remarks: What else there is to say.
        verdicts: Trait to what is real and what the probe says, where the former could be seen.
    """

    package: str
    version: str
    name: str
    not_built: str = ""
    ways: list[str] = field(default_factory=list)
    turns: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    step_counters: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    verdicts: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def off_diagonal(self) -> list[str]:
        """The traits of which the probe says something else than what is real."""
        return [trait for trait, (real, said) in self.verdicts.items() if real != said]

    @property
    def way(self) -> str:
        """How it was held, in a word."""
        words = {"none": "None", "excluded": "left out", "unknown": "None, unproved"}
        found = dict.fromkeys(words[way] for way in self.ways if way)
        return ", ".join(found) or ("refused" if "refused" in self.turns.values() else "—")


def survey(specimens: Iterable[Specimen], versions: dict[str, str]) -> Iterator[Row]:
    """A row for each."""
    for specimen in specimens:
        yield examine(specimen, versions.get(specimen.package, ""))


def examine(specimen: Specimen, version: str) -> Row:
    """All that is found of one."""
    row = Row(specimen.package, version, specimen.name)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            built = specimen.build(ZooNet(specimen))
        except Exception as error:  # third-party code of any kind
            row.not_built = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            return row
        if not hasattr(built, "param_groups"):
            row.not_built = "it has no `param_groups`, so a Trainer takes it for no optimizer"
            return row
        compare(specimen, row)
    for name, turn in TURNS.items():
        _note(row, name, fit(specimen, turn))
    if specimen.steps != "closure":
        row.remarks.append(_STEPPED[specimen.steps])
    if specimen.graph:
        row.remarks.append("backward keeps its graph")
    return row


_STEPPED = {
    "plain": "stepped in a plain loop, without a closure",
    "after": "stepped in a plain loop: backward, then `step(closure)`",
    "pair": "stepped in a plain loop, with a closure that returns outputs and loss",
    "backward": "updates within backward",
}


def compare(specimen: Specimen, row: Row) -> None:
    """What is real beside what the probe says."""
    real = observe(specimen)
    if real.fails:
        row.remarks.append(f"in a plain loop, with nothing frozen: {real.fails}")
    try:
        said = probe_optimizer(specimen.build(ZooNet(specimen)), True)
    except Exception as error:
        row.remarks.append(f"the probe raised {type(error).__name__}: {error}")
        return
    row.step_counters = list(said.step_counters)
    if not real.fails:
        seen = {trait: (getattr(real, trait), getattr(said, trait)) for trait in TRAITS}
        row.verdicts = {
            trait: [_plain(is_so), _plain(said_so)] for trait, (is_so, said_so) in seen.items() if is_so is not None
        }
    if said.why:
        row.remarks.append(f"the probe learnt nothing: {said.why}")
    elif said.skips_none is False and said.holds_excluded:
        row.remarks.append(f"without leaving out, {said.reasons['skips_none']}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _note(row: Row, turn: str, outcome: Outcome) -> None:
    row.ways.append(outcome.way)
    row.turns[turn] = outcome.word
    if outcome.fails:
        row.broken.append(f"{turn}: {outcome.leak or outcome.crash}")
    said = [outcome.refused.split(". Use ")[0].split(". Let ")[0], outcome.without_us, *outcome.told]
    if outcome.still:
        said.append(f"{' and '.join(outcome.still)} did not move when planned to train ({turn})")
    row.remarks += [each for each in said if each and each not in row.remarks]
