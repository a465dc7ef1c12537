from __future__ import annotations

import pytest
import torch

from tests.benchmarks import llama
from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.llama import TINY, Llama, measure, peak
from tests.benchmarks.turns import INSTALL

pytest.importorskip("transformers")


def test_without_a_gpu_it_says_so():
    (row,) = measure("cpu", rounds=1)
    assert (list(row.samples), row.note) == ([], "needs a GPU")


def test_a_tiny_one_is_measured_on_the_cpu():
    *package, largest, paper, plain = measure("cpu", rounds=1, quick=True)
    for row in (*package, largest):
        assert row.samples or row.note.endswith(INSTALL)
    for row in (paper, plain):
        assert row.samples[0] > 0
    parameters = sum(p.numel() for p in Llama(TINY).parameters())
    by_ours = plain.samples[0] * 18 * parameters
    with_copies = paper.samples[0] * (2 + 16 / 3) * parameters
    assert with_copies - by_ours == pytest.approx(10 * parameters / 3)


def test_it_is_in_bf16_and_nothing_below_what_trains_gets_a_gradient():
    before = torch.get_default_dtype()
    net = Llama(TINY)
    assert torch.get_default_dtype() is before
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    net.requires_grad_(False)
    assert not net.loss(torch.zeros(1, 4, dtype=torch.long)).requires_grad


def test_a_layer_that_never_trains_is_refused(monkeypatch):
    right = llama.recipe
    monkeypatch.setattr(llama, "recipe", lambda layers, updates: right(layers.replace("*", "{0..1}"), updates))
    with pytest.raises(WrongTraining, match=rf"ours, Llama: .*layers\.{TINY['num_hidden_layers'] - 1}"):
        peak("ours", TINY, 8, "cpu")
