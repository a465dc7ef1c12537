"""What tests of the recipes share: each configuration of ``configs/`` with its own schedule, groups and model, made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_freeze import FreezeAudit, FreezeScheduler
from lightning_freeze.cli.config import build_schedule
from lightning_freeze.demos import DigitsGAN, DigitsMixer, TwoLayerNet
from lightning_freeze.yaml_file import Place, read

CONFIGS = Path(__file__).parents[1] / "configs"
# Not inputs.yaml, whose model is another's and whose schedule is that of alternating.yaml.
RECIPES = [
    path.stem
    for path in sorted(CONFIGS.glob("*.yaml"))
    if "model" in yaml.safe_load(path.read_text()) and path.stem != "inputs"
]


class Step:
    """For models: a batch that depends on epoch and place alone, so that a resumed run sees what the straight one saw.

    In a loop without a Trainer, ``epoch`` says which it is, and what it logs goes nowhere.
    """

    epoch = 0
    _trainer: Any
    trainer: Any

    def log(self, *args: Any, **kwargs: Any) -> None:
        if self._trainer is not None:
            super().log(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        here = 1000 * (self.epoch if self._trainer is None else self.trainer.current_epoch) + batch_idx
        torch.manual_seed(here)  # for the GAN's noise
        made = torch.Generator().manual_seed(here)
        images, labels = torch.rand(8, 8, 8, generator=made), torch.randint(10, (8,), generator=made)
        return super().training_step((images, labels), batch_idx)  # type: ignore[misc]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs a loss that rises with every second epoch, so that patience runs out now and then."""
        place: Any = self
        place.log("val_loss", torch.tensor(float(place.trainer.current_epoch // 2)))


class Mixer(Step, DigitsMixer):
    pass


class TwoLayers(Step, TwoLayerNet):
    pass


class GAN(Step, DigitsGAN):
    pass


MODELS: dict[str, Any] = {"DigitsMixer": Mixer, "TwoLayerNet": TwoLayers, "DigitsGAN": GAN}


def place_of(name: str) -> Place:
    """The arguments of a recipe's scheduler, where they stand."""
    root = read(CONFIGS / f"{name}.yaml")
    return next(place for place in root.walk() if place.key.endswith("callbacks[0].init_args"))


def arguments_of(name: str, schedule: Any = None) -> dict[str, Any]:
    """A recipe's arguments, of a scheduler or of a controller."""
    items = place_of(name).items()
    arguments = {key: value.plain() for key, value in items.items() if key != "schedule"}
    return {"schedule": schedule or build_schedule(items["schedule"]), **arguments}


def scheduler_of(name: str, schedule: Any = None, **more: Any) -> FreezeScheduler:
    """A recipe's scheduler, without the input audit."""
    return FreezeScheduler(**arguments_of(name, schedule), audit=FreezeAudit(inputs=False), **more)


def model_of(name: str) -> Any:
    """A recipe's model, narrow, always the same."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    kind = config["class_path"].rpartition(".")[2]
    torch.manual_seed(0)
    narrow = {"width": 8} if kind == "DigitsMixer" else {}
    return MODELS[kind](**narrow, **config.get("init_args", {}))


def data(batches: int) -> Any:
    """So many batches of nothing; models make their own."""
    rows: list[Tensor] = [torch.zeros(1)] * batches
    return torch.utils.data.DataLoader(rows, batch_size=1)  # type: ignore[arg-type]
