"""The planted cases: precision and recall of findings, and how many verdicts are exact.

``python -m tests.inputs.test_planted`` prints the figures, those of the third that was held out apart.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch

from lightning_freeze import audit_inputs

from .planted import CASES, Case

FAULTS = {"unused", "dead", "metadata", "conditional"}


@dataclass
class Figures:
    """Counts over cases, from which the shares are made."""

    cases: int = 0
    leaves: int = 0
    exact: int = 0
    planted: int = 0
    found: int = 0
    confirmed: int = 0
    confirmed_true: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return self.confirmed_true / self.confirmed

    @property
    def recall(self) -> float:
        return self.found / self.planted

    def __str__(self) -> str:
        return (
            f"{self.cases} cases: precision of confirmed findings {self.precision:.4f} "
            f"({self.confirmed_true}/{self.confirmed}), recall {self.recall:.4f} ({self.found}/{self.planted}), "
            f"exact verdicts {self.exact / self.leaves:.4f} ({self.exact}/{self.leaves})"
        )


def audited(case: Case) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]], set[tuple[str, str]]]:
    """A case's verdicts, its findings and those of them that are confirmed."""
    torch.manual_seed(0)
    module, run = case.build()
    with audit_inputs(module) as audit:
        run(module)
    assert audit.failure is None, audit.failure
    found = {(f.module or "", f.argument or "") for f in audit.findings}
    confirmed = {(f.module or "", f.argument or "") for f in audit.findings if f.confirmed}
    return dict(audit.verdicts), found, confirmed


def measure(cases: list[Case]) -> Figures:
    """The figures over some cases."""
    figures = Figures()
    for case in cases:
        verdicts, found, confirmed = audited(case)
        faults = {key for key, verdict in case.expected.items() if verdict in FAULTS}
        figures.cases += 1
        figures.leaves += len(case.expected)
        figures.planted += len(faults)
        figures.found += len(faults & found)
        figures.confirmed += len(confirmed)
        figures.confirmed_true += len(confirmed & faults)
        for key in sorted({*case.expected, *verdicts}):
            said, truth = verdicts.get(key), case.expected.get(key)
            if said == truth:
                figures.exact += 1
            else:
                sure = "confirmed" if key in confirmed else "candidate" if key in found else "no finding"
                figures.wrong.append(f"{case.theme}.{case.name} {key}: {said}, but is {truth} ({sure})")
    return figures


@pytest.mark.parametrize("held_out", [False, True], ids=["tuned on", "held out"])
def test_confirmed_findings_are_true_and_few_faults_are_missed(held_out: bool) -> None:
    figures = measure([case for case in CASES if case.held_out == held_out])
    assert figures.cases >= 50
    assert figures.precision == 1.0, figures.wrong
    assert figures.recall >= 0.97, figures.wrong
    assert figures.exact / figures.leaves >= 0.98, figures.wrong


def test_the_measure_can_fail() -> None:
    case = next(case for case in CASES if case.name == "nesting_child_ignores_what_was_computed_from_the_mask")
    lie = replace(case, expected=dict.fromkeys(case.expected, "used"))
    assert measure([case]).precision == 1.0
    assert measure([lie]).precision == 0.0
    assert measure([replace(case, expected={**case.expected, ("", "absent"): "unused"})]).recall < 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    which = sys.argv[1] if len(sys.argv) > 1 else "both"
    for held_out in (False, True):
        if which in ("both", "held-out" if held_out else "tuned"):
            figures = measure([case for case in CASES if case.held_out == held_out])
            print("held out:" if held_out else "tuned on:", figures)
            print(*figures.wrong, sep="\n")
