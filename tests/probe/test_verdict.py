"""How each optimizer is held, and the words of each refusal."""

from __future__ import annotations

import pytest

from lightning_freeze import OptimizerTraits, UnsupportedError
from lightning_freeze.probe.verdict import hold_method

HOLDS = OptimizerTraits("AdamW", True, True, True, True, steps_in_backward=False)
LEAKS = OptimizerTraits(
    "Leaky",
    False,
    False,
    reasons={"skips_none": "the value of a parameter moved", "holds_excluded": "a step raised KeyError: 'z'"},
)


def test_none_holds_first() -> None:
    assert hold_method(HOLDS, 0, late=["slow"], fully_frozen="it waits") == "none"
    assert hold_method(OptimizerTraits("Muon", False, True, True, True), 0) == "excluded"


def test_one_that_nothing_holds_is_refused_with_both_reasons() -> None:
    with pytest.raises(UnsupportedError) as caught:
        hold_method(LEAKS, 1)
    assert str(caught.value) == (
        "optimizer 1 (Leaky) cannot keep a parameter frozen. On small parameters, the value of a parameter moved; and a step "
        "raised KeyError: 'z'. Use another optimizer for the groups that freeze (AdamW, SGD), or give this one only parameters "
        "of `rest` with `rest: train`."
    )


def test_updates_within_backward_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"optimizer 0 \(LOMO\) updates parameters within backward.*`step\(\)`"):
        hold_method(OptimizerTraits("LOMO", steps_in_backward=True), 0)


def test_one_that_cannot_begin_late_is_refused_only_where_something_does() -> None:
    traits = OptimizerTraits(
        "Prodigy", True, True, True, False, reasons={"late_first_step_ok": "it raised KeyError: 'p0'"}
    )
    assert hold_method(traits, 0) == "none"
    with pytest.raises(UnsupportedError) as caught:
        hold_method(traits, 0, late=["a", "b", "c", "d", "e"])
    assert str(caught.value) == (
        "optimizer 0 (Prodigy) cannot hold what is frozen from its first step on and trains later (a, b, c and 2 more). On "
        "small parameters, it raised KeyError: 'p0'. Let every group train in the first update, such as by a first phase "
        "`{train: [all], updates: 1}`; or use another optimizer for them (AdamW; of a fused one, the same with "
        "`fused=False`)."
    )


def test_one_that_cannot_idle_is_refused_only_where_it_may() -> None:
    traits = OptimizerTraits(
        "Adai", True, True, False, True, reasons={"all_none_ok": "a step raised ValueError: size 0"}
    )
    assert hold_method(traits, 0) == "none"
    with pytest.raises(
        UnsupportedError, match=r"in which nothing trains, and it waits for another\. .* size 0\. Use a sche"
    ):
        hold_method(traits, 0, fully_frozen="it waits for another")


def test_what_is_not_known_needs_the_audit() -> None:
    traits = OptimizerTraits("Odd", why="its `lock` cannot be copied")
    assert hold_method(traits, 0) == "unknown"
    with pytest.raises(
        UnsupportedError, match=r"could not be probed \(its `lock` cannot be copied\).*Set `audit: true`"
    ):
        hold_method(traits, 0, audited=False)
