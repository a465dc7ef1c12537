"""Why something frozen moved: the first cause that applies is given, with what to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.audit.causes import AuditContext, explain, outermost
from lightning_freeze.audit.frozen import Change, Watched


def context(**known: Any) -> AuditContext:
    """What is known of a run: of callables, what they give."""
    return AuditContext(
        **{
            name: (lambda _, value=value: value) if name in ("mover", "tied", "owner") else value
            for name, value in {"mover": None, "tied": None, "owner": None, **known}.items()
        }
    )


def change(
    kind: Any = "value", gradient_at: int | None = None, entries: tuple[str, ...] = (), since: int = 4
) -> Change:
    group = None if kind == "buffer" else "slow"
    return Change(Watched("body.w", group, lambda: torch.ones(2)), kind, entries, since, 8, gradient_at)


def caching() -> nn.Module:
    module = nn.Module()
    module.register_buffer("w", torch.ones(2), persistent=False)
    return module


ALL = {"mover": "Lion", "tied": "head.w", "owner": nn.Embedding(2, 2, max_norm=1.0), "suspects": ["EMA"]}


@pytest.mark.parametrize(
    ("gradient_at", "known", "cause", "text"),
    [
        (5, ALL, "gradient", "stepped after update 5, so something filled `.grad` after it was set to None"),
        (
            5,
            {**ALL, "sets_to_none": False},
            "gradient",
            "requires_grad=False does not set `.grad` to None. Set `.grad = None`",
        ),
        (None, ALL, "optimizer", "Lion moves a parameter whose gradient is None"),
        (None, {**ALL, "mover": None}, "tied", "it shares memory with 'head.w', which trained"),
        (None, {**ALL, "mover": None, "tied": None}, "outside", "it belongs to an Embedding with max_norm=1.0"),
        (None, {"suspects": ["EMA", "SWA"]}, "outside", "weights. In this run these write to weights: EMA, SWA. Let"),
        (None, {}, "outside", "a callback that averages or swaps weights. Let it leave frozen parameters alone"),
        (None, {}, "outside", "write `groups: {body: {select: body, by: user}}`, and `except: body` in group `slow`."),
        (None, {"sets_to_none": False}, "outside", "write `FreezeAudit(exempt={'body': '<the reason>'})`."),
    ],
)
def test_of_a_parameter_the_first_cause_is_given(gradient_at: Any, known: Any, cause: str, text: str) -> None:
    found = explain(change(gradient_at=gradient_at), context(**known), 2, select="body")
    assert (found.audit, found.kind, found.severity, found.cause) == ("frozen", "value", "error", cause)
    assert found.message.startswith("'body.w' (group 'slow', frozen) moved between updates 4 and 8, in epoch 2: ")
    assert text in found.message
    assert (found.parameter, found.group, found.first_update, found.last_update) == ("body.w", "slow", 4, 8)


@pytest.mark.parametrize(
    ("known", "severity", "cause", "text"),
    [
        ({"owner": nn.BatchNorm1d(2), "buffers_held": True}, "error", "outside", "was held in eval mode"),
        ({"owner": caching(), "buffers_held": True}, "warning", "cache", "it is a cache (`persistent=False`: no"),
        ({"owner": caching()}, "info", "outside", "its module changes it in forward"),
        ({"owner": nn.BatchNorm1d(2)}, "info", "statistics", "batch-norm statistics follow every forward"),
        ({}, "info", "outside", "its module changes it in forward"),
    ],
)
def test_of_a_buffer_it_depends_on_whether_it_is_held(known: Any, severity: str, cause: str, text: str) -> None:
    found = explain(change("buffer"), context(**known), 2)
    assert (found.audit, found.kind, found.severity, found.cause) == ("buffers", "buffer", severity, cause)
    assert found.message.startswith("buffer 'body.w' of a frozen module moved between updates 4 and 8")
    assert text in found.message


def test_entries_of_optimizer_state_are_named_and_max_norm_moves_none() -> None:
    found = explain(change("optimizer_state", entries=("exp_avg", "step")), context(owner=ALL["owner"]), 2)
    assert found.message.startswith("the optimizer state of 'body.w' (group 'slow', frozen) (exp_avg, step) moved")
    assert "max_norm" not in found.message


@pytest.mark.parametrize(
    ("since", "later", "text"),
    [
        (4, 0, "moved between updates 4 and 8, in epoch 2: "),
        (8, 0, "moved after update 8 and before the next, in epoch 2: "),
        (4, 1, "in epoch 2 (and in 1 later frozen interval): "),
        (4, 3, "in epoch 2 (and in 3 later frozen intervals): "),
    ],
)
def test_it_says_when(since: int, later: int, text: str) -> None:
    assert text in explain(change(since=since), context(), 2, later).message


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ("a.0.w a.0.b a.1.w b", ["a", "a", "a", "b"]),
        ("a.0.w a.0.b b", ["a.0", "a.0", "b"]),
        ("a.0.w", ["a.0.w"]),
        ("", []),
    ],
)
def test_the_outermost_module_of_which_everything_moved(moved: str, expected: list[str]) -> None:
    names = moved.split()
    blocks = [nn.ParameterDict({name: torch.ones(1) for name in block}) for block in ("wb", "w")]
    model = nn.ModuleDict({"a": nn.ModuleList(blocks)})
    model.b = nn.Parameter(torch.ones(1))
    assert list(map(outermost(model, names), names)) == expected
