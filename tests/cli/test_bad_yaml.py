"""A bad configuration ends before training, with file, line, key, value and fix.

The first table is of our own parts, the second of the parser's, and neither builds a Trainer. Only what needs the model
itself, a group that it does not have, is found later, and still before the first batch.
"""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, NoReturn

import pytest
import pytorch_lightning as pl
from jsonargparse import get_loader
from pytorch_lightning.cli import LightningCLI

from lightning_freeze import Every, FreezeController, Phase, Phases, ScheduleError, SelectionError
from lightning_freeze.cli.config import check_groups, explain, read_files
from lightning_freeze.demos import TwoLayerNet
from lightning_freeze.yaml_file import ConfigError, read
from tests.conftest import Net

DEMO = """
model: {class_path: lightning_freeze.demos.TwoLayerNet}
data: {class_path: lightning_freeze.demos.DigitsData}
"""


def callback(arguments: str, name: str = "lightning_freeze.FreezeScheduler") -> str:
    """A whole configuration, whose callback has these arguments."""
    head = f"trainer:\n  accelerator: cpu\n  callbacks:\n    - class_path: {name}\n      init_args:\n"
    return head + indent(dedent(arguments).strip("\n"), " " * 8) + DEMO


def every(arguments: str) -> str:
    """A configuration with an `Every` of these arguments."""
    return callback(f"schedule: {{class_path: Every, init_args: {{{arguments}}}}}")


def phases(elements: str, more: str = "") -> str:
    """A configuration with these phases."""
    return callback(f"schedule: {{phases: [{elements}]{more}}}")


def groups(mapping: str) -> str:
    """A configuration with these groups."""
    return callback(f"groups: {{{mapping}}}\nschedule: {{phases: [{{train: [all]}}]}}")


ARGS = "trainer.callbacks[0].init_args"

# name: (YAML, what the error holds beside the file's name)
FOUND_BY_US: dict[str, tuple[str, list[str]]] = {
    # --- keys that stand twice
    "twice at the root": (
        "seed_everything: 1\nseed_everything: 2\n" + DEMO,
        ["line 2, seed_everything", "duplicate key", "first in line 1", "(2)", "Keep the one"],
    ),
    "twice in trainer": (
        "trainer:\n  max_epochs: 1\n  accelerator: cpu\n  max_epochs: 7\n" + DEMO,
        ["line 4, trainer.max_epochs", "first in line 2", "(7)", "Keep the one"],
    ),
    "twice in the callback": (
        callback("rest: train\nschedule: {phases: [{train: [all]}]}\nrest: freeze"),
        [f"line 8, {ARGS}.rest", "first in line 6", "(freeze)", "Keep the one"],
    ),
    "twice in periods": (
        every("periods: {layer1: 5, layer1: 6}"),
        [f"line 6, {ARGS}.schedule.init_args.periods.layer1", "(6)", "Keep the one"],
    ),
    "twice in a phase": (
        phases("{train: [head], updates: 3, updates: 4}"),
        [f"{ARGS}.schedule.phases[0].updates", "(4)", "Keep the one"],
    ),
    "twice in the model's arguments": (
        "model:\n  class_path: lightning_freeze.demos.TwoLayerNet\n  init_args: {lr: 0.1, lr: 0.2}\n",
        ["line 3, model.init_args.lr", "(0.2)", "Keep the one"],
    ),
    # --- files
    "empty": ("", ["is empty"]),
    "a comment alone": ("# nothing\n", ["is empty"]),
    "unquoted pattern": (groups("deep: *.bias"), ["line 6", "not YAML", "Quote patterns", '"layers.*"']),
    "brackets left open": ("trainer: {max_epochs: 1\n", ["line 2", "not YAML"]),
    "a tab": ("trainer:\n\tmax_epochs: 1\n", ["line 2", "not YAML", "\\t"]),
    "schedule is no file": (
        callback("schedule: nofile.yaml"),
        [f"line 6, {ARGS}.schedule", "nofile.yaml", "does not exist"],
    ),
    # --- the callback's own keys
    "misspelt key of FreezeScheduler": (
        callback("schedul: {phases: [{train: [all]}]}"),
        [f"line 6, {ARGS}.schedul:", "not a key of FreezeScheduler", "Did you mean 'schedule'"],
    ),
    "misspelt key of AlternatingFreeze": (
        callback("{slow: layer1, fast: layer2, evry: 5}", "lightning_freeze.AlternatingFreeze"),
        [f"{ARGS}.evry", "not a key of AlternatingFreeze", "Did you mean 'every'"],
    ),
    "misspelt key of FreezeAudit": (
        callback("every_n_update: 5", "lightning_freeze.FreezeAudit"),
        [f"line 6, {ARGS}.every_n_update", "not a key of FreezeAudit", "Did you mean 'every_n_updates'"],
    ),
    "key missing": (callback("groups: {head: layer2}"), [ARGS, "'schedule'", "Add the key"]),
    "misspelt rest": (
        callback("schedule: {phases: [{train: [all]}]}\nrest: trainn"),
        [f"line 7, {ARGS}.rest", "'trainn'", "'train', 'freeze', 'error'", "Did you mean 'train'"],
    ),
    "on_finding: rise": (
        callback("schedule: {phases: [{train: [all]}]}\non_finding: rise"),
        [f"line 7, {ARGS}.on_finding", "'rise'", "Did you mean 'raise'"],
    ),
    "on_schedule_change: go on": (
        callback("schedule: {phases: [{train: [all]}]}\non_schedule_change: go on"),
        [f"line 7, {ARGS}.on_schedule_change", "'go on'", "'raise', 'continue'"],
    ),
    "frozen_modules: evaluate": (
        callback("schedule: {phases: [{train: [all]}]}\nfrozen_modules: evaluate"),
        [f"line 7, {ARGS}.frozen_modules", "'evaluate'", "Did you mean 'eval'"],
    ),
    "skip_backward: maybe": (
        callback("schedule: {phases: [{train: [all]}]}\nskip_backward: maybe"),
        [f"line 7, {ARGS}.skip_backward", "'maybe'", "'auto', True, False"],
    ),
    "optimizer_state: ofload": (
        callback("schedule: {phases: [{train: [all]}]}\noptimizer_state: ofload"),
        [f"line 7, {ARGS}.optimizer_state", "'ofload'", "Did you mean 'offload'"],
    ),
    "misspelt key of audit": (
        callback("schedule: {phases: [{train: [all]}]}\naudit: {every_n_update: 5}"),
        [f"line 7, {ARGS}.audit.every_n_update", "not a key of FreezeAudit", "Did you mean 'every_n_updates'"],
    ),
    "audit every zero updates": (
        callback("schedule: {phases: [{train: [all]}]}\naudit: {every_n_updates: 0}"),
        [f"line 7, {ARGS}.audit.every_n_updates", "is 0", "nearest valid value is 1"],
    ),
    "an exemption without a reason": (
        callback("schedule: {phases: [{train: [all]}]}\naudit: {exempt: {model.teacher: }}"),
        [f"line 7, {ARGS}.audit.exempt.model.teacher", "None is not a reason", "Say in a sentence why"],
    ),
    "a group that somebody else moves": (
        callback("schedule: {phases: [{train: [all]}]}\ngroups: {teacher: {select: teacher, by: me}}"),
        [f"line 7, {ARGS}.groups.teacher", "has `by: me`", "Write `by: user`"],
    ),
    "audit with a class and a wrong value": (
        callback(
            "schedule: {phases: [{train: [all]}]}\n"
            "audit: {class_path: lightning_freeze.FreezeAudit, init_args: {on_finding: shout}}"
        ),
        [f"{ARGS}.audit.init_args.on_finding", "'shout'", "'raise', 'warn'"],
    ),
    "alternate every zero": (
        callback("{slow: layer1, fast: layer2, every: 0}", "lightning_freeze.AlternatingFreeze"),
        [f"line 6, {ARGS}.every", "is 0", "nearest valid value is 1"],
    ),
    # --- Every
    "misspelt class": (
        callback("schedule: {class_path: Evry, init_args: {periods: {layer1: 5}}}"),
        [f"line 6, {ARGS}.schedule.class_path", "'Evry'", "Did you mean 'Every'"],
    ),
    "misspelt class, full path": (
        callback("schedule: {class_path: lightning_freeze.Phasse, init_args: {phases: []}}"),
        [f"{ARGS}.schedule.class_path", "'lightning_freeze.Phasse'", "Did you mean 'Phases'"],
    ),
    "misspelt init_args": (
        callback("schedule: {class_path: Every, init_arg: {periods: {layer1: 5}}}"),
        [f"{ARGS}.schedule.init_arg", "Did you mean 'init_args'"],
    ),
    "no init_args": (
        callback("schedule: {class_path: Every}"),
        [f"{ARGS}.schedule", "`init_args` is missing", "weight1: 5"],
    ),
    "a phase without init_args": (
        phases("{train: [layer1], updates: 1}, {class_path: lightning_freeze.Phase, train: [layer2]}"),
        [f"{ARGS}.schedule.phases[1]", "`init_args` is missing: what Phase is to do, such as {train: [head]"],
    ),
    "phases within phases without init_args": (
        phases("{class_path: Phases}"),
        [f"{ARGS}.schedule.phases[0]", "`init_args` is missing: what Phases is to do, such as {phases: "],
    ),
    "misspelt key of Every": (
        every("period: {layer1: 5}"),
        [f"{ARGS}.schedule.init_args.period", "not a key of Every", "Did you mean 'periods'"],
    ),
    "period zero": (every("periods: {layer1: 0}"), [f"{ARGS}.schedule.init_args.periods.layer1", "is 0", "value is 1"]),
    "period negative": (
        every("periods: {layer1: -5}"),
        [f"{ARGS}.schedule.init_args.periods.layer1", "is -5", "value is 1"],
    ),
    "period a fraction": (every("periods: {layer1: 4.6}"), [".periods.layer1", "is 4.6", "value is 5"]),
    "period a string": (every("periods: {layer1: five}"), [".periods.layer1", "is 'five'", "whole number"]),
    "period true": (every("periods: {layer1: true}"), [".periods.layer1", "is True", "value is 1"]),
    "periods empty": (every("periods: {}"), ["init_args.periods", "is {}", "`periods: {weight1: 5}`"]),
    "periods a list": (
        every("periods: [layer1, 5]"),
        ["init_args.periods", "['layer1', 5]", "`periods: {weight1: 5}`"],
    ),
    "of has its own period": (
        every("periods: {layer1: 5}, of: layer1"),
        ["schedule.init_args.of", "'layer1'", "out of `periods`"],
    ),
    "of a number": (every("periods: {layer1: 5}, of: 3"), ["schedule.init_args.of", "is 3", "name of one group"]),
    # --- Phases
    "schedule a number": (callback("schedule: 5"), [f"line 6, {ARGS}.schedule", "is 5", "class_path: Every"]),
    "schedule a list": (callback("schedule: [{train: [all]}]"), [f"{ARGS}.schedule", "[{'train'", "`phases:"]),
    "misspelt phases": (callback("schedule: {phasess: [{train: [all]}]}"), [f"{ARGS}.schedule", "'phasess'", "phases"]),
    "misspelt repeat": (
        phases("{train: [all], updates: 1}", ", repeet: true"),
        [f"{ARGS}.schedule.repeet", "not a key of Phases", "Did you mean 'repeat'"],
    ),
    "misspelt train": (
        phases("{trian: [all]}"),
        [".schedule.phases[0].trian", "not a key of Phase", "Did you mean 'train'"],
    ),
    "misspelt updates": (
        phases("{train: [all], update: 3}"),
        [".schedule.phases[0].update", "not a key of Phase", "Did you mean 'updates'"],
    ),
    "phases empty": (
        callback("schedule: {phases: []}"),
        [".schedule.phases", "is empty", "`phases: [{train: [all]}]`"],
    ),
    "phases null": (callback("schedule: {phases: }"), [".schedule.phases", "is None", "must be a list"]),
    "phases a mapping": (
        callback("schedule: {phases: {train: [all]}}"),
        [".schedule.phases", "{'train': ['all']}", "must be a list"],
    ),
    "a phase a string": (phases("head"), [".schedule.phases[0]", "'head'", "{train: [head], updates: 10}"]),
    "no train": (phases("{updates: 3}"), [".schedule.phases[0]", "'train'", "Add the key"]),
    "train a string": (phases("{train: head}"), [".phases[0].train", "is 'head'", "`train: [head]`"]),
    "train a list of numbers": (phases("{train: [1, 2]}"), [".phases[0].train", "holds 1", "names of groups"]),
    "updates zero": (phases("{train: [all], updates: 0}"), [".phases[0].updates", "is 0", "value is 1"]),
    "updates negative": (phases("{train: [all], updates: -3}"), [".phases[0].updates", "is -3", "value is 1"]),
    "updates a fraction": (phases("{train: [all], updates: 2.4}"), [".phases[0].updates", "is 2.4", "value is 2"]),
    "updates true": (phases("{train: [all], updates: true}"), [".phases[0].updates", "is True", "whole number"]),
    "updates a string": (phases("{train: [all], updates: many}"), [".phases[0].updates", "is 'many'", "whole number"]),
    "epochs zero": (phases("{train: [all], epochs: 0}"), [".phases[0].epochs", "is 0", "value is 1"]),
    "epochs a fraction": (phases("{train: [all], epochs: 0.5}"), [".phases[0].epochs", "is 0.5", "value is 1"]),
    "both ends": (
        phases("{train: [all], updates: 3, epochs: 2}"),
        [".phases[0].epochs", "`updates: 3`", "`epochs: 2`", "Keep the one"],
    ),
    "repeat zero": (phases("{train: [all], updates: 1}", ", repeat: 0"), [".schedule.repeat", "is 0", "value is 1"]),
    "repeat negative": (
        phases("{train: [all], updates: 1}", ", repeat: -2"),
        [".schedule.repeat", "is -2", "value is 1"],
    ),
    "repeat a fraction": (
        phases("{train: [all], updates: 1}", ", repeat: 2.5"),
        [".schedule.repeat", "is 2.5", "value is 2"],
    ),
    "repeat a string": (phases("{train: [all], updates: 1}", ", repeat: ever"), [".schedule.repeat", "'ever'", "true"]),
    "open-ended and not last": (
        phases("{train: [head]}, {train: [all]}"),
        [".schedule.phases[0].train", "`train: ['head']`", "is not the last", "`updates:`, `epochs:` or `until:`"],
    ),
    "open-ended and repeated": (
        phases("{train: [all]}", ", repeat: true"),
        [".schedule.phases[0].train", "`train: ['all']`", "inside a `repeat`", "`updates:`, `epochs:` or `until:`"],
    ),
    "nested for ever": (
        phases("{repeat: true, phases: [{train: [all], updates: 1}]}"),
        [".schedule.phases[0].repeat", "`phases[0].repeat` is true", "`repeat: 10`"],
    ),
    "nested updates zero": (
        phases("{train: [a], updates: 1}, {repeat: 3, phases: [{train: [a], updates: 1}, {train: [b], updates: 0}]}"),
        [".schedule.phases[1].phases[1].updates", "is 0", "value is 1"],
    ),
    "phases that contain themselves": (
        phases("&turn {repeat: 2, phases: [{train: [all], updates: 1}, *turn]}"),
        [".schedule.phases[0].phases[1]", "contains itself", "`*name`", "`repeat: 10`"],
    ),
    "nested seed": (
        phases("{repeat: 2, seed: 3, phases: [{train: [all], updates: 1}]}"),
        [".schedule.phases[0].seed", "is 3", "one `seed`", "outermost", "Move it there"],
    ),
    "nested change": (
        phases("{repeat: 2, change: step, phases: [{train: [all], updates: 1}]}", ", change: batch"),
        [".schedule.phases[0].change", "is 'step'", "one `change`", "outermost", "Move it there"],
    ),
    "a change that is none": (
        phases("{train: [all]}", ", change: batches"),
        [".schedule.change", "'batches'", "'step', 'batch'", "Did you mean 'batch'?"],
    ),
    "seed negative": (phases("{train: [all]}", ", seed: -1"), [".schedule.seed", "is -1", "value is 0"]),
    "three ends": (
        phases("{train: [all], updates: 3, epochs: 2, until: {metric: loss}}"),
        [
            ".phases[0].until",
            "three ends",
            "`updates: 3` and `epochs: 2` and `until: Until(metric='loss'",
            "max_epochs",
        ],
    ),
    # --- picks
    "an order that is none": (
        phases("{train: [all], pick: {family: layers, order: forwards}}"),
        [".phases[0].pick.order", "'forwards'", "'shuffle'", "Did you mean 'forward'"],
    ),
    "pick of none": (
        phases("{train: [all], pick: {family: layers, count: 0}}"),
        [".phases[0].pick.count", "is 0", "value is 1"],
    ),
    "seed in a phase": (
        phases("{train: [all], seed: 3}"),
        [".phases[0].seed", "`seed` is not a key of a phase", "beside its outermost `phases:`"],
    ),
    "change in a phase": (
        phases("{train: [all], change: batch}"),
        [".phases[0].change", "`change` is not a key of a phase", "beside its outermost `phases:`"],
    ),
    "pick alone": (
        phases("{pick: {family: layers}}"),
        [".phases[0]", "'train'", "`train: []` where the draw alone"],
    ),
    "pick without a family": (
        phases("{train: [all], pick: {count: 2}}"),
        [".phases[0].pick", "'family'", "Add the key"],
    ),
    "misspelt key of a pick": (
        phases("{train: [all], pick: {famly: layers}}"),
        [".phases[0].pick.famly", "not a key of Pick", "Did you mean 'family'"],
    ),
    "pick a word": (
        phases("{train: [all], pick: layers}"),
        [".phases[0].pick", "is 'layers'", "`pick: {family: layers, count: 1"],
    ),
    "family a list": (
        phases("{train: [all], pick: {family: [a, b]}}"),
        [".phases[0].pick.family", "['a', 'b']", "name of one family", "each:"],
    ),
    "weights with another order": (
        phases("{train: [all], pick: {family: layers, order: shuffle, weights: [1, 2]}}"),
        [".phases[0].pick.weights", "`order: random`", "'shuffle'"],
    ),
    "weights negative": (
        phases("{train: [all], pick: {family: layers, weights: [1, -2]}}"),
        [".phases[0].pick.weights", "holds -2 in place 1", "value is 0"],
    ),
    "weights too few above zero": (
        phases("{train: [all], pick: {family: layers, count: 2, weights: [1, 0, 0]}}"),
        [".phases[0].pick.weights", "1 number above 0", "2 different groups", "Lower `count`"],
    ),
    "weights a number": (
        phases("{train: [all], pick: {family: layers, weights: 3}}"),
        [".phases[0].pick.weights", "is 3", "`weights: [1, 1, 2, 4]`"],
    ),
    "keep under random": (
        phases("{train: [all], pick: {family: layers, keep: true}}"),
        [".phases[0].pick.keep", "`order: random`", "Use `order: shuffle`"],
    ),
    "keep a number": (
        phases("{train: [all], pick: {family: layers, order: forward, keep: 2}}"),
        [".phases[0].pick.keep", "is 2", "True, False"],
    ),
    "drawn: thaw": (
        phases("{train: [all], pick: {family: layers, drawn: thaw}}"),
        [".phases[0].pick.drawn", "'thaw'", "'train', 'freeze'"],
    ),
    # --- until
    "until without a metric": (phases("{train: [all], until: {patience: 3}}"), [".until", "'metric'", "Add the key"]),
    "until a word": (
        phases("{train: [all], until: val_loss}"),
        [".phases[0].until", "is 'val_loss'", "`until: {metric: val_loss, patience: 3}`"],
    ),
    "until in a mode that is none": (
        phases("{train: [all], until: {metric: loss, mode: minimum}}"),
        [".phases[0].until.mode", "'minimum'", "'min', 'max'", "Did you mean 'min'"],
    ),
    "until with a misspelt key": (
        phases("{train: [all], until: {metric: loss, patients: 3}}"),
        [".phases[0].until.patients", "not a key of Until", "Did you mean 'patience'"],
    ),
    "patience negative": (
        phases("{train: [all], until: {metric: loss, patience: -1}}"),
        [".phases[0].until.patience", "is -1", "value is 0"],
    ),
    "min_delta negative": (
        phases("{train: [all], until: {metric: loss, min_delta: -0.1}}"),
        [".phases[0].until.min_delta", "is -0.1", "value is 0"],
    ),
    "min_epochs zero": (
        phases("{train: [all], until: {metric: loss, min_epochs: 0}}"),
        [".phases[0].until.min_epochs", "is 0", "value is 1"],
    ),
    "max_epochs below min_epochs": (
        phases("{train: [all], until: {metric: loss, min_epochs: 5, max_epochs: 3}}"),
        [".phases[0].until.max_epochs", "is 3", "`min_epochs` (5)", "value is 5"],
    ),
    "metric a number": (phases("{train: [all], until: {metric: 3}}"), [".until.metric", "is 3", "'val_loss'"]),
    # --- rates
    "lr a number": (phases("{train: [all], lr: 0.1}"), [".phases[0].lr", "is 0.1", "`lr: {backbone: 0.1}`"]),
    "lr zero": (phases("{train: [all], lr: {a: 0}}"), [".phases[0].lr.a", "is 0", "leave the group out of `train`"]),
    "lr negative": (phases("{train: [all], lr: {a: -1}}"), [".phases[0].lr.a", "is -1", "number above 0"]),
    "lr with another key than decay": (
        phases("{train: [all], lr: {a: {deacy: 0.5}}}"),
        [".phases[0].lr.a", "{'deacy': 0.5}", "`decay`"],
    ),
    "lr with a zero in a list": (phases("{train: [all], lr: {a: [1, 0]}}"), [".phases[0].lr.a", "is 0", "above 0"]),
    "ramp zero": (phases("{train: [all], ramp: 0}"), [".phases[0].ramp", "is 0", "value is 1"]),
    # --- groups
    "selector with an unknown key": (
        groups("head: {selct: layer2}"),
        [f"line 6, {ARGS}.groups.head", "'selct'", "Did you mean 'select'"],
    ),
    "selector empty": (groups("head: []"), [f"{ARGS}.groups.head", "selects nothing", "such as 'encoder'"]),
    "selector a number": (groups("head: 3"), [f"{ARGS}.groups.head", "selector 3", "a list of names"]),
    "name empty between dots": (
        groups("head: layer2..weight"),
        [f"{ARGS}.groups.head", "'layer2..weight'", "whole names"],
    ),
    "braces without a range": (groups('head: "layer{a}"'), [f"{ARGS}.groups.head", "'{a}'", "{0..5}"]),
    "braces backwards": (groups('head: "layer.{5..2}"'), [f"{ARGS}.groups.head", "'{5..2}'", "low to high"]),
    "no regular expression": (
        groups('head: "re:layer(1"'),
        [f"{ARGS}.groups.head", "'re:layer(1'", "not a regular expression"],
    ),
    "each mixed with others": (
        groups('head: {each: "a.*", select: b}'),
        [f"{ARGS}.groups.head", "`each:`", "two groups"],
    ),
    "group called rest": (groups("rest: layer2"), [f"{ARGS}.groups.rest", "reserved", "'rest_parameters'"]),
    "group called all": (groups("all: layer2"), [f"{ARGS}.groups.all", "reserved", "'all_parameters'"]),
    "group with a slash": (groups("a/b: layer2"), [f"{ARGS}.groups.a/b", "'a/b'", "slash"]),
    "groups a list": (
        callback("groups: [head]\nschedule: {phases: [{train: [all]}]}"),
        [f"{ARGS}.groups", "['head']", "must map names to selectors"],
    ),
}

# An error that only jsonargparse sees.
FOUND_BY_THE_PARSER: dict[str, tuple[str, list[str]]] = {
    "misspelt key at the root": (
        "trainr: {max_epochs: 1}\n" + DEMO,
        ["line 1, trainr.max_epochs: 'trainr.max_epochs' is not an option of fit.", "'trainer.max_epochs'"],
    ),
    "misspelt key of the trainer": (
        "trainer: {max_epoch: 1}\n" + DEMO,
        ["line 1, trainer.max_epoch: 'trainer.max_epoch' is not an option", "Did you mean 'trainer.max_epochs'"],
    ),
    "max_epochs a word": (
        "trainer: {max_epochs: ten}\n" + DEMO,
        ["line 1, trainer.max_epochs: `trainer.max_epochs` is 'ten', but must be int or null."],
    ),
    "precision of two minds": (
        "trainer: {precision: 16-mixd}\n" + DEMO,
        ["line 1, trainer.precision: `trainer.precision` is '16-mixd', but must be", "Did you mean '16-mixed'"],
    ),
    "seed a list": (
        "seed_everything: [1]\n" + DEMO,
        ["line 1, seed_everything: `seed_everything` is '[1]', but must be bool or int."],
    ),
    "model class that does not exist": (
        "model: {class_path: lightning_freeze.demos.ThreeLayerNet}\n",
        ["line 1, model: lightning_freeze.demos has no 'ThreeLayerNet'. Did you mean 'TwoLayerNet'?"],
    ),
    "model in a package that does not exist": (
        "model: {class_path: nowhere.Net}\n",
        ["line 1, model: No module named 'nowhere'. Install it, or write the class as package.module.Class."],
    ),
    "misspelt key of the model": (
        "model: {class_path: lightning_freeze.demos.TwoLayerNet, init_args: {hiden: 3}}\n",
        ["line 1, model.init_args.hiden: 'hiden' is not an argument of TwoLayerNet. Did you mean 'hidden'?"],
    ),
    "value of the model": (
        "model: {class_path: lightning_freeze.demos.TwoLayerNet, init_args: {hidden: wide}}\n",
        ["line 1, model.init_args.hidden: `model.hidden` is 'wide', but must be int."],
    ),
    "callback that does not exist": (
        "trainer:\n  callbacks:\n    - class_path: lightning_freeze.trainer.scheduler.FreezeSchedular\n" + DEMO,
        [
            "line 3, trainer.callbacks",
            "lightning_freeze.trainer.scheduler has no 'FreezeSchedular'",
            "'FreezeScheduler'",
        ],
    ),
    "key of the data": (
        "data: {class_path: lightning_freeze.demos.DigitsData, init_args: {batchsize: 3}}\n"
        "model: {class_path: lightning_freeze.demos.TwoLayerNet}\n",
        ["line 1, data.init_args.batchsize: 'batchsize' is not an argument of DigitsData. Did you mean 'batch_size'?"],
    ),
}


@pytest.fixture(autouse=True)
def _no_trainer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Building a Trainer fails, except where a test says that it must be built."""
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])  # LightningCLI warns of others than those it is handed
    if "builds_trainer" in request.fixturenames:
        return

    @wraps(pl.Trainer.__init__)  # jsonargparse reads its signature
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a Trainer was built for a configuration that cannot run")

    monkeypatch.setattr(pl.Trainer, "__init__", refuse)


@pytest.fixture
def builds_trainer() -> None:
    """For a test whose error needs the model."""


def written(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: Path) -> str:
    """What is said of a file, without a parser."""
    with pytest.raises(ConfigError) as caught:
        check(path)
    return str(caught.value)


def check(*paths: Path) -> None:
    roots = read_files([f"--config={path}" for path in paths])
    check_groups(roots)
    explain(roots)


def test_there_are_enough_cases() -> None:
    assert len(FOUND_BY_US) >= 45


def test_no_case_repeats_another() -> None:
    texts = [text for text, _ in (*FOUND_BY_US.values(), *FOUND_BY_THE_PARSER.values())]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("case", [*FOUND_BY_US, *FOUND_BY_THE_PARSER])
def test_error_names_file_key_value_and_fix(case: str, tmp_path: Path, refused: Any) -> None:
    text, fragments = (FOUND_BY_US | FOUND_BY_THE_PARSER)[case]
    path = written(tmp_path, text)
    message = refused("fit", "--config", str(path))
    missing = [fragment for fragment in fragments if fragment not in message]
    assert message.startswith(f"lightning-freeze: error: {path}"), message
    assert not missing, f"{missing} not in: {message}"


def test_same_text_fixed_passes(tmp_path: Path) -> None:
    """The checks can pass: what the table breaks is well formed otherwise."""
    good = [
        every("periods: {layer1: 5}, of: layer2"),
        phases("{train: [layer2], updates: 3}, {train: [all]}"),
        groups('head: {select: layer2, except: "*.bias"}'),
        callback("{slow: layer1, fast: layer2, every: 5}", "lightning_freeze.AlternatingFreeze"),
        callback("every_n_updates: 5", "lightning_freeze.FreezeAudit"),
        callback("schedule: {phases: [{train: [all]}]}\naudit: {every_n_updates: 5}"),
    ]
    for text in good:
        check(written(tmp_path, text))


# --- files that name files ------------------------------------------------------------------------------------------


def test_config_that_is_not_there_offers_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "a: 1", "alternating.yaml")
    message = fault(tmp_path / "alternatin.yaml")
    assert "alternatin.yaml' does not exist" in message
    assert "Did you mean" in message
    assert message.endswith("alternating.yaml?")


def test_config_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    message = fault(tmp_path / "no" / "such.yaml")
    assert "such.yaml' does not exist" in message
    assert "Check the path" in message


def test_schedule_file_that_is_not_there_offers_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "phases: [{train: [all]}]", "in_turn.yaml")
    path = written(tmp_path, callback("schedule: in_tern.yaml"))
    message = fault(path)
    assert message.startswith(f"{path}, line 6, {ARGS}.schedule")
    assert "in_tern.yaml' does not exist" in message
    assert "in_turn.yaml" in message.partition("Did you mean")[2]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "repeat: true\nphases: [{train: [all], updates: 1}]\nrepeat: 3\n",
            ["line 3, repeat", "first in line 1", "(3)"],
        ),
        ("phases:\n  - {train: [all], updates: 1, updates: 2}\n", ["line 2, phases[0].updates", "duplicate key"]),
        ("phases:\n  - {train: [all], updates: 0}\n", ["line 2, phases[0].updates", "is 0", "value is 1"]),
        ("repeat: true\nphase: [{train: [all], updates: 1}]\n", ["line 1, the whole file", "'phase'", "phases"]),
        ("class_path: Every\ninit_args: {periods: {a: 0}}\n", ["line 2, init_args.periods.a", "is 0"]),
        ("", ["is empty"]),
        ("phases: [{train: *a}]\n", ["line 1", "not YAML", "Quote"]),
    ],
)
def test_error_in_a_schedule_file_names_that_file(text: str, fragments: list[str], tmp_path: Path) -> None:
    schedule = written(tmp_path, text, "schedule.yaml")
    message = fault(written(tmp_path, callback("schedule: schedule.yaml")))
    assert message.startswith(str(schedule))
    assert [fragment for fragment in fragments if fragment not in message] == []


def test_second_config_is_checked_too(tmp_path: Path) -> None:
    good = written(tmp_path, every("periods: {layer1: 5}"), "good.yaml")
    bad = written(tmp_path, "trainer: {max_epochs: 1, max_epochs: 2}\n")
    with pytest.raises(ConfigError, match="bad.yaml, line 1, trainer.max_epochs"):
        read_files(["fit", f"--config={good}", "-c", str(bad)])


# --- what only the model can tell -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "groups_", "fragments"),
    [
        (Every({"layr1": 5}, of="layer2"), None, ["`periods`", "'layr1'", "Did you mean 'layer1"]),
        (Every({"layer1": 5}, of="layer3"), None, ["`of`", "'layer3'", "'layer2'"]),
        (Phases([Phase(["layer1"], 1), Phase(["hed"])]), {"head": "layer2"}, ["`phases[1].train`", "'hed'", "'head'"]),
        (Phases([Phase(["layer*.bias"])]), None, ["`phases[0].train`", "'layer*.bias'", "Did you mean"]),
    ],
)
def test_unknown_group_is_found_with_the_model(
    schedule: Every | Phases, groups_: dict[str, str] | None, fragments: list[str]
) -> None:
    with pytest.raises(ScheduleError) as caught:
        FreezeController(Net(), schedule, groups_)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_selector_that_matches_nothing_is_found_with_the_model() -> None:
    with pytest.raises(SelectionError, match=r"group 'head'.*'layer3'.*Did you mean 'layer"):
        FreezeController(Net(), Phases([Phase(["head"])]), {"head": "layer3"})


def test_rest_in_a_schedule_is_found_when_it_is_bound() -> None:
    """``train: [rest]`` is well formed, and the reserved name has the groups of a model behind it."""
    net = Net()
    controller = FreezeController(net, Phases([Phase(["rest"])]), {"head": "layer2"})
    with pytest.raises(ScheduleError, match=r"`phases\[0\].train` names 'rest', the reserved group.*`groups:`"):
        controller.attach(net.configure_optimizers())


@pytest.mark.usefixtures("builds_trainer")
def test_unknown_group_ends_the_run_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(TwoLayerNet, "training_step", lambda self, batch, batch_idx: trained.append(batch_idx))
    text = callback("schedule: {phases: [{train: [layer3], updates: 3}]}").replace(
        "accelerator: cpu", f"accelerator: cpu\n  logger: false\n  max_epochs: 1\n  default_root_dir: {tmp_path}"
    )
    text += "seed_everything: 1\n"
    message = refused("fit", "--config", str(written(tmp_path, text)))
    assert trained == []
    for fragment in ("lightning-freeze: error:", "bad.yaml, line", "phases[0].train", "'layer3'", "'layer2'"):
        assert fragment in message


def test_a_users_own_yaml_files_are_the_users_own_business(tmp_path: Path) -> None:
    """Only where a LightningCLI takes a further file is one read; a data set's description is not."""
    own = written(tmp_path, "data:\n  class_path: my.Yolo\n  init_args: {data: coco8.yaml, model: other.yaml}\n")
    assert [root.path.name for root in read_files(["--config", str(own)])] == [own.name]
    (tmp_path / "trainer.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n")
    taken = written(tmp_path, "trainer: trainer.yaml\n")
    with pytest.raises(ConfigError, match=r"trainer.yaml, line 2, max_epochs: duplicate key 'max_epochs'"):
        read_files(["--config", str(taken)])


def test_our_own_classes_misspelt_are_named(tmp_path: Path) -> None:
    text = "trainer:\n  callbacks:\n    - class_path: lightning_freeze.FreezeSheduler\n"
    with pytest.raises(ConfigError, match=r"line 3, .*class_path: .*'FreezeSheduler'. Did you mean 'FreezeScheduler'"):
        check(written(tmp_path, text))


def test_a_file_that_names_itself_as_its_schedule(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("loop.yaml\n")
    with pytest.raises(ConfigError, match=r"loop.yaml' names itself as its schedule. Write the schedule into it"):
        check(written(tmp_path, callback("schedule: loop.yaml")))


def test_what_aliases_share_is_read_once(tmp_path: Path) -> None:
    """Each level names the one before twice: written out, this would be eight thousand rows."""
    rows = "a0: &a0 {train: [all], updates: 1}\n"
    rows += "".join(f"a{n}: &a{n} {{phases: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 14))
    root = read(written(tmp_path, rows))
    assert len(list(root.walk())) < 150


def test_a_schedules_file_that_repeats_its_key(tmp_path: Path) -> None:
    (tmp_path / "in_turn.yaml").write_text("schedule:\n  phases: [{train: [all]}]\n")
    text = "trainer:\n  callbacks:\n    - class_path: lightning_freeze.FreezeScheduler\n      init_args: {schedule: in_turn.yaml}\n"
    with pytest.raises(ConfigError, match=r"in_turn.yaml, line 2, schedule: .*does not repeat the key `schedule:`"):
        check(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1e-1, -2E+3, 1e5, 1.5e3, .5, 1_000, 0x1f, 1:30, on, ~, 1e, e1, '1e-1']",
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}], x: 5}\nd: [{<<: *a}]",
    ],
)
def test_values_are_read_as_jsonargparse_reads_them(text: str, tmp_path: Path) -> None:
    root = read(written(tmp_path, text))
    assert root.plain() == get_loader("yaml")(text)
    assert {key: place.plain() for key, place in root.items().items()} == root.plain()


def test_a_merge_of_no_mapping(tmp_path: Path) -> None:
    message = fault(written(tmp_path, "a: &a [1]\nb: {<<: 3}\n"))
    assert "bad.yaml, line 2, b: `<<` takes a mapping, by an alias: `<<: *name`" in message


def test_a_duplicate_key_beside_a_merge_key(tmp_path: Path) -> None:
    assert "duplicate key 'y'" in fault(written(tmp_path, "a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n"))
    assert read(written(tmp_path, "a: &a {x: 1}\nb: {<<: *a, x: 2}\n")).plain()["b"] == {"x": 2}


# --- the same table under a stock LightningCLI ----------------------------------------------------------------------

# It takes the last of duplicate keys, and leaves the names of groups to the fit.
PASSES = {name for name in FOUND_BY_US if name.startswith(("twice", "group called", "group with"))}


def test_the_same_table_under_a_stock_lightning_cli(tmp_path: Path) -> None:
    """Nothing else passes; where jsonargparse accepts the type, the answer is ours, within its list of branches."""

    class Parser(LightningCLI):
        def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
            made.append(parser)
            raise StopIteration

    made: list[Any] = []
    with pytest.raises(StopIteration):
        Parser(run=False, parser_kwargs={"exit_on_error": False})
    answers: dict[str, str] = {}
    for name, (text, _) in FOUND_BY_US.items():
        try:
            made[0].instantiate(made[0].parse_args([f"--config={written(tmp_path, text)}"]))
        except Exception as error:
            answers[name] = str(error)
    assert FOUND_BY_US.keys() - answers.keys() == PASSES
    ours = [name for name, said in answers.items() if all(word in said for word in FOUND_BY_US[name][1][1:])]
    assert len(ours) >= 75
