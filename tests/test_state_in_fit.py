"""Optimizer state of frozen groups in a fit: moved it changes no bit, dropped it equals BAdam's, checkpoints hold it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_freeze import FreezeAudit, FreezeScheduler, FreezeViolation, Phase, Phases
from lightning_freeze.holds import optimizer_state
from lightning_freeze.holds.optimizer_state import SHORTEST, OffloadState
from tests.conftest import Net, batches
from tests.observer import same

LONG = SHORTEST + 2
MODES = ["keep", "offload", "reset"]


def in_turn(slow: int = LONG, fast: int = LONG) -> Phases:
    return Phases([Phase(["layer1"], updates=slow), Phase(["layer2"], updates=fast)], repeat=True)


@pytest.fixture
def moves(monkeypatch: Any) -> dict[str, int]:
    """The CPU stands in for an accelerator; tensors moved are counted."""
    seen = {"out": 0, "back": 0}
    out, back = OffloadState._to_host, OffloadState._to_device

    def to_host(self: Any, tensor: Any) -> Any:
        seen["out"] += 1
        return out(self, tensor)

    def to_device(self: Any, *arguments: Any) -> Any:
        seen["back"] += 1
        return back(self, *arguments)

    monkeypatch.setattr(optimizer_state, "_on_accelerator", lambda tensor: tensor.numel() > 1)
    monkeypatch.setattr(OffloadState, "_to_host", to_host)
    monkeypatch.setattr(OffloadState, "_to_device", to_device)
    return seen


class Boosted(Net):
    """Batches that depend on their place alone, so that a resumed run sees what the straight one saw."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        made = torch.Generator().manual_seed(1000 * self.trainer.current_epoch + batch_idx)
        return super().training_step([torch.randn(4, 4, generator=made), torch.randn(4, 3, generator=made)], batch_idx)


def fitted(trainer: Any, mode: Any, schedule: Any = None, *callbacks: Any, **options: Any) -> tuple[Any, Any, Any]:
    ckpt_path, count = options.pop("ckpt_path", None), options.pop("batches", 4 * LONG)
    scheduler, model = FreezeScheduler(schedule or in_turn(), optimizer_state=mode), Boosted()
    fit = trainer(scheduler, *callbacks, **options)
    fit.fit(model, batches(count), ckpt_path=ckpt_path)
    return model, fit, scheduler


def test_offload_equals_keep(moves: dict[str, int], trainer: Any) -> None:
    model, fit, scheduler = fitted(trainer, "offload", accumulate_grad_batches=2, max_epochs=3)
    assert moves["out"] >= moves["back"] > 4
    expected, other, _ = fitted(trainer, "keep", accumulate_grad_batches=2, max_epochs=3)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert same(fit.optimizers[0].state_dict(), other.optimizers[0].state_dict())
    assert scheduler.findings == []


def test_what_trains_again_soon_is_not_moved(moves: dict[str, int], trainer: Any) -> None:
    """While layer1 makes its few updates, layer2 stays; layer1 then goes for long."""
    fitted(trainer, "offload", in_turn(slow=SHORTEST - 1))
    assert moves["out"] == 2 * 2, "two tensors of Adam's, each of the two times that layer1 freezes for long"
    moves.clear()
    moves.update(out=0, back=0)
    fitted(trainer, "offload", in_turn(SHORTEST - 1, SHORTEST - 1))
    assert moves == {"out": 0, "back": 0}


def test_epochs_that_are_short_are_counted(moves: dict[str, int], trainer: Any) -> None:
    """By the length of the epoch before: only in the first, of which nothing is known, is anything moved."""
    row = Phases([Phase(["layer1"], epochs=1), Phase(["layer2"], epochs=1)], repeat=True)
    fitted(trainer, "offload", row, batches=SHORTEST - 2, max_epochs=6)
    assert moves["out"] == 0
    row = Phases([Phase(["layer1"], epochs=1), Phase(["layer2"], epochs=1)], repeat=True)
    fitted(trainer, "offload", row, batches=SHORTEST + 2, max_epochs=4)
    assert moves["out"] >= 4


def test_reset_equals_a_loop_that_drops_the_state_by_hand(trainer: Any) -> None:
    model, fit, _ = fitted(trainer, "reset", in_turn(3, 2), batches=14)
    expected = Net()
    optimizer: Any = expected.configure_optimizers()
    layers: list[Any] = [expected.layer1.weight] * 3 + [expected.layer2.weight] * 2
    for step in range(14):
        trained, before = layers[step % 5], layers[(step - 1) % 5]
        if step and trained is not before:
            optimizer.state.pop(before, None)
        made = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        x, y = torch.randn(4, 4, generator=made), torch.randn(4, 3, generator=made)
        torch.nn.functional.mse_loss(expected(x), y).backward()
        for weight in (expected.layer1.weight, expected.layer2.weight):
            if weight is not trained:
                weight.grad = None
        optimizer.step()
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert same(fit.optimizers[0].state_dict()["state"], optimizer.state_dict()["state"])


class Sizes(pl.Callback):
    """How many parameters have optimizer state at each step's end."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append(len(trainer.optimizers[0].state))


def test_reset_holds_the_state_of_what_trains_alone(trainer: Any) -> None:
    dropped, kept = Sizes(), Sizes()
    fitted(trainer, "reset", None, dropped)
    fitted(trainer, "keep", None, kept)
    assert set(dropped.seen) == {1}
    assert kept.seen[-1] == 2


class Saves(pl.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == self.at:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "saved.ckpt"))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("after", MODES)
@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("at", [LONG + 3, 2 * LONG - 1], ids=["within a phase", "at its end"])
def test_a_checkpoint_holds_the_full_state_and_goes_on_under_any_mode(
    before: str, after: str, at: int, moves: dict[str, int], trainer: Any, tmp_path: Path
) -> None:
    """`keep` and `offload` are one run; `reset` goes on as if it had dropped what is frozen where the run was saved."""
    fitted(trainer, before, None, Saves(at), batches=3 * LONG)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    state = saved["optimizer_states"][0]["state"]
    assert sorted(state) == ([1] if before == "reset" else [0, 1])
    model, fit, scheduler = fitted(trainer, after, batches=3 * LONG, ckpt_path=tmp_path / "saved.ckpt")
    assert scheduler.findings == []
    if "reset" not in (before, after):
        straight, other, _ = fitted(trainer, "keep", batches=3 * LONG)
        assert same(dict(model.state_dict()), dict(straight.state_dict()))
        assert same(fit.optimizers[0].state_dict()["state"], other.optimizers[0].state_dict()["state"])
    elif before == after:
        straight, other, _ = fitted(trainer, "reset", batches=3 * LONG)
        assert same(dict(model.state_dict()), dict(straight.state_dict()))
    else:
        assert scheduler.updates == {"layer1": 2 * LONG, "layer2": LONG}


@pytest.mark.parametrize("length", [3 * LONG, LONG + 6], ids=["it comes back", "it stays away"])
def test_state_that_was_changed_while_it_was_away_is_found(length: int, moves: dict[str, int], trainer: Any) -> None:
    class Writes(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == LONG + 3:
                trainer.optimizers[0].state[module.layer1.weight]["exp_avg"].add_(1.0)

    with pytest.raises(FreezeViolation) as caught:
        fitted(trainer, "offload", None, Writes(), batches=length)
    finding = caught.value.findings[0]
    assert (finding.kind, finding.parameter) == ("optimizer_state", "layer1.weight")
    assert (finding.first_update, finding.last_update) == (LONG, min(2 * LONG, length))
    assert "exp_avg" in finding.message


def test_state_that_is_away_when_an_optimizer_grows_is_still_watched(moves: dict[str, int], trainer: Any) -> None:
    class Grows(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == LONG + 3:
                trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
            if batch_idx == LONG + 6:
                trainer.optimizers[0].state[module.layer1.weight]["exp_avg"].add_(1.0)

    with pytest.raises(FreezeViolation, match=r"exp_avg"):
        fitted(trainer, "offload", None, Grows(), batches=3 * LONG)


def test_on_the_cpu_offload_says_that_there_is_nothing_to_do(trainer: Any, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        fitted(trainer, "offload", batches=2)
    assert "`optimizer_state: offload` has nothing to do: the optimizer state is in host memory already" in " ".join(
        caplog.text.split()
    )


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="`optimizer_state` is 'ofload', but must be one of .*Did you mean 'offload'"):
        FreezeScheduler(in_turn(), optimizer_state="ofload")  # type: ignore[arg-type]


class Wide(Boosted):
    """With state that is worth moving."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = torch.nn.Linear(4, 4096, bias=False)
        self.layer2 = torch.nn.Linear(4096, 3, bias=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("every", [None, 3], ids=["audited by epoch", "audited within it"])
def test_on_a_gpu_offload_equals_keep(every: int | None, trainer: Any) -> None:
    """And nothing is found, though digests are made on the stream that brings the state back."""
    states = []
    for mode in ("offload", "keep"):
        torch.manual_seed(0)
        audit = FreezeAudit(every_n_updates=every)
        model, scheduler = Wide(), FreezeScheduler(in_turn(), optimizer_state=mode, audit=audit)
        fit = trainer(scheduler, accelerator="gpu", devices=1, max_epochs=3, accumulate_grad_batches=2)
        fit.fit(model, batches(8 * LONG))
        assert scheduler.findings == []
        states.append((dict(model.cpu().state_dict()), fit.optimizers[0].state_dict()["state"]))
    assert same(states[0][0], states[1][0])
    assert same(states[0][1], states[1][1])
