"""``lightning-freeze groups``: YAML that a scheduler takes as it is, with the sizes beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_freeze import FreezeScheduler, Phase, Phases
from lightning_freeze.cli.groups import groups_yaml
from lightning_freeze.cli.main import main
from lightning_freeze.demos import DigitsGAN, DigitsMixer, TwoLayerNet
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.suggest import suggest_groups
from tests.conftest import make_trainer
from tests.recipes import Mixer, data

CONFIGS = Path(__file__).parents[2] / "configs"
LISA = str(CONFIGS / "lisa.yaml")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LightningCLI warns of other arguments than those that it is handed; what is written goes below the test."""
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def suggested(module: Any) -> str:
    return groups_yaml(module, suggest_groups(module))


PRINTED = """\
# Suggested for DigitsMixer, whose parameters have 44,202 elements that can train.
groups:
  embeddings: [position, embed]  # 672 elements, 1.5%
  blocks: {each: blocks.*}       # 8 groups, 43,136 elements, 97.6%
  head: head                     # 330 elements, 0.7%
  norms: norm                    # 64 elements, 0.1%
"""


def test_it_prints_groups_and_writes_them_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["groups", "--config", LISA, "--out", "groups.yaml"])
    assert capsys.readouterr().out == PRINTED + "# Written to groups.yaml.\n"
    assert Path("groups.yaml").read_text() == PRINTED
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "groups.yaml"]


def test_an_averaged_copy_is_suggested_as_the_user_s_own() -> None:
    model = TwoLayerNet()
    model.ema = AveragedModel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    text = suggested(model)
    assert "  ema: {select: ema, by: user}  # 12 elements, " in text
    groups = yaml.safe_load(text)["groups"]
    assert groups == {**suggest_groups(TwoLayerNet()), "ema": {"select": "ema", "by": "user"}}
    assert [*group_parameters(model, groups, "error").moved_by_user] == ["ema"]


def test_a_file_that_is_there_is_kept(refused: Any) -> None:
    Path("groups.yaml").write_text("mine")
    said = refused("groups", "--config", LISA, "--out", "groups.yaml")
    assert said == "lightning-freeze: error: --out is 'groups.yaml', which exists already. Give another name.\n"
    assert Path("groups.yaml").read_text() == "mine"


def test_a_folder_that_is_not_there() -> None:
    main(["groups", "--config", LISA, "--out", "new/groups.yaml"])
    assert Path("new/groups.yaml").read_text() == PRINTED


class Deep(nn.Module):
    """Blocks, a tied head, and something beside them; a part is the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight.data[0]))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.layers[0][0].bias.requires_grad_(False)


def plain_chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


MODELS = {
    "two layers": TwoLayerNet,
    "mixer": lambda: DigitsMixer(width=4),
    "LoRA": lambda: DigitsMixer(width=4, lora=2),
    "GAN": lambda: DigitsGAN(hidden=4),
    "tied": Deep,
    "chain": plain_chain,
    "numbers": lambda: nn.ModuleDict({"0": nn.Linear(2, 2), "1": nn.Linear(2, 2), "x": nn.Linear(2, 2)}),
    "off": lambda: nn.ModuleDict({"no": nn.Linear(2, 2), "off": nn.Linear(2, 2), "null": nn.Linear(2, 2)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_printed_is_read_as_the_groups_that_were_meant(name: str) -> None:
    module = MODELS[name]()
    read = yaml.safe_load(suggested(module))["groups"]
    assert read == suggest_groups(module)
    found = group_parameters(module, read)
    live = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert sum(m.parameter.numel() for members in found.members.values() for m in members) == live


def test_a_family_whose_name_yaml_takes_for_true() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.on = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))
            self.head = nn.Linear(2, 1)

    module = Odd()
    assert yaml.safe_load(suggested(module))["groups"] == suggest_groups(module)


def test_sizes_stand_beside_the_groups() -> None:
    module = Deep()
    layer, norm = 4 * 4 + 4, 8
    blocks = 3 * (layer + norm) - 4  # a bias is the user's own
    total = 36 + blocks + 1 + 8
    lines = suggested(module).splitlines()
    assert lines[0] == f"# Suggested for Deep, whose parameters have {total} elements that can train."
    beside = {line.partition(":")[0].strip(): line.partition("  # ")[2] for line in lines[2:]}
    assert beside["embeddings"] == f"36 elements, {36 / total:.1%}"
    assert beside["layers"] == f"3 groups, {blocks} elements, {blocks / total:.1%}"
    assert beside["norms"] == f"8 elements, {8 / total:.1%}"
    assert "head" not in beside, "it is the embeddings' weight"
    assert lines[-1] == f"# rest: 1 elements, {1 / total:.1%}: scale"


def test_of_the_rest_a_few_are_named() -> None:
    module = Deep()
    for number in range(5):
        module.register_parameter(f"scale{number}", nn.Parameter(module.scale.data.clone()))
    line = suggested(module).splitlines()[-1]
    assert line.startswith("# rest: 6 elements")
    assert line.count("scale") == 4
    assert line.endswith(", …")


def test_it_runs_as_a_schedulers_groups(tmp_path: Path) -> None:
    model = Mixer(width=4, depth=2)
    groups = yaml.safe_load(suggested(model))["groups"]
    scheduler = FreezeScheduler(Phases([Phase(["head"], updates=1), Phase(["blocks"])]), groups, rest="error")
    make_trainer(tmp_path, scheduler).fit(model, data(3))
    assert scheduler.updates == {"embeddings": 0, "blocks/0": 2, "blocks/1": 2, "head": 1, "norms": 0}


# --- models of one's own --------------------------------------------------------------------------------------------

MODULE = """
from torch import nn
from lightning_freeze.demos import DigitsData, DigitsMixer, TwoLayerNet


class Late(TwoLayerNet):
    def __init__(self):
        super().__init__()
        del self.layer1, self.layer2

    def configure_model(self):
        self.layer1, self.layer2 = nn.Linear(64, 32, bias=False), nn.Linear(32, 10, bias=False)


class Asking(Late):
    def configure_model(self):
        with self.trainer.init_module():
            super().configure_model()


class Frozen(TwoLayerNet):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Nothing(Late):
    def configure_model(self):
        pass


class NoStep(TwoLayerNet):
    training_step = train_dataloader = configure_optimizers = None
"""

# Whatever the callbacks say of groups: they are what is looked for.
CONFIG = """
trainer:
  accelerator: gpu
  devices: 8
  callbacks:
    - class_path: lightning_freeze.FreezeScheduler
      init_args: {groups: {head: nowhere}, schedule: {phases: [{train: [nobody]}]}}
model: {class_path: MODULE.CLASS}
"""


def of(name: str) -> list[str]:
    """The command for a class of `MODULE`."""
    module = f"own_{Path.cwd().name.replace('-', '_')}"
    Path(f"{module}.py").write_text(MODULE)
    Path("own.yaml").write_text(CONFIG.replace("MODULE", module).replace("CLASS", name))
    return ["groups", "--config", "own.yaml"]


TWO_LAYERS = "groups:\n  layer1: layer1  # 2,048 elements, 86.5%\n  head: layer2    # 320 elements, 13.5%\n"


@pytest.mark.parametrize(
    "name",
    ["Late", "NoStep", "Asking"],
)
def test_neither_callbacks_nor_data_nor_hardware_matter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(of(name))
    assert capsys.readouterr().out.partition("\n")[2] == TWO_LAYERS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "Frozen",
            "there is nothing to group: nothing has requires_grad=True (2 parameters). Set it True for what is to train.",
        ),
        ("Nothing", "there is nothing to group: Nothing has no parameters."),
    ],
)
def test_nothing_to_group_is_told(name: str, said: str, refused: Any) -> None:
    assert said in refused(*of(name))


def test_nothing_to_group_is_no_fault_of_the_schedule(refused: Any) -> None:
    assert "init_args.schedule" not in refused(*of("Frozen"))
