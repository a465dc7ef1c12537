"""The benchmark of the input audit measures what it says; how fast it is is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks.__main__ import inputs_table, resident_table
from tests.benchmarks.inputs import (
    CASES,
    PASSES,
    RESIDENT,
    Recurrent,
    Unrolled,
    allocator_peak,
    bert,
    llama,
    lstm,
    measure,
    measure_pass,
    resident_peak,
    t5,
    vit,
)

SMALL = {
    "cells": lambda: lstm(Unrolled, layers=2, hidden=4, batch=2, length=3),
    "layers": lambda: lstm(Recurrent, layers=2, hidden=4, batch=2, length=3),
}


@pytest.fixture(scope="module")
def result():
    threads = torch.get_num_threads()
    measured = measure(repeats=1, warm_up=1, cases=SMALL, processes=0)
    assert torch.get_num_threads() == threads
    return measured


def test_each_pass_has_its_numbers(result):
    assert [case["name"] for case in result["cases"]] == list(SMALL)
    for case in result["cases"]:
        for name in PASSES:
            numbers = case[name]
            for key in ("plain_us", "audited_us", "ratio", "ratio_processor"):
                assert 0 < numbers[key]["p10"] <= numbers[key]["median"] <= numbers[key]["p90"], key
            assert numbers["first_us"] > 0
            assert numbers["repeats"] in (1, 10)
            assert numbers["findings"] == numbers["confirmed"] == 0


def test_the_audit_watches_what_it_is_measured_on(result):
    # x and the labels, the head's input; of each cell its input and two states, of the layers together one input
    assert [case[name]["inputs"] for case in result["cases"] for name in PASSES] == [9, 9, 4, 4]


def test_audited_passes_need_no_more_memory_of_torch(result):
    for case in result["cases"]:
        for peaks in case["allocator_bytes"].values():
            assert 0 < peaks["plain"] == peaks["audited"]


def test_it_is_json_and_fits_the_tables(result):
    assert json.loads(json.dumps(result)) == result
    assert inputs_table(result).row_count == 4
    size = {"plain": 2**30, "audited": 2**30}
    resident = {"name": "cells", "processes": 1, "bytes": size, "median": size, "ratio": 1.0}
    assert resident_table(result | {"resident": [resident]}).row_count == 1


def test_the_peak_is_of_what_lives_at_once():
    def once_after_another() -> None:
        for _ in range(3):
            torch.empty(1000)
        held = torch.empty(2000)
        del held

    assert 8000 <= allocator_peak(once_after_another) < 9000


def test_the_resident_set_is_that_of_a_process():
    plain, audited = (resident_peak(SMALL["cells"], audited) for audited in (False, True))
    assert 10 * 2**20 < plain <= audited  # a peak never sinks
    assert set(RESIDENT) <= set(CASES)


@pytest.mark.parametrize(
    ("build", "size"), [(bert, 8), (llama, 8), (t5, 8), (vit, 32)], ids=["bert", "llama", "t5", "vit"]
)
def test_the_models_can_be_built_and_trained(build, size):
    pytest.importorskip("transformers")
    model, inputs = build(1, 16, 2, size)
    measured = measure_pass(model, inputs, "forward_backward", repeats=1, warm_up=0)
    assert measured["inputs"] > measured["findings"]
    assert all(p.grad is not None for n, p in model.named_parameters() if "mask_token" not in n)
