"""torch's flags for dispatch modes, where threads enter and leave them in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.mode import remember_flags, restore_flags


class Plain(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Kept(Plain):
    def __enter__(self) -> Kept:
        remember_flags()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        restore_flags()


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    before = {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    yield
    vars(_python_dispatch).update(before)


def first_in_first_out(kind: type[TorchDispatchMode]) -> None:
    """Two threads: one enters, the other enters, the one leaves, the other leaves."""
    turns = [threading.Event() for _ in range(3)]

    def one() -> None:
        with kind():
            turns[0].set()
            assert turns[1].wait(10)
        turns[2].set()

    def other() -> None:
        assert turns[0].wait(10)
        with kind():
            turns[1].set()
            assert turns[2].wait(10)

    threads = [threading.Thread(target=one), threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_torch_mixes_them_up() -> None:
    """Should torch keep them for each thread, this module can go."""
    first_in_first_out(Plain)
    assert is_in_torch_dispatch_mode()


def test_they_are_restored_by_the_last_to_leave() -> None:
    first_in_first_out(Kept)
    assert not is_in_torch_dispatch_mode()


def test_within_a_users_mode_they_stay_as_that_has_set_them() -> None:
    with Plain():
        with audit_inputs(nn.Identity()) as audit:
            nn.Sequential(nn.Identity())(torch.ones(1))
        assert audit.failure is None
        assert is_in_torch_dispatch_mode()
    assert not is_in_torch_dispatch_mode()
