"""Frozen modules are held in eval mode, and get back the mode that they had."""

from __future__ import annotations

import torch
from torch import nn

from lightning_freeze.holds.eval_mode import EvalModes


def test_each_module_gets_its_own_mode_back() -> None:
    training, evaluating, other = nn.Dropout(), nn.Dropout().eval(), nn.Dropout()
    modes = EvalModes()
    modes.hold([training, evaluating])
    assert [m.training for m in (training, evaluating, other)] == [False, False, True]
    modes.hold([evaluating, other])
    assert [m.training for m in (training, evaluating, other)] == [True, False, False]
    modes.detach()
    assert [m.training for m in (training, evaluating, other)] == [True, False, True]


def test_a_train_call_in_between_is_undone_by_the_next_hold() -> None:
    module = nn.Dropout()
    modes = EvalModes()
    modes.hold([module])
    module.train()
    modes.hold([module])
    assert not module.training


def test_a_compiled_module_and_the_one_inside_get_their_mode_back() -> None:
    """The one has no mode of its own: it shows that of the other, which must be read before it is set."""
    compiled = torch.compile(nn.Sequential(nn.Dropout()), backend="eager")
    modules = list(compiled.modules())  # type: ignore[attr-defined]
    modes = EvalModes()
    modes.hold(modules)
    assert [m.training for m in modules] == [False] * 3
    modes.detach()
    assert [m.training for m in modules] == [True] * 3


def test_a_module_that_keeps_a_part_in_eval_mode_does_so_under_a_hold() -> None:
    """As detection models keep their batch norms, by a `train` of their own."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.norm = nn.Dropout(), nn.BatchNorm1d(3)

        def train(self, mode: bool = True) -> Backbone:
            super().train(mode)
            self.norm.eval()
            return self

    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Stubborn:
            return self

    model, hold = nn.Sequential(Backbone(), Stubborn()).train(), EvalModes()
    modules = [*model.modules()][1:]
    hold.attach()
    for mode in (None, False, True):
        hold.hold(modules)
        if mode is not None:
            model.train(mode)
        hold.hold(modules)
        assert not any(module.training for module in modules)
    hold.detach()
    assert [module.training for module in modules] == [True, True, False, True]


def test_a_mode_that_the_user_sets_meanwhile_is_the_one_it_gets_back() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Dropout()), nn.Dropout()

    def modes(*calls: tuple[str, bool]) -> list[bool]:
        model, hold = Model(), EvalModes()
        hold.attach()
        hold.hold([model.body, model.body[0]])
        for name, mode in calls:
            model.get_submodule(name).train(mode)
        hold.hold([model.body, model.body[0]])
        assert [m.training for m in model.body.modules()] == [False, False], "held in any case"
        hold.detach()
        assert "train" not in vars(type(model))
        return [m.training for m in model.body.modules()]

    assert modes() == [True, True]
    assert modes(("body", False)) == [False, False]
    assert modes(("body.0", False)) == [True, False]
    assert modes(("body", False), ("body", True)) == [True, True]
    assert modes(("", False)) == [True, True], "the whole model, for a validation"
    assert modes(("body", False), ("", True)) == [True, True], "as without the hold"
    train = nn.Module.train
    assert train.__module__ == "torch.nn.modules.module"
