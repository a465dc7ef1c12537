"""The benchmark of fingerprints measures what it says; how fast they are is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks.fingerprints import measure


def test_each_figure_has_its_samples():
    threads = torch.get_num_threads()
    rows = measure("cpu", rounds=2, quick=True)
    assert torch.get_num_threads() == threads
    *rates, main, everything, at_the_end, first = rows
    assert len(rates) == len({1, threads})
    assert all((row.over, row.aim, row.sense) == ("sum", 0.5, "at least") for row in rates)
    assert [row.aim for row in (main, everything, at_the_end, first)] == [0.006, 0.02, None, None]
    for row in rows:
        assert len(row.samples) == 2
        assert json.loads(json.dumps(row.as_dict())) == row.as_dict()
    assert min(*rates[0].samples, *first.samples) > 0
    assert all(abs(share) < 1 for row in (main, everything, at_the_end) for share in row.samples)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    (row,) = measure("cuda", rounds=1, quick=True)
    assert (row.samples, row.note) == ([], "there is no GPU here")
