"""The demos' models and data, without a Trainer."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch

from lightning_freeze.demos import DigitsData, DigitsMixer, MissingPackageError, quiet


def test_a_class_of_each_image_is_predicted() -> None:
    model, images = DigitsMixer(width=8, depth=1), torch.rand(3, 8, 8)
    assert torch.equal(model.predict_step((images, torch.zeros(3)), 0), model(images).argmax(1))


def test_without_scikit_learn_the_data_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"DigitsData needs the package scikit-learn, .*\.\[demo\]"):
        DigitsData().setup("fit")


def test_many_trainers_are_quiet_and_heard_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with quiet():
        print("a table")
        warnings.warn("a hint", stacklevel=1)
        assert logger.level == logging.ERROR
    assert logger.level == level
    assert capsys.readouterr().out == ""
