"""``lightning-freeze inputs``: one batch, and a whitelist with which only what is new is found."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from lightning_freeze.cli.main import main
from lightning_freeze.demos import DigitsData

CONFIGS = Path(__file__).parents[2] / "configs"

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
    pytest.mark.filterwarnings("ignore:.*is passed `new`.*"),
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


def strict(project: Path, whitelist: object = None, name: str = "strict.yaml") -> Path:
    """The same run under an audit that raises, with the whitelist that was written."""
    plain = yaml.safe_load((project / "run.yaml").read_text())
    plain["trainer"]["callbacks"] = [
        {
            "class_path": "lightning_freeze.InputAudit",
            "init_args": {"on_finding": "raise", "whitelist": whitelist or str(project / "inputs.yaml")},
        }
    ]
    path = project / name
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def test_what_is_there_is_written_and_only_what_is_new_is_found(
    project: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    main(["inputs", "--config", "run.yaml"])
    printed = capsys.readouterr().out
    assert "2 new entries written to inputs.yaml" in printed
    assert "Block.mask" in printed
    written = yaml.safe_load((project / "inputs.yaml").read_text())
    assert list(written["whitelist"]) == ["Block.mask"]
    assert "unused in 'block'" in written["whitelist"]["Block.mask"]
    assert "not reviewed yet" in written["whitelist"]["Block.mask"]
    assert written["metadata_inputs"] == ["Block.like"]

    config = str(strict(project))
    main(["fit", "--config", config])  # starts clean
    assert re.search(
        r"is passed `new` and never uses it",
        refused("fit", "--config", config, "--model.init_args.new", "true", status=1),
    )


def test_a_run_without_the_whitelist_does_fail(project: Path, refused: Any) -> None:
    (project / "inputs.yaml").write_text("whitelist: {}\n", encoding="utf-8")
    said = refused("fit", "--config", str(strict(project)), status=1)
    assert "is passed `mask` and never uses it" in said
    assert "modules are passed what they never use" in said


def test_a_file_that_is_there_keeps_its_reasons(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "known.yaml").write_text(
        "whitelist: {Block.mask: {reason: the decoder masks, when: {training: true}}}\n", encoding="utf-8"
    )
    main(["inputs", "--config", "run.yaml", "--out", "known.yaml", "--model.init_args.new", "true"])
    written = yaml.safe_load((project / "known.yaml").read_text())
    assert written["whitelist"]["Block.mask"] == {"reason": "the decoder masks", "when": {"training": True}}
    assert set(written["whitelist"]) == {"Block.mask", "Block.new"}
    assert "2 new entries" in capsys.readouterr().out


def test_a_configuration_with_an_audit_of_its_own_is_asked_and_does_not_stop(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "inputs.yaml").write_text("metadata_inputs: [Block.like]\n", encoding="utf-8")
    main(["inputs", "--config", str(strict(project)), "--out", "more.yaml"])
    assert list(yaml.safe_load((project / "more.yaml").read_text())["whitelist"]) == ["Block.mask"]
    assert "1 new entry written to more.yaml" in capsys.readouterr().out


def test_what_is_listed_already_is_nothing_new_and_the_file_stays_as_it_is(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# judged\nwhitelist: {Block.mask: the decoder masks}\nmetadata_inputs: [Block.like]\n"
    (project / "inputs.yaml").write_text(text, encoding="utf-8")
    main(["inputs", "--config", "run.yaml"])
    assert "Nothing new: inputs.yaml lists all of it already." in capsys.readouterr().out
    main(["inputs", "--config", str(strict(project))])
    assert "Nothing was found: every input is used, or declared." in capsys.readouterr().out
    assert (project / "inputs.yaml").read_text() == text


@pytest.mark.parametrize("own", [True, False])
def test_the_table_tells_and_nothing_warns(
    own: bool, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")  # stands back
    config = str(strict(project, {"Block.x": "unused, they say"}) if own else "run.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(many workers|LeafSpec|no `val_dataloader`|`training_step`).*")
        main(["inputs", "--config", config])
    printed = capsys.readouterr().out
    assert ("3 findings over 3 inputs" if own else "2 findings over 2 inputs") in printed
    assert printed.count("is passed `mask` and never uses it") == 1
    assert ("'Block.x' (unused, they say) is listed as not used" in printed) is own


# --- where a whitelist's file is


def test_a_relative_whitelist_is_found_beside_the_config(
    project: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    home = project / "home"
    home.mkdir()
    (home / "known.yaml").write_text("whitelist: {Block.mask: shared}\nmetadata_inputs: [Block.like]\n")
    config = str(strict(project, "known.yaml", "home/strict.yaml"))
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    main(["fit", "--config", config])
    assert re.search(
        r"is passed `new` and never uses it",
        refused("fit", "--config", config, "--model.init_args.new", "true", status=1),
    )
    (home / "known.yaml").write_text("whitelist: {Block.mask: ''}\n")
    assert re.search(
        r"home/known.yaml, line 1, whitelist.Block.mask: '' is not a reason", refused("fit", "--config", config)
    )


def test_a_whitelist_that_is_not_there_is_named_with_the_command_that_writes_it(project: Path, refused: Any) -> None:
    said = refused("fit", "--config", strict(project, "known.yaml").name)
    assert "strict.yaml, line " in said
    assert (
        "trainer.callbacks[0].init_args.whitelist: the file 'known.yaml' does not exist. Did you mean (in '.'): "
        in said
    )
    assert said.rstrip().endswith(
        "To write it, run `lightning-freeze inputs --config <config without this line> --out known.yaml`."
    )
    assert re.search(
        r"'known.yaml' does not exist", refused("inputs", "--config", "strict.yaml", "--out", "another.yaml")
    )


def test_a_config_may_name_the_whitelist_that_is_being_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "home").mkdir()
    config = str(strict(project, "known.yaml", "home/strict.yaml"))
    main(["inputs", "--config", config, "--out", "home/known.yaml"])
    assert list(yaml.safe_load((project / "home" / "known.yaml").read_text())["whitelist"]) == ["Block.mask"]
    main(["fit", "--config", config])


def test_a_bad_whitelist_in_the_config_itself_is_named_with_its_line(project: Path, refused: Any) -> None:
    config = strict(project, {"Block.mask": ""})
    line = next(i for i, text in enumerate(config.read_text().splitlines(), 1) if "Block.mask" in text)
    said = refused("fit", "--config", str(config))
    where = f"{config}, line {line}, trainer.callbacks[0].init_args.whitelist.Block.mask: '' is not a reason"
    assert where in said


def test_a_declaration_on_a_class_that_cannot_be_read_is_one_line(project: Path, refused: Any) -> None:
    (path,) = project.glob("ignoring_*.py")
    path.write_text(MODEL.replace("class Block(nn.Module):", "class Block(nn.Module):\n    metadata_inputs = 'like'"))
    assert re.search(
        r"error: Block.metadata_inputs: 'like' is not a list of argument names",
        refused("inputs", "--config", "run.yaml"),
    )


# --- what keeps a model from being built


def test_a_missing_package_is_one_line_with_the_fix(
    project: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = refused("fit", "--config", str(CONFIGS / "inputs.yaml"))
    line = next(
        i for i, text in enumerate((CONFIGS / "inputs.yaml").read_text().splitlines(), 1) if "demos.DigitsSwin" in text
    )
    assert said.rstrip() == (
        f"lightning-freeze: error: {CONFIGS / 'inputs.yaml'}, line {line}, model.class_path: DigitsSwin needs the package "
        "transformers, which is not installed. In a checkout of lightning-freeze, run pip install -c constraints.txt -e "
        "'.[demo,hf]'."
    )


def test_the_digits_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"DigitsData needs .* scikit-learn.* -c constraints.txt -e '.\[demo\]'"):
        DigitsData().setup("fit")


def test_an_error_of_the_model_s_own_keeps_its_traceback(project: Path) -> None:
    (path,) = project.glob("ignoring_*.py")
    path.write_text(MODEL.replace("self.new = new", "raise ZeroDivisionError('its own')"), encoding="utf-8")
    with pytest.raises(ValueError, match="its own"):
        main(["fit", "--config", "run.yaml"])


@pytest.mark.parametrize("subcommand", ["fit", "inputs"])
def test_a_misspelt_class_is_told_with_the_nearest(subcommand: str, project: Path, refused: Any) -> None:
    text = (project / "run.yaml").read_text()
    (project / "run.yaml").write_text(text.replace(".Model", ".Modle"), encoding="utf-8")
    said = refused(subcommand, "--config", "run.yaml")
    assert "run.yaml, line 4, model: " in said
    assert "has no 'Modle'. Did you mean 'Model'?" in said
    assert f"lightning-freeze {subcommand} --help" in said


BAD = [
    ("whitelist: {Block.mask: ''}", "line 1, whitelist.Block.mask: '' is not a reason"),
    ("whitelist: {mask: why}", "line 1, whitelist.mask: 'mask' is no `Class.argument`"),
    (
        "whitelist:\n  Block.mask: {reason: x, wen: {a: 1}}",
        "line 2, whitelist.Block.mask.wen: no such key; did you mean",
    ),
    (
        "whitelist: [Block.mask]",
        "line 1, whitelist: ['Block.mask'] is not a mapping of `Class.argument` to a reason. Write",
    ),
    ("whitelist: {Block.mask: {reason: x, when: [1]}}", "is not a mapping of the module's attributes to values"),
    ("whitelst: {}", "line 1, whitelst: 'whitelst' is no key of a whitelist's file. Did you mean 'whitelist'"),
    ("metadata_inputs: Block.like", "metadata_inputs: 'Block.like' is not a list. Write a list: [Block.like]."),
    ("whitelist: {Block.mask: a, Block.mask: b}", "duplicate key"),
    ("- 1", "the file must be a mapping with the key `whitelist` or `metadata_inputs`"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_a_bad_file_is_refused_before_training(text: str, said: str, project: Path, refused: Any) -> None:
    (project / "inputs.yaml").write_text(text + "\n", encoding="utf-8")
    said = refused("fit", "--config", str(strict(project)))
    assert said in said
    assert str(project / "inputs.yaml") in said


def test_no_batches_are_refused(project: Path, refused: Any) -> None:
    assert "--batches is 0, but must be at least 1." in refused("inputs", "--config", "run.yaml", "--batches", "0")
