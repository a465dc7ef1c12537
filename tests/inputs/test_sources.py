"""What the source of a function says: which lambda is read where several stand on one line."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_freeze.inputs.sources import Reader

SEEN: list[Any] = []

# fmt: off
LAMBDAS: list[tuple[bool, Any]] = [
    (False, lambda own, x: x.append(own)), (True, lambda own, x: SEEN.append(own)),
    (False, lambda x: (lambda y: x + y)), (False, lambda: None), (False, lambda x: (
        x,
        1,
    )[0]), (True, lambda x: (SEEN.append(x), (lambda y: y)(x))), (False, (lambda x: lambda y: (x, y))(1)),
    (False, lambda x=1: x), (True, lambda x=[]: x), (True, lambda x: 1 if True else SEEN.append(x)),
]
# fmt: on


@pytest.mark.parametrize(("writes", "function"), LAMBDAS)
def test_a_lambda_is_read_where_it_stands(writes: bool, function: Any) -> None:
    code = function.__code__
    assert Reader(code, globals(), dict.fromkeys(code.co_freevars)).writes is writes


def test_a_function_without_source_may_write() -> None:
    space: dict[str, Any] = {}
    exec("def one(x): return x\ntwo = lambda x: x", space)
    assert Reader(space["one"].__code__, space, {}).writes
    assert Reader(space["two"].__code__, space, {}).writes
