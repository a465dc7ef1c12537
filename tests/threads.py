"""How many threads torch computes on, for a while; shared by tests and benchmarks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch computes on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
