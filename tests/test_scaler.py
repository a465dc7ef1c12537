"""Mixed precision with a GradScaler (a CPU one): only true updates count, and frozen infinities skip nobody's step."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.amp import GradScaler

from lightning_freeze import AlternatingFreeze, FreezeScheduler, Phase, Phases, UnsupportedError
from tests.conftest import Net, batches
from tests.observer import Snapshots
from tests.test_gan import GAN

STEPS = 9


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=2.0**4, growth_interval=1000))


def adam(fused: bool) -> Any:
    return lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=fused)


class _Overflow(torch.autograd.Function):
    """Worth nothing forward, infinite backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full(ctx.shape, float("inf"))


class Overflowing(Net):
    """Puts an infinity into the gradient of one layer at some batches, as an overflow in float16 would."""

    def __init__(self, make: Any, layer: str, at: set[int]) -> None:
        super().__init__(make)
        self.layer, self.at = layer, at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        return loss + _Overflow.apply(getattr(self, self.layer).weight) if batch_idx in self.at else loss


@pytest.mark.parametrize("skip", ["auto", False])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_skipped_steps_do_not_count(fused: bool, skip: Any, trainer: Any) -> None:
    """Batches 2 and 3 overflow in what trains: those steps are skipped, and the slow group's turn comes later."""
    scheduler = AlternatingFreeze("layer1", "layer2", every=3, skip_backward=skip)
    slow, fast = Snapshots("layer1"), Snapshots("layer2")
    trainer(scheduler, slow, fast, plugins=[scaled()]).fit(Overflowing(adam(fused), "layer2", {2, 3}), batches(STEPS))
    assert fast.moved() == [True, True, False, False, True, True, True, True, True]
    assert slow.moved() == [True, False, False, False, False, True, False, False, True]
    assert scheduler.updates == {"slow": 3, "fast": 7}
    assert scheduler.findings == []


@pytest.mark.parametrize("skip", ["auto", False])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_an_infinity_in_a_frozen_gradient_skips_nobodys_step(fused: bool, skip: Any, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=3, skip_backward=skip)
    slow, fast = Snapshots("layer1"), Snapshots("layer2")
    trainer(scheduler, slow, fast, plugins=[scaled()]).fit(
        Overflowing(adam(fused), "layer1", {1, 2, 4}), batches(STEPS)
    )
    assert fast.moved() == [True] * STEPS
    assert slow.moved() == [step % 3 == 0 for step in range(STEPS)]
    assert scheduler.findings == []


def test_without_the_gate_that_infinity_would_skip_the_step(trainer: Any) -> None:
    fast = Snapshots("layer2")
    trainer(fast, plugins=[scaled()]).fit(Overflowing(adam(False), "layer1", {1, 2, 4}), batches(STEPS))
    assert fast.moved() == [True, False, False, True, False, True, True, True, True]


class Skipping(Net):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return None if batch_idx in {0, 4} else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*returned `None`")  # Lightning asks whether that was on purpose
@pytest.mark.parametrize("precision", ["plain", "scaled"])
def test_a_training_step_that_returns_none_does_not_count(precision: str, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=3)
    options = {"plugins": [scaled()]} if precision == "scaled" else {}
    trainer(scheduler, **options).fit(Skipping(), batches(STEPS))
    assert scheduler.updates == {"slow": 3, "fast": 7}
    assert scheduler.findings == []


def test_an_optimizer_frozen_as_a_whole_steps_under_a_scaler(trainer: Any) -> None:
    scheduler, model = (
        FreezeScheduler(Phases([Phase(["discriminator"], updates=5), Phase(["generator"], updates=1)], True)),
        GAN((1, 0)),
    )
    trainer(scheduler, plugins=[scaled()]).fit(model, batches(12))
    assert scheduler.updates == {"generator": 2, "discriminator": 12}
    assert [moved for moved, _ in model.moved] == ([False] * 4 + [True]) * 2 + [False] * 2


def test_such_an_optimizer_must_keep_its_gradients_until_its_step(trainer: Any) -> None:
    schedule = Phases([Phase(["discriminator"], updates=5), Phase(["generator"], updates=1)], repeat=True)
    with pytest.raises(
        UnsupportedError, match="`skip_backward` is true.*GradScaler, torch fails .*optimizer . can come"
    ):
        trainer(FreezeScheduler(schedule, skip_backward=True), plugins=[scaled()]).fit(GAN((1, 0)), batches(3))


class FusedGAN(GAN):
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01, fused=True),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01, fused=True),
        ]


def test_a_fused_optimizer_that_can_be_frozen_as_a_whole_is_refused_under_a_scaler(trainer: Any) -> None:
    schedule = Phases([Phase(["discriminator"], updates=5), Phase(["generator"], updates=1)], repeat=True)
    with pytest.raises(UnsupportedError, match=r"optimizer 0 \(Adam\) is fused.*GradScaler.*fused=False"):
        trainer(FreezeScheduler(schedule), plugins=[scaled()]).fit(FusedGAN((1, 0)), batches(3))


def test_and_torch_would_have_failed_in_the_middle(trainer: Any) -> None:
    """What the refusal spares: should torch mend this, the refusal can go."""

    class Frozen(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            optimizer.zero_grad()

    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        trainer(Frozen(), plugins=[scaled()]).fit(FusedGAN((1, 0)), batches(3))
