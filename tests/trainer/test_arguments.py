"""A mistake in the arguments of a callback, as a stock LightningCLI shows it: our message, with the key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick, Until

EVERY = "schedule: {class_path: Every, init_args: {periods: {layer: 3}, of: head}}"

# What is wrong: (the arguments of FreezeScheduler, what is shown, how often)
REFUSED_IN_PARSING: dict[str, tuple[str, str, int]] = {
    "rest": (f"{EVERY}, rest: frozen", "`rest` is 'frozen', but must be one of 'train', 'freeze', 'error'. Did you mean 'freeze'?", 1),
    "rest is a switch": (f"{EVERY}, rest: true", "`rest` is True, but must be one of 'train', 'freeze', 'error'.", 1),
    "optimizer_state": (f"{EVERY}, optimizer_state: offloaded", "`optimizer_state` is 'offloaded', but must be one of 'keep', 'offload', 'reset'. Did you mean 'offload'?", 1),
    "frozen_modules": (f"{EVERY}, frozen_modules: evl", "`frozen_modules` is 'evl', but must be one of 'train', 'eval'. Did you mean 'eval'?", 1),
    "on_finding": (f"{EVERY}, on_finding: rise", "`on_finding` is 'rise', but must be one of 'raise', 'warn'. Did you mean 'raise'?", 1),
    "on_schedule_change": (f"{EVERY}, on_schedule_change: go", "`on_schedule_change` is 'go', but must be one of 'raise', 'continue'.", 1),
    "groups: a number": (f"{EVERY}, groups: {{layer: 5}}", "a group in `groups` has the selector 5; write a name, a list of names", 1),
    "groups: a key": (f"{EVERY}, groups: {{layer: {{eech: b}}}}", "a group in `groups` has the unknown key 'eech'", 1),
    "groups: by": (f"{EVERY}, groups: {{layer: {{select: b, by: me}}}}", "a group in `groups` has `by: me`. Write `by: user`", 1),
    "groups: a pattern": (f"{EVERY}, groups: {{layer: 're:(a'}}", "the selector 're:(a' is no", 1),
    "schedule: a phase's key": ("schedule: {phases: [{trian: [head]}]}", "'trian' is not a key of Phase. Did you mean 'train'?", 1),
    "schedule: no train": ("schedule: {phases: [{updates: 3}]}", "Phase has no 'train'. Add the key.", 1),
    "schedule: a count": ("schedule: {phases: [{train: [a], updates: 0}, {train: [b]}]}", "`updates` is 0, but must be a whole number of at least 1", 1),
    "schedule: a word for a count": ("schedule: {phases: [{train: [a], updates: many}]}", "`updates` is 'many', but must be a whole number", 1),
    "schedule: two ends": ("schedule: {phases: [{train: [a], updates: 1, epochs: 1}]}", "has two ends, `updates: 1` and `epochs: 1`", 1),
    "schedule: a mode": ("schedule: {phases: [{train: [a], until: {metric: x, mode: mim}}]}", "`until.mode` is 'mim', but must be one of 'min', 'max'.", 1),
    "schedule: until's key": ("schedule: {phases: [{train: [a], until: {metrik: x}}]}", "'metrik' is not a key of Until. Did you mean 'metric'?", 1),
    "schedule: pick's order": ("schedule: {phases: [{train: [], pick: {family: a, order: up}, updates: 1}]}", "`pick.order` is 'up', but must be one of", 1),
    "schedule: within a repeat": ("schedule: {phases: [{repeat: 2, phases: [{train: [a], updates: -1}]}]}", "`updates` is -1, but must be a whole number", 1),
    "schedule: a phase's class": ("schedule: {phases: [{class_path: Phaze, init_args: {train: [a]}}]}", "`class_path` is 'Phaze', but must be 'Phase'.", 1),
    "schedule: a phase is a name": ("schedule: {phases: [head]}", "a phase is 'head', but must be a mapping such as {train: [head], updates: 10}.", 1),
    "schedule: in a file": ("schedule: phases.yaml", "`updates` is 0, but must be a whole number of at least 1", 1),
    # In the words of jsonargparse, with the key:
    "schedule: a class": ("schedule: {class_path: Evry, init_args: {}}", "Expected a dot import path string: Evry", 2),
    "schedule: a period": ("schedule: {class_path: Every, init_args: {periods: {a: often}}}", 'Parser key "periods"', 1),
    "groups: a list": (f"{EVERY}, groups: [layer, head]", 'Parser key "groups"', 1),
    "skip_backward": (f"{EVERY}, skip_backward: maybe", 'Parser key "skip_backward"', 1),
    "a key": (f"{EVERY}, gruops: {{a: b}}", "Option 'gruops.a' is not accepted", 1),
    "no schedule": ("rest: train", "the following arguments are required: schedule", 1),
}  # fmt: skip
# What a schedule finds between its parts; jsonargparse tries both types of `schedule`.
RAISED_WHEN_MADE: dict[str, tuple[str, str, int]] = {
    "a period": ("schedule: {class_path: Every, init_args: {periods: {a: 0}}}", "`periods.a` is 0, but must be a whole", 1),
    "no phases": ("schedule: {phases: []}", "`phases` is empty, so nothing would ever be trainable.", 2),
    "no end": ("schedule: {phases: [{train: [a]}, {train: [b]}]}", "has no end and is not the last one", 2),
    "no reason": (f"{EVERY}, audit: {{exempt: {{model.teacher: ' '}}}}", "`exempt.model.teacher`: ' ' is not a reason.", 1),
    "a number in the audit": (f"{EVERY}, audit: {{every_n_updates: 0}}", "`every_n_updates` is 0, but must be a whole", 1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])  # Lightning warns of arguments given twice
    Path("phases.yaml").write_text("phases: [{train: [a], updates: 0}, {train: [b]}]\n")


def stock(arguments: str) -> Any:
    callback = f"{{class_path: lightning_freeze.FreezeScheduler, init_args: {{{arguments}}}}}"
    Path("run.yaml").write_text(f"seed_everything: 1\ntrainer:\n  callbacks:\n    - {callback}\n")
    return LightningCLI(BoringModel, args=["--config", "run.yaml"], run=False, save_config_callback=None)


@pytest.mark.parametrize("name", REFUSED_IN_PARSING)
def test_a_mistake_is_refused_in_parsing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, shown, times = REFUSED_IN_PARSING[name]
    with pytest.raises(SystemExit):
        stock(arguments)
    error = capsys.readouterr().err
    assert error.count(shown) == times, error
    key = name.partition(":")[0]
    assert f'Parser key "{key}"' in error or key not in ("schedule", "groups", "rest", "optimizer_state")


@pytest.mark.parametrize("name", RAISED_WHEN_MADE)
def test_a_mistake_is_raised_when_the_callback_is_made(name: str) -> None:
    arguments, shown, times = RAISED_WHEN_MADE[name]
    with pytest.raises(ValueError, match="Union subtypes") as raised:
        stock(arguments)
    assert str(raised.value).count(shown) == times, raised.value


def test_what_is_right_is_accepted_with_class_paths_and_without() -> None:
    until = "{class_path: lightning_freeze.Until, init_args: {metric: val_loss, patience: 2}}"
    phases = f"{{class_path: Phase, init_args: {{train: [bias], until: {until}}}}}, "
    phases += (
        "{train: [], updates: 1, pick: {family: w, order: shuffle}}, {repeat: 2, phases: [{train: [w], updates: 1}]}"
    )
    exempt = "audit: {class_path: FreezeAudit, init_args: {exempt: {model.teacher: moved by EMA}}}"
    groups = "groups: {w: {each: layer.w*}, bias: [layer.bias], target: {select: target, by: user}}"
    run = stock(f"schedule: {{phases: [{phases}]}}, {groups}, rest: error, {exempt}")
    (callback,) = (c for c in run.trainer.callbacks if isinstance(c, FreezeScheduler))
    drawn = Phase([], updates=1, pick=Pick("w", order="shuffle"))
    until_it_rises = Phase(["bias"], until=Until("val_loss", patience=2))
    assert callback._schedule == Phases([until_it_rises, drawn, Phases([Phase(["w"], updates=1)], repeat=2)])
    own = {"target": {"select": "target", "by": "user"}}
    own["exempt.model.teacher"] = {"select": "model.teacher", "by": "user: moved by EMA"}
    assert callback._groups == {"w": {"each": "layer.w*"}, "bias": ["layer.bias"], **own}
    assert callback._options["rest"] == "error"


def test_help_shows_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        LightningCLI(BoringModel, args=["--trainer.callbacks.help=lightning_freeze.FreezeScheduler"], run=False)
    shown = capsys.readouterr().out
    for words in ("rest {train,freeze,error}", "optimizer_state {keep,offload,reset}", "on_finding {raise,warn}"):
        assert words in shown
