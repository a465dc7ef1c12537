"""What the tests of holds share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import distributed as dist


@pytest.fixture
def process() -> Iterator[None]:
    """A world of one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
