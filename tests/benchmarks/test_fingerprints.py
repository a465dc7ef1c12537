"""The benchmark of fingerprints measures what it says; how fast they are is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_freeze.audit.weights import WeightAudit
from tests.benchmarks.fingerprints import AUDIT, measure


def test_each_figure_has_its_samples():
    originals = [getattr(WeightAudit, name) for name in AUDIT]
    threads = torch.get_num_threads()
    rows = measure("cpu", rounds=2, quick=True)
    assert [getattr(WeightAudit, name) for name in AUDIT] == originals
    assert torch.get_num_threads() == threads
    *rates, audit, at_the_end, first = rows
    assert len(rates) == len({1, threads})
    assert all((row.over, row.aim, row.sense) == ("sum", 0.5, "at least") for row in rates)
    assert (audit.aim, audit.sense, at_the_end.aim, first.aim) == (0.01, "at most", None, None)
    for row in rows:
        assert len(row.samples) == 2
        assert min(row.samples) > 0
        assert json.loads(json.dumps(row.as_dict())) == row.as_dict()
    assert all(0 < end < whole < 1 for end, whole in zip(at_the_end.samples, audit.samples, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    (row,) = measure("cuda", rounds=1, quick=True)
    assert (row.samples, row.note) == ([], "there is no GPU here")
