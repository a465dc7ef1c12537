"""A fit in which the backward work of frozen groups is left out equals one in which it is done; of bits, see `test_skip_backward_bits`."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_freeze import (
    AlternatingFreeze,
    Every,
    FreezeController,
    FreezeScheduler,
    Phase,
    Phases,
    Pick,
    ScheduleError,
    UnsupportedError,
)
from lightning_freeze.errors import counted
from tests.conftest import Net, batches
from tests.observer import same
from tests.test_gan import GAN, SCHEDULES

STEPS = 14


class Mixed(pl.LightningModule):
    """Layers of several kinds, in blocks; reads a batch of ``conftest.batches``."""

    def __init__(self, make: Any = torch.optim.AdamW, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.reentrant = make, reentrant
        self.embed = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
                nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.GELU()),
                nn.LSTM(8, 8, batch_first=True),
                nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.1)),
            ]
        )
        self.head = nn.Linear(8, 3)
        self.allocated: list[tuple[int, str]] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unsqueeze(-1))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.reentrant else block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x.mean(dim=1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        torch.manual_seed(batch_idx)
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def on_after_backward(self) -> None:
        self.allocated += [
            (self.trainer.fit_loop.batch_idx, n) for n, p in self.named_parameters() if p.grad is not None
        ]

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=0.01)


GROUPS: Any = {"blocks": {"each": "blocks.*"}}
SCHEDULE: Any = {
    "draws": lambda: Phases([Phase([], updates=2, pick=Pick("blocks", order="shuffle"))], repeat=True),
    "upper": lambda: Phases([Phase(["blocks/2", "blocks/3"], updates=3), Phase(["all"], updates=1)], repeat=True),
    "every": lambda: Every({"blocks/0": 3, "blocks/2": 2}),
}


def fitted(trainer: Any, skip: Any, schedule: str, model: Any = None, **options: Any) -> tuple[Any, Any]:
    made = {key: options.pop(key) for key in ("rest", "frozen_modules") if key in options}
    model = model or Mixed()
    fit = trainer(FreezeScheduler(SCHEDULE[schedule](), GROUPS, skip_backward=skip, **made), **options)
    fit.fit(model, batches(STEPS))
    return model, fit


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("schedule", "rest", "modes"),
    [("draws", "freeze", "eval"), ("upper", "freeze", "train"), ("every", "train", "train")],
)
def test_skipping_changes_no_bit(schedule: str, rest: str, modes: str, accumulate: int, trainer: Any) -> None:
    same_for_both = {"rest": rest, "frozen_modules": modes, "accumulate_grad_batches": accumulate}
    model, fit = fitted(trainer, True, schedule, **same_for_both)
    expected, other = fitted(trainer, False, schedule, **same_for_both)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert same(fit.optimizers[0].state_dict(), other.optimizers[0].state_dict())
    assert len(model.allocated) < len(expected.allocated), "nothing was skipped"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_frozen_gradients_are_never_allocated(accumulate: int, trainer: Any) -> None:
    """Looked at after every backward, those within an accumulation included."""
    options = {"rest": "freeze", "accumulate_grad_batches": accumulate, "gradient_clip_val": 0.1}
    model, fit = fitted(trainer, "auto", "upper", **options)
    windows = -(-STEPS // accumulate)
    scheduler = fit.callbacks[0]
    steps = [("all" if window % 4 == 3 else "upper") for window in range(windows)]
    assert scheduler.updates["blocks/0"] == steps.count("all")
    for batch in range(STEPS):
        found = {
            name.split(".")[1] for number, name in model.allocated if number == batch and name.startswith("blocks")
        }
        assert found == ({"0", "1", "2", "3"} if steps[batch // accumulate] == "all" else {"2", "3"}), batch
    assert not any(name.startswith(("embed", "head")) for _, name in model.allocated)
    done, _ = fitted(trainer, False, "upper", **options)
    assert any(name.startswith("embed") for _, name in done.allocated), "this test could not fail"


def test_what_was_accumulated_before_a_freeze_is_given_up(trainer: Any) -> None:
    """`zero_grad(set_to_none=False)` keeps gradients; those of what freezes do not stay."""

    class KeepsZeros(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

        def on_after_backward(self) -> None:
            seen.append(self.layer1.weight.grad is not None)

    seen: list[bool] = []
    trainer(AlternatingFreeze("layer1", "layer2", every=3), accumulate_grad_batches=2).fit(KeepsZeros(), batches(12))
    assert seen == [True, True, False, False, False, False] * 2


def test_reentrant_checkpointing_is_found_and_mended(trainer: Any, caplog: Any) -> None:
    """Blocks above the frozen bottom train as they do where nothing is skipped.

    Buffers are left out: a frozen batch norm does not see its batch again, which checkpointing shows it in backward.
    """
    with caplog.at_level("INFO"):
        model, _ = fitted(trainer, "auto", "upper", Mixed(reentrant=True), rest="freeze")
    assert caplog.text.count("freeze: reentrant checkpointing") == 1
    expected, _ = fitted(trainer, False, "upper", Mixed(reentrant=True), rest="freeze")
    assert same(dict(model.named_parameters()), dict(expected.named_parameters()))


def test_attention_takes_no_other_path_while_something_is_skipped(trainer: Any) -> None:
    class Notes(Mixed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(torch.backends.mha.get_fastpath_enabled())
            return super().training_step(batch, batch_idx)

    seen: list[bool] = []
    fitted(trainer, "auto", "upper", Notes())
    assert seen == [False, False, False, True] * 3 + [False, False]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("skip", "line"),
    [
        ("auto", "- the backward work of frozen groups is skipped: there is only one process."),
        (True, "- the backward work of frozen groups is skipped: there is only one process."),
        (False, None),
    ],
)
def test_one_line_says_so(skip: Any, line: str | None, trainer: Any, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        trainer(AlternatingFreeze("layer1", "layer2", every=3, skip_backward=skip)).fit(Net(), batches(2))
    said = [line for record in caplog.records for line in record.message.splitlines() if "backward" in line]
    assert said == ([line] if line else [])


class Looks(pl.Callback):
    """Notes what requires a gradient, in training, in validation and afterwards."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: dict[str, set[bool]] = {}
        self.fails = fails

    def _look(self, when: str, module: Any) -> None:
        self.seen.setdefault(when, set()).add(module.layer1.weight.requires_grad)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self._look("training", module)
        if self.fails and rest[-1] == 2:
            raise KeyError("planned")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._look("validation", module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._look("epoch's end", module)


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def test_outside_of_training_batches_nothing_is_held(trainer: Any) -> None:
    looks, model = Looks(), Validated()
    fit = trainer(AlternatingFreeze("layer1", "layer2", every=4), looks, max_epochs=2, val_check_interval=3)
    fit.fit(model, batches(9), batches(1))
    assert looks.seen == {"training": {True, False}, "validation": {True}, "epoch's end": {True}}
    assert fit.callbacks[0].updates == {"slow": 5, "fast": 18}


def test_an_exception_leaves_nothing_held(trainer: Any) -> None:
    model = Net()
    with pytest.raises(KeyError, match="planned"):
        trainer(AlternatingFreeze("layer1", "layer2", every=4), Looks(fails=True)).fit(model, batches(6))
    assert all(parameter.requires_grad for parameter in model.parameters())


class OtherLoss(Net):
    """In batch 3, a loss of the first layer alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer1(batch[0]).sum() if batch_idx == 3 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_nothing_that_trains_updates_nothing_and_is_warned_of(accumulate: int, trainer: Any) -> None:
    row = Phases([Phase(["layer1"], updates=1), Phase(["layer2"], updates=4)], repeat=True)
    seen = []
    for skip in (True, False):
        model, scheduler = OtherLoss(), FreezeScheduler(row, skip_backward=skip)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(scheduler, accumulate_grad_batches=accumulate).fit(model, batches(6))
        told = [str(each.message) for each in caught if "depends on nothing" in str(each.message)]
        seen.append((dict(model.state_dict()), scheduler.updates))
        assert len(told) == int(skip)
        if told:
            place = f"after {counted(5 - 2 * accumulate, 'update')} in epoch 0, depends on nothing that trains now (phase 2 of 2, "
            place += "`phases[1]`)"
            assert place in told[0]
            assert "trainable are layer2; frozen are layer1. " in told[0]
            assert "`skip_backward: false`" in told[0]
    assert same(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


def asks_for_gradients(model: Any, loss: Tensor) -> None:
    torch.autograd.grad(loss, model.layer1.weight, retain_graph=True)


def registers_a_hook(model: Any, loss: Tensor) -> None:
    model.layer1.weight.register_hook(lambda gradient: None).remove()


@pytest.mark.parametrize("use", [asks_for_gradients, registers_a_hook])
def test_an_error_that_comes_of_skipping_says_so(use: Any, trainer: Any) -> None:
    class Penalises(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss: Any = super().training_step(batch, batch_idx)
            use(self, loss)
            return loss

    with pytest.raises(RuntimeError, match="require grad") as caught:
        trainer(AlternatingFreeze("layer1", "layer2", every=3)).fit(Penalises(), batches(6))
    (note,) = caught.value.__notes__
    assert note.startswith("freeze: slow are frozen now, and have requires_grad=False meanwhile.")
    assert "(`torch.autograd.grad`, `register_hook`) needs `skip_backward: false`" in note
    trainer(AlternatingFreeze("layer1", "layer2", every=3, skip_backward=False)).fit(Penalises(), batches(6))


@pytest.mark.parametrize("words", [{"skip_backward": "false"}, {"optimizer_state": "offlaod"}])
def test_a_controller_refuses_other_words_too(words: Any) -> None:
    with pytest.raises(ScheduleError, match=f"`{next(iter(words))}` is '.*', but must be one of"):
        FreezeController(Net(), Every({"layer1": 2}, of="layer2"), **words)


class Asks(GAN):
    """Leaves out the whole turn of what does not train."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (scheduler,) = (c for c in self.trainer.callbacks if isinstance(c, FreezeScheduler))  # type: ignore[attr-defined]
        whole, mine = self.order, ("generator", "discriminator")
        for index in whole:
            if scheduler.will_train(mine[index]):
                self.order = (index,)
                super().training_step(batch, batch_idx)
        self.order = whole


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_manual_optimization_skips_where_asked(kind: str, order: tuple[int, int], trainer: Any) -> None:
    """What thaws by a step trains in the next, within the same batch."""
    states, updates = [], []
    for skip in (True, False):
        torch.manual_seed(0)
        model, scheduler = Asks(order), FreezeScheduler(SCHEDULES[kind](), skip_backward=skip)
        trainer(scheduler).fit(model, batches(STEPS))
        assert scheduler.controller is not None
        assert scheduler.controller.backward.skips == skip
        states.append(dict(model.state_dict()))
        updates.append(scheduler.updates)
    assert updates[0] == updates[1]
    assert same(*states)


def test_a_model_that_toggles_is_not_skipped(trainer: Any) -> None:
    """Lightning's `untoggle_optimizer` would put back what was before the step, after which something else thaws."""

    class Toggles(GAN):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for index in self.order:
                optimizer: Any = self.optimizers()[index]  # type: ignore[index]
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.discriminator(self.generator(batch[0])).mean())
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    scheduler = FreezeScheduler(SCHEDULES["phases"]())
    trainer(scheduler).fit(Toggles((1, 0)), batches(18))
    assert scheduler.updates == {"discriminator": 18, "generator": 3}
    with pytest.raises(
        UnsupportedError, match=r"`skip_backward` is true.*Toggles.training_step calls `toggle_optimizer`"
    ):
        trainer(FreezeScheduler(SCHEDULES["phases"](), skip_backward=True)).fit(Toggles((1, 0)), batches(18))


@pytest.mark.filterwarnings(
    "ignore:a loss.*depends on nothing that trains now"
)  # within the batch, before it is set right
def test_toggling_in_a_helper_leaves_nothing_turned_off(trainer: Any) -> None:
    """It is not seen before training, and restores what was held before the step that ended the set."""

    def turn(model: Any, optimizer: Any, batch: Any) -> None:
        model.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        model.manual_backward(model.discriminator(model.generator(batch)).mean())
        optimizer.step()
        model.untoggle_optimizer(optimizer)

    class Toggles(GAN):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for index in self.order:
                turn(self, self.optimizers()[index], batch[0])  # type: ignore[index]

    model, scheduler = Toggles((1, 0)), FreezeScheduler(SCHEDULES["phases"](), skip_backward=True, on_finding="warn")
    trainer(scheduler).fit(model, batches(18))
    assert scheduler.updates["generator"] == 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_compiled_model_is_skipped_or_not_by_its_graphs(trainer: Any, caplog: Any) -> None:
    row = Phases([Phase([], updates=1, pick=Pick("blocks", order="forward"))], repeat=True)

    class Deep(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(7))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.tanh(block(x))
            return super().forward(x)

    torch._dynamo.reset()
    model: Any = torch.compile(Deep(), backend="eager")
    scheduler = FreezeScheduler(row, GROUPS, rest="freeze")
    with caplog.at_level("INFO"):
        trainer(scheduler).fit(model, batches(8))
    assert scheduler.updates == {f"blocks/{n}": 1 + (n == 0) for n in range(7)}
    assert "is not skipped, their gradients are set to None: the model is compiled" in " ".join(caplog.text.split())
    with pytest.raises(UnsupportedError, match="`skip_backward` is true.*recompile_limit is 8"):
        trainer(FreezeScheduler(row, GROUPS, rest="freeze", skip_backward=True)).fit(model, batches(8))
    torch._dynamo.reset()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_another_word_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`skip_backward` is .*, but must be one of 'auto', True, False"):
        FreezeScheduler(Every({"a": 2}, of="b"), skip_backward=value)
