"""Skipping the backward work of frozen groups changes no bit of these models, and no more than rounding in those.

``requires_grad=False`` is not neutral: torch folds matrix products and chooses attention's kernels by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_freeze import FreezeController, Phase, Phases
from tests.loop import fit

STEPS = 10


class Model(nn.Module):
    """A layer under test below a head, on random sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.middle, self.head = nn.Linear(4, 8), layer, nn.Linear(8, 8), nn.Linear(8, 1)

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        found = self.layer(self.embed(batch))
        x = found[0] if isinstance(found, tuple) else found
        loss: Tensor = self.head(torch.tanh(self.middle(x))).pow(2).mean()
        return loss


class Transposed(nn.Module):
    """A convolution of an input that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.convolution(x.mT).mT


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)

    def forward(self, x: Tensor) -> Any:
        return x + self.embedding(torch.arange(12))


class LearntBias(nn.Module):
    """Attention with a bias of its own, as T5's."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor) -> Any:
        x, bias = x.unsqueeze(1), self.bias.expand(len(x), 1, 12, 12)
        return functional.scaled_dot_product_attention(x, x, x, attn_mask=bias).squeeze(1)


class Matrix(nn.Module):
    """A weight on the left of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor) -> Any:
        return self.weight @ torch.tanh(x)


class Language(nn.Module):
    """A language model of transformers on the positions of the largest entries."""

    def __init__(self, name: str) -> None:
        super().__init__()
        hf = pytest.importorskip("transformers")
        small: dict[str, Any] = {"vocab_size": 8, "num_layers": 1, "num_heads": 2, "d_model": 8, "d_ff": 8, "d_kv": 4}
        if name == "T5":
            self.model = hf.T5ForConditionalGeneration(hf.T5Config(**small, dropout_rate=0.0, decoder_start_token_id=0))
        else:
            small = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2}
            self.model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=8, **small))

    def forward(self, x: Tensor) -> Any:
        tokens = x.argmax(-1)
        return x + self.model(input_ids=tokens, labels=tokens).logits


slow = pytest.mark.slow
SAME_BITS: list[Any] = [
    pytest.param(lambda: nn.Linear(8, 8), id="Linear"),
    pytest.param(lambda: nn.LSTM(8, 8, batch_first=True), id="LSTM"),
    pytest.param(lambda: nn.Conv1d(12, 12, 3, padding=1), id="convolution"),
    pytest.param(Embedding, id="Embedding"),
    pytest.param(lambda: Language("Llama"), id="Llama", marks=slow),
]
ROUNDED: list[Any] = [
    pytest.param(lambda: nn.GRU(8, 8, batch_first=True), id="GRU"),
    pytest.param(LearntBias, id="attention with a learnt bias"),
    pytest.param(Transposed, id="convolution of what is not contiguous"),
    pytest.param(Matrix, id="a weight on the left"),
    pytest.param(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), id="TransformerEncoderLayer"),
    pytest.param(lambda: Language("T5"), id="T5", marks=slow),
]


def trained(make: Callable[[], nn.Module], skip: bool) -> list[Tensor]:
    """The weights after some turns of what lies below and above."""
    torch.manual_seed(0)
    model, data = Model(make()), torch.randn(STEPS, 4, 12, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    turns = Phases([Phase(["layer"], updates=2), Phase(["middle", "head"], updates=3)], repeat=True)
    with FreezeController(model, turns, skip_backward=skip) as controller:
        controller.attach(optimizer)
        controller.begin()
        assert fit(model, optimizer, controller, data) == []
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("make", SAME_BITS)
def test_skipping_changes_no_bit(make: Callable[[], nn.Module]) -> None:
    for skipped, done in zip(trained(make, True), trained(make, False), strict=True):
        assert torch.equal(skipped.view(torch.uint8), done.view(torch.uint8))


@pytest.mark.parametrize("make", ROUNDED)
def test_skipping_changes_no_more_than_rounding(make: Callable[[], nn.Module]) -> None:
    for skipped, done in zip(trained(make, True), trained(make, False), strict=True):
        torch.testing.assert_close(skipped, done, rtol=1e-4, atol=1e-5)
