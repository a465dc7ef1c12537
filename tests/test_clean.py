"""Honest runs are silent: what looks like movement, or like none, and is neither."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateFinder, StochasticWeightAveraging
from torch import Tensor, nn

from lightning_freeze import AlternatingFreeze, FreezeAudit, FreezeScheduler, FreezeViolation, Phase, Phases
from tests.conftest import Net, batches
from tests.test_sabotage import Writes, in_place


def rates(of: Callable[[int], float], interval: str) -> Callable[[nn.Module], Any]:
    def make(model: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, of)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    return make


class Buffers(Net):
    """A frozen module with a buffer that goes, and one that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1.register_buffer("cache", torch.ones(2))
        self.layer1.register_buffer("later", None)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        if batch_idx == 3:
            self.layer1.later = torch.ones(3)
        return super().training_step(batch, batch_idx)


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.LazyLinear(8, bias=False)  # type: ignore[assignment]


CLEAN: dict[str, Any] = {
    "warm-up by steps": lambda: Net(rates(lambda step: min(1.0, step / 5), "step")),
    "warm-up by epochs": lambda: Net(rates(lambda epoch: float(epoch > 0), "epoch")),
    "buffers that come": Buffers,
}


@pytest.mark.parametrize("every", [3, 10])
@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_found(name: str, every: int, trainer: Any) -> None:
    scheduler, audit = AlternatingFreeze("layer1", "layer2", every=every), FreezeAudit()
    trainer(scheduler, audit, max_epochs=2).fit(CLEAN[name](), batches(8))
    assert scheduler.findings == audit.findings == []


@pytest.mark.filterwarnings("ignore:A layer with UninitializedParameter was found")
@pytest.mark.filterwarnings("ignore:The total number of parameters detected may be inaccurate")
def test_lazy_modules(trainer: Any) -> None:
    scheduler, model = AlternatingFreeze("layer1", "layer2", every=3), Lazy()
    trainer(scheduler, FreezeAudit(), max_epochs=2).fit(model, batches(8))
    assert scheduler.updates == {"slow": 6, "fast": 16}
    assert scheduler.findings == []
    assert isinstance(model.layer1, nn.Linear)


def test_a_buffer_that_is_taken_away_is_a_note_and_no_crash(trainer: Any) -> None:
    def take_away(module: Any) -> None:
        module.layer1.cache = None

    scheduler = FreezeScheduler(Phases([Phase(["layer2"])]), {"still": "layer1"})
    trainer(scheduler, Writes(take_away)).fit(Buffers(), batches(8))
    assert [(f.audit, f.severity, f.parameter) for f in scheduler.findings] == [("buffers", "info", "layer1.cache")]


class Normalized(Net):
    """With batch norm, for whose statistics SWA ends with an epoch of its own."""

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.layer1 = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, affine=False))  # type: ignore[assignment]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("modes", ["train", "eval"])
@pytest.mark.parametrize("net", [Net, Normalized])
@pytest.mark.parametrize(
    "make",
    [
        lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=1, use_buffers=False),
        lambda: StochasticWeightAveraging(0.1, swa_epoch_start=1, annealing_epochs=1),
    ],
    ids=["EMA", "SWA"],
)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.filterwarnings("ignore:The weights of the ")
@pytest.mark.filterwarnings("ignore:buffer 'layer1.1.")
def test_averages_written_back_at_the_very_end_are_the_same_warning(
    make: Any, net: Any, modes: Any, first: bool, trainer: Any
) -> None:
    phases = Phases([Phase(["layer1", "layer2"], epochs=2), Phase(["layer2"])])
    scheduler = FreezeScheduler(phases, frozen_modules=modes)
    model = net(lambda m: torch.optim.SGD(m.parameters(), lr=0.01))
    fit = trainer(*([make(), scheduler] if first else [scheduler, make()]), max_epochs=3)
    with pytest.warns(
        UserWarning, match=r"'layer1.*' .group 'layer1', frozen. moved after update 24 and before the next"
    ):
        fit.fit(model, batches(8))
    found = [(f.severity, f.epoch) for f in scheduler.findings if f.kind == "value"]
    assert found == [("warning", 2)]
    assert [f for f in scheduler.findings if f.severity == "error"] == []
    assert fit.max_epochs == 3
    assert net is Net or (model.layer1[1].momentum == 0.1 and model.layer1[1].running_mean.any())


@pytest.mark.filterwarnings("ignore:.*")  # the finder's own runs
def test_a_learning_rate_finder_is_no_resumed_run(trainer: Any, recwarn: Any) -> None:
    class Tuned(Net):
        lr = 0.01

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    scheduler = AlternatingFreeze("layer1", "layer2", every=3)
    trainer(LearningRateFinder(num_training_steps=5), scheduler, max_epochs=1).fit(Tuned(), batches(8))
    assert not [w for w in recwarn if "holds no state of a freeze scheduler" in str(w.message)]
    assert scheduler.updates == {"slow": 3, "fast": 8}


class Skips(Net):
    """Skips a whole epoch of batches."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.trainer.current_epoch == 1 else None


def test_an_epoch_without_steps_stalls_no_phase_of_epochs(trainer: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1"], epochs=2), Phase(["layer2"])]))
    trainer(scheduler, max_epochs=3).fit(Skips(), batches(4))
    assert [f.kind for f in scheduler.findings if f.kind == "stalled"] == []


class Grows(Net):
    """Hands layer1 to its optimizer in the second epoch only."""

    def __init__(self) -> None:
        super().__init__(lambda m: torch.optim.AdamW(m.layer2.parameters(), lr=0.01))

    def on_train_epoch_start(self) -> None:
        if self.trainer.current_epoch == 1:
            self.trainer.optimizers[0].add_param_group({"params": [self.layer1.weight]})


@pytest.mark.filterwarnings("ignore:this schedule never freezes anything")
@pytest.mark.parametrize(("rest", "moves"), [("freeze", False), ("train", True)])
@pytest.mark.parametrize("audit", [True, False])
def test_a_parameter_that_an_optimizer_is_given_later(rest: Any, moves: bool, audit: bool, trainer: Any) -> None:
    scheduler, model = FreezeScheduler(Phases([Phase(["layer2"])]), rest=rest, audit=audit), Grows()
    before = model.layer1.weight.detach().clone()
    trainer(scheduler, max_epochs=2).fit(model, batches(4))
    assert torch.equal(before, model.layer1.weight) is not moves
    assert scheduler.updates["layer2"] == 8
    assert scheduler.updates.get("rest", 0) == (4 if moves else 0)
    assert scheduler.findings == []


def test_and_a_write_to_it_is_still_caught(trainer: Any) -> None:
    class Write(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if trainer.current_epoch == 1 and rest[-1] == 2:
                in_place(pl_module)

    scheduler = FreezeScheduler(Phases([Phase(["layer2"])]), rest="freeze")
    with pytest.raises(FreezeViolation, match=r"layer1.weight' \(group 'rest', frozen\) moved"):
        trainer(scheduler, Write(), max_epochs=2).fit(Grows(), batches(4))


def test_a_buffer_first_made_during_the_fit_is_watched_from_the_next_epoch(trainer: Any) -> None:
    class Late(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            if not hasattr(self.layer1, "count"):
                self.layer1.register_buffer("count", torch.zeros(1))
            self.layer1.count.add_(1)  # type: ignore[operator]
            return super().training_step(batch, batch_idx)

    scheduler = FreezeScheduler(Phases([Phase(["layer2"])]), {"still": "layer1"}, frozen_modules="eval")
    with pytest.raises(FreezeViolation, match="buffer 'layer1.count' of a frozen module moved"):
        trainer(scheduler, max_epochs=3).fit(Late(), batches(4))


def test_a_callback_can_be_pickled_after_a_fit(trainer: Any) -> None:
    for callback in (AlternatingFreeze("layer1", "layer2", every=3), FreezeAudit()):
        trainer(callback).fit(Net(), batches(2))
        again = pickle.loads(pickle.dumps(callback))
        assert again.findings == []
