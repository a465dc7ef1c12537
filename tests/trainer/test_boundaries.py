"""Whatever writes to a frozen weight, in whatever hook: it is found, or the guide says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_freeze import FreezeAudit, FreezeScheduler, FreezeViolation, Phase, Phases
from lightning_freeze.trainer.boundaries import _Boundaries
from tests.conftest import Net, batches
from tests.pages import PAGES
from tests.test_sabotage import in_place
from tests.trainer.test_scheduler import UnifiedNet

BEFORE_TRAINING = ["setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start"]
HOOKS = [*BEFORE_TRAINING, "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward"]
HOOKS += ["on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start"]
HOOKS += ["on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end"]
HOOKS += ["on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_save_checkpoint", "on_train_end"]
HOOKS += ["on_fit_end", "teardown"]
NOT_SEEN = (
    PAGES["examples/guide/audit.md"].read_text(encoding="utf-8").partition("## What is not seen")[2].partition("##")[0]
)


class Spots(Net):
    """One weight for each hook, which trains for the first ``until`` updates and is frozen from then on."""

    def __init__(self, until: int = 4) -> None:
        super().__init__()
        self.until = until
        self.spots = nn.ParameterDict({hook: nn.Parameter(torch.ones(1)) for hook in HOOKS})

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.cat([*self.spots.values()]).sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...


class Freezes(pl.Callback):
    """Freezes the weights where no scheduler does."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == pl_module.until:
            pl_module.spots.requires_grad_(False)


def write_in_each_hook(owner: Any, model: Spots) -> None:
    """Let a callback, or the model, write once in each hook to the weight of that name, as soon as it is frozen."""

    def writes(hook: str) -> Callable[..., None]:
        def act(*_: Any, **__: Any) -> None:
            if hook not in done and (hook in BEFORE_TRAINING or model.trainer.global_step >= model.until):
                done.add(hook)
                model.spots[hook].data.add_(1)

        return act

    done: set[str] = set()
    for hook in HOOKS:
        setattr(owner, hook, writes(hook))


def fit(engine: str, around: Callable[[Any], list[Any]], model: Spots, trainer: Any) -> Any:
    """Two epochs of four batches under a scheduler, or under an audit alone."""
    ours: Any = FreezeAudit(on_finding="warn", inputs=False)
    if engine == "scheduler":
        phases = Phases([Phase(["spots"], updates=model.until), Phase(["layer1", "layer2"])])
        ours = FreezeScheduler(phases, audit=FreezeAudit(inputs=False), on_finding="warn")
    callbacks = [*([Freezes()] if engine == "audit alone" else []), *around(ours), ModelCheckpoint()]
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 1, "max_epochs": 2}
    trainer(*callbacks, **options).fit(model, batches(4), batches(1))
    return ours


@pytest.mark.filterwarnings("ignore:'spots")
@pytest.mark.parametrize("until", [4, 2], ids=["at an epoch's end", "within an epoch"])
@pytest.mark.parametrize("who", ["before us", "after us", "module"])
@pytest.mark.parametrize("engine", ["scheduler", "audit alone"])
def test_a_write_is_found_in_every_hook_that_the_readme_does_not_name(
    engine: str, who: str, until: int, trainer: Any
) -> None:
    model, writer = Spots(until), pl.Callback()
    write_in_each_hook(model if who == "module" else writer, model)
    ours = fit(engine, lambda ours: [writer, ours] if who == "before us" else [ours, writer], model, trainer)
    unseen = [*BEFORE_TRAINING, "on_train_batch_end"]
    unseen += ["on_train_batch_start"] if who == "before us" and until == 2 else []
    unseen += ["teardown"] if who == "module" else []
    found = [finding.parameter.removeprefix("spots.") for finding in ours.findings]
    written = [hook for hook in HOOKS if hook not in unseen and hasattr(model if who == "module" else writer, hook)]
    assert sorted(found) == sorted(written)
    assert {f.severity for f in ours.findings} == {"error"}
    assert [hook for hook in unseen if f"`{hook}`" not in NOT_SEEN] == []


@pytest.mark.filterwarnings("ignore:'spots")
@pytest.mark.parametrize("engine", ["scheduler", "audit alone"])
def test_without_the_private_callback_writes_before_ours_go_unseen(
    engine: str, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Boundaries, "stand", lambda *_, **__: None)
    model, writer = Spots(), pl.Callback()
    write_in_each_hook(writer, model)
    found = {finding.parameter for finding in fit(engine, lambda ours: [writer, ours], model, trainer).findings}
    assert found.isdisjoint({f"spots.{hook}" for hook in ("on_validation_start", "on_validation_end", "teardown")})
    assert "spots.on_before_zero_grad" in found


class SwapsForValidation(pl.Callback):
    """Validates with other weights, as an average is."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.kept = {name: value.clone() for name, value in pl_module.state_dict().items()}
        for parameter in pl_module.parameters():
            parameter.data.mul_(0.5)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.load_state_dict(self.kept)


@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
@pytest.mark.parametrize("engine", ["scheduler", "audit alone"])
def test_weights_that_are_swapped_for_validation_are_no_finding(engine: str, first: bool, trainer: Any) -> None:
    swap = SwapsForValidation()
    ours = fit(engine, lambda ours: [swap, ours] if first else [ours, swap], Spots(), trainer)
    assert ours.findings == []


# --- the end of a fit -------------------------------------------------------------------------------------------------


def writes_at(hook: str, ended: list[str]) -> Any:
    """A callback that writes to `layer1` in a hook of a fit's end, and notes that it was torn down."""

    class Writer(unified.Callback, pl.Callback):  # type: ignore[misc]
        def teardown(self, *_: Any, **__: Any) -> None:
            ended.append("teardown")

    writer = Writer()
    setattr(writer, hook, lambda trainer, module: in_place(module))
    return writer


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
@pytest.mark.parametrize(("package", "net"), [(pl, Net), (unified, UnifiedNet)], ids=["pl", "unified"])
def test_what_moves_as_a_fit_ends_is_recorded_and_raised_last(
    hook: str, package: Any, net: Any, tmp_path: Path
) -> None:
    ended: list[str] = []
    ours = FreezeScheduler(Phases([Phase(["layer2"])]), {"still": "layer1"}, audit=FreezeAudit(inputs=False))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fit = package.Trainer(callbacks=[ours, writes_at(hook, ended)], max_epochs=1, default_root_dir=tmp_path, **options)
    callbacks = list(fit.callbacks)
    with pytest.raises(
        FreezeViolation, match=r"after update 4 and before the next, in epoch 0: .* something else wrote to it"
    ) as e:
        fit.fit(net(), batches(4))
    assert "Nothing was saved, since the fit had ended." in str(e.value)
    assert ended == ["teardown"]
    assert fit.callbacks == callbacks
    assert [(f.kind, f.epoch, f.severity) for f in ours.findings] == [("value", 0, "error")]
    assert '"type": "finding"' in (tmp_path / "freeze_runs" / "freeze_audit.jsonl").read_text().splitlines()[-1]
    saved = torch.load(fit.checkpoint_callback.best_model_path, weights_only=True)
    assert {key.partition("{")[0] for key in saved["callbacks"]} == {ours.state_key, "ModelCheckpoint"}


def test_optimizer_state_that_is_dropped_after_the_fit_is_no_finding(trainer: Any) -> None:
    class Frees(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.optimizers[0].state.clear()

    ours = FreezeScheduler(Phases([Phase(["layer1"], updates=2), Phase(["layer2"])]))
    trainer(ours, Frees()).fit(Net(), batches(4))
    assert ours.findings == []


def test_the_private_callback_costs_a_step_nothing_and_leaves_the_list(trainer: Any) -> None:
    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            first = trainer.callbacks[0]
            assert type(first) is _Boundaries
            hooks = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
            hooks += [f"on_{kind}_batch_{end}" for kind in ("train", "validation") for end in ("start", "end")]
            assert [hook for hook in hooks if callable(getattr(first, hook))] == []
            assert not isinstance(copy.deepcopy(trainer.callbacks)[0], _Boundaries)  # a copy does nothing
            raise ValueError("stops here")

    fit = trainer(Looks(), FreezeAudit(inputs=False))
    callbacks = list(fit.callbacks)
    with pytest.raises(ValueError, match="stops here"):
        fit.fit(Net(), batches(2))
    assert fit.callbacks == callbacks
