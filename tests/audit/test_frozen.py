"""The frozen audit's intervals, without a run."""

from __future__ import annotations

import gc
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from lightning_freeze.audit.fingerprint import Reader, _bytes, differ, digest, multilinear
from lightning_freeze.audit.frozen import FrozenAudit, Watched, WatchedSet


@pytest.fixture(params=["cpu", "accelerator"])
def weight(request: Any, monkeypatch: Any) -> torch.Tensor:
    """A tensor, digested to an int, or as on an accelerator to a tensor that is compared there."""
    if request.param == "accelerator":
        bytes_of = lambda t: t.detach().contiguous().view(-1).view(torch.uint8)  # noqa: E731
        monkeypatch.setattr(Reader, "read", lambda self, leaves, _: [multilinear(bytes_of(t), 1) for t in leaves])
    return torch.arange(4.0)


def changes(audit: FrozenAudit) -> list[tuple[str, tuple[str, ...], int, int]]:
    return [(s.kind, s.entries, s.since, s.until) for s in audit.collect()]


def test_an_interval_without_a_change_is_silent(weight: torch.Tensor) -> None:
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], 1)
    weight.mul_(1.0)
    audit.check(2)
    audit.close([["w"]], 3)
    assert changes(audit) == []
    assert audit.checked == 2


def test_a_change_between_intervals_is_nobodys(weight: torch.Tensor) -> None:
    audit = FrozenAudit()
    for update in (1, 5):
        audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], update)
        audit.close([["w"]], update + 2)
        weight.add_(1)
    assert changes(audit) == []


def test_each_check_begins_a_new_interval(weight: torch.Tensor) -> None:
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], 0)
    audit.check(3)
    weight.add_(1)
    audit.check(6)
    audit.check(9)
    assert changes(audit) == [("value", (), 3, 6)]
    assert changes(audit) == []


def test_a_change_that_is_taken_back_within_an_interval_is_not_seen(weight: torch.Tensor) -> None:
    """Stated as a limit: the audit compares the ends of an interval."""
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], 0)
    weight.add_(1)
    weight.sub_(1)
    audit.close([["w"]], 1)
    assert changes(audit) == []


@pytest.mark.parametrize(
    ("after", "entries"),
    [
        ({"step": 1, "exp_avg": torch.zeros(2)}, ()),
        ({"step": 2, "exp_avg": torch.zeros(2)}, ("step",)),
        ({"step": 1, "exp_avg": torch.tensor([0.0, -0.0])}, ("exp_avg",)),
        ({"step": 1}, ("exp_avg",)),
        ({"step": 1, "exp_avg": torch.zeros(2), "new": [torch.ones(1)]}, ("new[0]",)),
        ({"step": 1, "exp_avg": torch.zeros(2), "array": np.zeros(2), "losses": deque([1.0])}, ()),
        ({"step": 1, "exp_avg": torch.zeros(2), "array": np.array([0.0, -0.0])}, ("array", "losses[0]")),
        ({"step": 1, "exp_avg": torch.zeros(2), "array": np.zeros((2, 1)), "losses": [2.0]}, ("array", "losses[0]")),
        ({"step": 1, "exp_avg": torch.zeros(2), "array": np.zeros(4, "f4"), "losses": [1.0]}, ("array",)),
    ],
)
def test_state_is_compared_entry_by_entry(after: dict[str, Any], entries: tuple[str, ...]) -> None:
    weight, state = torch.ones(2), {"step": 1, "exp_avg": torch.zeros(2)}
    state |= {"array": np.zeros(2), "losses": [1.0]} if "array" in after else {}
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight, lambda: state)})], 0)
    state = after
    audit.close([["w"]], 1)
    assert changes(audit) == ([("optimizer_state", entries, 0, 1)] if entries else [])


def test_the_first_gradient_of_an_interval_is_remembered(weight: torch.Tensor) -> None:
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], 0)
    for update in (2, 3):
        audit.saw_gradient(["w", "unknown"], update)
    weight.add_(1)
    audit.close([["w"]], 4)
    assert [change.gradient_at for change in audit.collect()] == [2]


def test_a_buffer_has_a_kind_of_its_own(weight: torch.Tensor) -> None:
    audit = FrozenAudit()
    audit.open([WatchedSet({"b": Watched("b", None, lambda: weight)})], 0)
    weight.add_(1)
    audit.close([["b"]], 1)
    assert changes(audit) == [("buffer", (), 0, 1)]


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_what_is_on_the_cpu_now_is_compared_on_the_device_where_it_was(
    by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = [True, False, True, False]  # where it is at each reading: the second time it is copied back for one
    make = {True: lambda t: multilinear(_bytes(t.detach()), 1), False: digest}
    monkeypatch.setattr(Reader, "read", lambda self, leaves, _: [make[elsewhere.pop(0)](t) for t in leaves])
    weight = torch.nn.Parameter(torch.arange(4.0))
    audit = FrozenAudit()
    audit.open([WatchedSet({"w": Watched("w", "g", lambda: weight)})], 0)
    weight.data.add_(by)
    audit.check(1)
    audit.check(2)
    assert changes(audit) == [("value", (), 0, 1)] * bool(by)
    assert elsewhere == []


def test_digests_of_two_devices_prove_nothing() -> None:
    here, elsewhere = digest(torch.ones(2)), multilinear(_bytes(torch.zeros(2)), 1)
    assert differ(here, elsewhere) is differ(elsewhere, here) is False
    assert differ(here, None) is differ(elsewhere, None) is True


# --- the garbage collector


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_a_boundary(enabled: bool) -> None:
    def seen() -> torch.Tensor:
        states.append(gc.isenabled())
        if len(states) == 3:
            raise OSError("gone")
        return torch.ones(2)

    audit, states = FrozenAudit(), list[bool]()
    (gc.enable if enabled else gc.disable)()
    try:
        audit.open([WatchedSet({1: Watched("a", "g", seen)})], 0)
        after = [gc.isenabled()]
        audit.check(1)
        with pytest.raises(OSError, match="gone"):
            audit.close([[1]], 2)
        after.append(gc.isenabled())
    finally:
        gc.enable()
    assert states == [False] * 3
    assert after == [enabled] * 2
