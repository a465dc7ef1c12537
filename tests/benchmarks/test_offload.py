from __future__ import annotations

import pytest
import torch

from tests.benchmarks.offload import measure


def test_without_a_gpu_it_says_so():
    rows = measure("cpu", rounds=1)
    assert [(row.aim, row.sense, list(row.samples), row.note) for row in rows] == [
        (1.02, "at most", [], "needs a GPU"),
        (0.99, "at least", [], "needs a GPU"),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_state_is_given_back():
    *times, memory = measure("cuda", rounds=1, quick=True)
    assert all(row.samples for row in times)
    assert memory.met
