"""``lightning-freeze inputs``: one batch, and a whitelist with which only what is new is found."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from lightning_freeze.cli import main
from lightning_freeze.report.findings import FreezeViolation

MODEL = """
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, mask, like, new=None):
        return self.linear(x).reshape(like.shape)


class Model(LightningModule):
    def __init__(self, new: bool = False):
        super().__init__()
        self.block = Block()
        self.new = new

    def training_step(self, batch, batch_idx):
        x = batch[0]
        return self.block(x, torch.ones_like(x), torch.ones_like(x), x.clone() if self.new else None).sum()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*`mask` and never uses it.*"),
    pytest.mark.filterwarnings("ignore:.*is handed `new`.*"),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that ignores a mask and looks at another input's shape alone."""
    name = f"ignoring_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        dedent(f"""
        seed_everything: 1
        trainer: {{accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false, max_epochs: 1}}
        model: {{class_path: {name}.Model}}
        """),
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    return tmp_path


def strict(project: Path) -> Path:
    """The same run under an audit that raises, with the whitelist that was written."""
    plain = yaml.safe_load((project / "run.yaml").read_text())
    plain["trainer"]["callbacks"] = [
        {
            "class_path": "lightning_freeze.InputAudit",
            "init_args": {"on_finding": "raise", "whitelist": str(project / "inputs.yaml")},
        }
    ]
    path = project / "strict.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def test_what_is_there_is_written_and_only_what_is_new_is_found(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inputs", "--config", "run.yaml"])
    printed = capsys.readouterr().out
    assert "2 new entries written to inputs.yaml" in printed
    assert "Block.mask" in printed
    written = yaml.safe_load((project / "inputs.yaml").read_text())
    assert list(written["whitelist"]) == ["Block.mask"]
    assert "unused in 'block'" in written["whitelist"]["Block.mask"]
    assert "not judged yet" in written["whitelist"]["Block.mask"]
    assert written["metadata_inputs"] == ["Block.like"]

    config = str(strict(project))
    main(["fit", "--config", config])  # starts clean
    with pytest.raises(SystemExit, match=r"is handed `new` and never uses it"):
        main(["fit", "--config", config, "--model.init_args.new", "true"])


def test_a_run_without_the_whitelist_does_fail(project: Path) -> None:
    (project / "inputs.yaml").write_text("whitelist: {}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"is handed `mask` and never uses it") as stopped:
        main(["fit", "--config", str(strict(project))])
    assert isinstance(stopped.value.__cause__, FreezeViolation)
    assert "modules are handed what they never use" in str(stopped.value)


def test_a_file_that_is_there_keeps_its_reasons(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "known.yaml").write_text(
        "whitelist: {Block.mask: {reason: the decoder masks, when: {training: true}}}\n", encoding="utf-8"
    )
    main(["inputs", "--config", "run.yaml", "--out", "known.yaml", "--model.init_args.new", "true"])
    written = yaml.safe_load((project / "known.yaml").read_text())
    assert written["whitelist"]["Block.mask"] == {"reason": "the decoder masks", "when": {"training": True}}
    assert set(written["whitelist"]) == {"Block.mask", "Block.new"}
    assert "2 new entries" in capsys.readouterr().out


def test_a_configuration_with_an_audit_of_its_own_is_asked_and_does_not_stop(project: Path) -> None:
    (project / "inputs.yaml").write_text("metadata_inputs: [Block.like]\n", encoding="utf-8")
    main(["inputs", "--config", str(strict(project)), "--out", "more.yaml"])
    assert list(yaml.safe_load((project / "more.yaml").read_text())["whitelist"]) == ["Block.mask"]


BAD = [
    ("whitelist: {Block.mask: ''}", "line 1, whitelist.Block.mask: whitelist['Block.mask'].reason: '' is no reason"),
    ("whitelist: {mask: why}", "line 1, whitelist.mask: whitelist['mask']: 'mask' is no `Class.argument`"),
    ("whitelist:\n  Block.mask: {reason: x, wen: {a: 1}}", "line 2, whitelist.Block.mask.wen: whitelist['Block.mask']"),
    ("whitelist: {Block.mask: {reason: x, when: [1]}}", "is no mapping of the module's attributes to values"),
    ("whitelst: {}", "line 1, whitelst: 'whitelst' is no key of a whitelist's file. Nearest: 'whitelist'"),
    ("metadata_inputs: Block.like", "metadata_inputs: 'Block.like' is no list. Write a list: [Block.like]."),
    ("whitelist: {Block.mask: a, Block.mask: b}", "stands twice"),
    ("- 1", "the file must be a mapping with the key `whitelist` or `metadata_inputs`"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_a_bad_file_is_refused_before_training(text: str, said: str, project: Path) -> None:
    (project / "inputs.yaml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(strict(project))])
    assert said in str(stopped.value)
    assert str(project / "inputs.yaml") in str(stopped.value)


def test_no_batches_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inputs", "--config", "run.yaml", "--batches", "0"])
    assert "--batches is 0, but must be at least 1." in capsys.readouterr().err
