"""`InputAudit` in a Trainer, the line in every scheduler's epoch, and the switch by an environment variable."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import (
    BoringModel,
    ManualOptimBoringModel,
)
from pytorch_lightning.demos.transformer import Transformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze import AlternatingFreeze, FreezeAudit, FreezeViolation, InputAudit, ScheduleError
from lightning_freeze.cli.main import main
from lightning_freeze.inputs.declarations import DeclarationError
from lightning_freeze.inputs.readers import Readers
from lightning_freeze.inputs.tracer import Tracer
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import VERSION, read_records
from lightning_freeze.trainer import switch
from lightning_freeze.trainer.input_audit import InputWatch, once_a_class
from lightning_freeze.yaml_file import ConfigError
from tests.conftest import Net, batches

CONFIGS = Path(__file__).parents[2] / "configs"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, like: Tensor | None = None) -> Tensor:
        y = self.linear(x)
        return y if like is None else y * like.shape[0]


class Faulty(Net):
    """Two blocks that are handed a mask which they never use."""

    def __init__(self, make: Any = None) -> None:
        super().__init__(make)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.watched: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.watched.append(Tracer.active is not None)
        for block in self.blocks:
            x = block(x, mask=torch.ones(4))
        return super().forward(x)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


class Shapes(Net):
    """Its block asks a mask for nothing but its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.block(x, like=torch.ones(4)))


FOUND = {("blocks.0", "mask", "unused"), ("blocks.1", "mask", "unused")}


def keys(findings: list[Finding]) -> set[tuple[Any, Any, str]]:
    return {(f.module, f.argument, f.kind) for f in findings if f.audit == "inputs"}


def clean() -> bool:
    """Whether no audit is installed."""
    return Tracer.active is None and nn.Module.__call__ is CALL and "shape" not in vars(Tensor)


CALL = nn.Module.__call__


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Any:
    assert clean()
    yield
    left = not clean()
    if Tracer.active is not None:
        Tracer.active.remove()
    assert not left, "an audit is still installed"


# --- warn and raise


def test_what_is_found_is_told_once_a_class_and_the_epoch_is_a_line(trainer: Any, caplog: Any) -> None:
    audit = InputAudit()
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match=r"`mask` and never uses it") as warned:
        trainer(audit, max_epochs=2).fit(Faulty(), batches(2))
    told = [str(w.message) for w in warned if "never uses it" in str(w.message)]
    assert len(told) == 1
    assert "The same in 1 more of its class: 'blocks.1'." in told[0]
    assert keys(audit.findings) == FOUND
    assert all(f.confirmed and f.epoch == 0 for f in audit.findings)
    assert caplog.text.count("freeze, epoch 0: inputs: 2 ") == 1
    assert "Block.mask (unused, 2 modules)" in caplog.text


def test_verdicts_hold_every_leaf(trainer: Any) -> None:
    audit = InputAudit()
    with pytest.warns(UserWarning, match="never uses it"):
        trainer(audit).fit(Faulty(), batches(1))
    assert audit.verdicts["blocks.0", "mask"] == "unused"
    assert audit.verdicts["blocks.0", "x"] == audit.verdicts["layer1", "input"] == "used"
    assert audit.verdicts["", "x"] == "used"


def test_raise_saves_the_run_and_says_where(trainer: Any, tmp_path: Path) -> None:
    model = Faulty()
    with pytest.raises(FreezeViolation, match=r"modules are passed what they never use") as raised:
        trainer(InputAudit(on_finding="raise"), max_epochs=3).fit(model, batches(2))
    assert keys(raised.value.findings) == FOUND
    saved = raised.value.checkpoint
    assert saved is not None
    assert saved in str(raised.value)
    assert str(raised.value).endswith(
        "To go on all the same, set on_finding='warn', or whitelist what is known: `lightning-freeze inputs --config "
        "<yours>` writes the list. More: `lightning-freeze explain unused`."
    )
    weights = torch.load(saved, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert Path(saved).parent == tmp_path
    assert len(model.watched) == 2, "at the end of the first epoch"


@pytest.mark.parametrize(
    ("model", "options"), [(Net, {}), (Shapes, {}), (Faulty, {"whitelist": {"Block.mask": "why"}})]
)
def test_what_is_no_confirmed_fault_does_not_stop_a_run(model: Any, options: Any, trainer: Any) -> None:
    audit = InputAudit(on_finding="raise", **options)
    trainer(audit).fit(model(), batches(2))
    assert keys(audit.findings) == ({("block", "like", "metadata")} if model is Shapes else set())


class Candidate(Net):
    """Its block cannot be judged by its code, nor be run again."""

    class Doubtful(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if mask is None:
                return x
            SEEN.append(1)
            return x * 1

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Doubtful()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.block(x, torch.ones(4)))


SEEN: list[int] = []


def test_a_candidate_does_not_stop_a_run(trainer: Any, caplog: Any) -> None:
    audit = InputAudit(on_finding="raise")
    with caplog.at_level("INFO"):
        trainer(audit).fit(Candidate(), batches(1))
    assert [(f.argument, f.confirmed, f.severity) for f in audit.findings] == [("mask", False, "info")]
    assert "candidate" in caplog.text


# --- which batches


@pytest.mark.parametrize(
    ("options", "watched"),
    [
        ({}, [1, 0, 0, 1, 0, 0, 1, 0, 0]),
        ({"batches": 2}, [1, 1, 0, 1, 1, 0, 1, 1, 0]),
        ({"batches": 9}, [1] * 9),
        ({"every_n_epochs": 2}, [1, 0, 0, 0, 0, 0, 1, 0, 0]),
        ({"every_n_epochs": 5, "batches": 3}, [1, 1, 1, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*never uses it.*")
def test_watched_batches(options: Any, watched: list[int], trainer: Any) -> None:
    model = Faulty()
    trainer(InputAudit(**options), max_epochs=3).fit(model, batches(3))
    assert [int(one) for one in model.watched] == watched


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every_n_epochs": 0}, ScheduleError, "every_n_epochs"),
        ({"batches": -1}, ScheduleError, "batches"),
        ({"batches": True}, ScheduleError, "batches"),
        ({"on_finding": "warm"}, ScheduleError, "`on_finding` is 'warm', but must be one of .*Did you mean 'warn'"),
        ({"whitelist": ["Block.mask"]}, DeclarationError, r"Write: whitelist: \{Block.mask: <why it is not used>\}"),
        ({"whitelist": {"mask": "why"}}, DeclarationError, "no `Class.argument`"),
        ({"whitelist": {"Block.mask": ""}}, DeclarationError, "is not a reason"),
        ({"metadata_inputs": ["like"]}, DeclarationError, "no `Class.argument`"),
        ({"metadata_inputs": "Block.like"}, DeclarationError, r"is not a list. Write a list"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        InputAudit(**options)


# --- evaluation


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_evaluation_loops_are_watched(loop: str, trainer: Any) -> None:
    audit, model = InputAudit(batches=2), Faulty()
    with pytest.warns(UserWarning, match="never uses it"):
        getattr(trainer(audit), loop)(model, batches(3))
    assert keys(audit.findings) == FOUND
    assert [int(one) for one in model.watched] == [1, 1, 0]


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_evaluation_can_be_stopped(loop: str, trainer: Any) -> None:
    with pytest.raises(FreezeViolation, match=r"Nothing was saved"):
        getattr(trainer(InputAudit(on_finding="raise")), loop)(Faulty(), batches(2))


class InValidation(Net):
    """Hands a block a mask in validation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.block(batch[0], mask=torch.ones(4))


def test_a_fit_s_validation_is_watched_too(trainer: Any) -> None:
    audit = InputAudit()
    with pytest.warns(UserWarning, match=r"`mask` and never uses it"):
        trainer(audit).fit(InValidation(), batches(2), batches(2))
    assert keys(audit.findings) == {("block", "mask", "unused")}


class Masks(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x if self.training else x * mask


class UsedInValidation(Net):
    """Its block uses a mask in validation alone; each validation batch is noted, and whether it is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Masks()
        self.watched: list[tuple[int, int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.block(x, torch.ones(4)))

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.watched.append((dataloader_idx, batch_idx, Tracer.active is not None))
        self(batch[0])


def auditor(kind: str) -> Any:
    return {"alone": InputAudit, "scheduler": alternating, "audit": FreezeAudit}[kind]()


@pytest.mark.parametrize("kind", ["alone", "scheduler", "audit"])
@pytest.mark.filterwarnings("error:.*never uses it.*")
def test_what_validation_alone_uses_is_conditional(kind: str, trainer: Any) -> None:
    audit, model = auditor(kind), UsedInValidation()
    audit._on_finding = "raise"
    trainer(audit, num_sanity_val_steps=2).fit(model, batches(2), [batches(2), batches(2, seed=1)])
    assert keys(audit.findings) == {("block", "mask", "conditional")}
    sanity = [(loader, batch, False) for loader in (0, 1) for batch in (0, 1)]
    assert model.watched == [*sanity, (0, 0, True), (0, 1, False), (1, 0, True), (1, 1, False)]


@pytest.mark.parametrize("kind", ["alone", "scheduler", "audit"])
def test_validation_is_watched_in_audited_epochs_of_a_fit_alone(kind: str, trainer: Any) -> None:
    audit, model = InputAudit(every_n_epochs=2) if kind == "alone" else auditor(kind), UsedInValidation()
    run = trainer(audit, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, batches(1), batches(1))
    assert [watched for *_, watched in model.watched] == [True, kind != "alone"]
    run.validate(model, batches(1), verbose=False)
    assert model.watched[-1][-1] is (kind == "alone")


# --- nothing changes


def trained(trainer: Any, make: Callable[[], Any], *callbacks: Any, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = make()
    options = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0, **options}
    trainer(*callbacks, **options).fit(
        model, *([] if hasattr(model, "train_dataloader") and make not in OWN else [batches(3)])
    )
    return {**{name: value.clone() for name, value in model.state_dict().items()}, "drawn": torch.get_rng_state()}


def validated(trainer: Any, *callbacks: Any) -> dict[str, Tensor]:
    """As `trained`, with a validation that draws random numbers."""
    torch.manual_seed(1)
    model = Dropped()
    trainer(*callbacks, max_epochs=2).fit(model, batches(3), batches(2))
    return {**{name: value.clone() for name, value in model.state_dict().items()}, "drawn": torch.get_rng_state()}


class Dropped(Faulty):
    """Draws random numbers in what is replayed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


OWN = [Net, Faulty, Dropped, Shapes]


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.filterwarnings("ignore:.*never uses it.*")
@pytest.mark.parametrize("make", OWN)
def test_a_run_is_bit_for_bit_the_same(make: Any, trainer: Any) -> None:
    assert equal(trained(trainer, make), trained(trainer, make, InputAudit(batches=2)))


@pytest.mark.filterwarnings("ignore:.*never uses it.*", "ignore:.*freeze, epoch.*")
@pytest.mark.parametrize("kind", ["alone", "scheduler", "audit"])
def test_a_run_with_validation_is_bit_for_bit_the_same(kind: str, trainer: Any) -> None:
    held = [alternating(audit=False)] if kind == "scheduler" else []
    assert equal(validated(trainer, *held), validated(trainer, auditor(kind)))


def test_the_comparison_can_fail(trainer: Any) -> None:
    class Draws(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            torch.rand(1)

    assert not equal(trained(trainer, Dropped), trained(trainer, Dropped, Draws()))


class Breaks(Faulty):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        super().training_step(batch, batch_idx)
        raise RuntimeError("broken")


class BreaksWithin(Faulty):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.blocks[0].linear(torch.ones(3, 3))
        return torch.zeros(())


@pytest.mark.parametrize("make", [Breaks, BreaksWithin])
def test_an_exception_leaves_nothing_installed_and_a_second_fit_works(make: Any, trainer: Any) -> None:
    audit = InputAudit()
    with pytest.raises(RuntimeError, match="broken|shapes cannot be multiplied"):
        trainer(audit).fit(make(), batches(2))
    assert clean()
    with pytest.warns(UserWarning, match="never uses it"):
        trainer(audit).fit(Faulty(), batches(1))
    assert keys(audit.findings) == FOUND


class Nested(Faulty):
    """Trains another model with a Trainer of its own, in a batch that is watched."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        if batch_idx == 0:
            root = Path(self.trainer.default_root_dir) / "inner"
            from tests.conftest import make_trainer

            make_trainer(root, InputAudit()).fit(Net(), batches(1))
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*never uses it.*")
def test_a_fit_within_a_fit_does_not_clash(trainer: Any) -> None:
    trainer(InputAudit(batches=2)).fit(Nested(), batches(2))
    assert clean()


@pytest.mark.parametrize("place", ["tracer.Thread.conclude", "readers._resolve_names"], ids=["", "in its installation"])
def test_an_error_of_the_audit_s_own_is_said_once_and_the_run_goes_on(
    place: str, trainer: Any, monkeypatch: Any
) -> None:
    plainly = trained(trainer, Faulty)

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("of our own")

    monkeypatch.setattr(f"lightning_freeze.inputs.{place}", broken)
    audit = InputAudit()
    with pytest.warns(
        UserWarning, match=r"stood aside after an error of its own \(ZeroDivisionError: of our own\)"
    ) as said:
        assert equal(trained(trainer, Faulty, audit), plainly)
    assert sum("stood aside" in str(w.message) for w in said) == 1
    assert audit.findings == []


class ReadsOneKey(Net):
    """Is handed the whole batch, of which it reads a key."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(batch).square().mean()


@pytest.mark.parametrize("others", [[], [FreezeAudit(inputs=False)]], ids=["", "beside an audit of weights"])
def test_keys_that_the_model_does_not_read_of_a_batch_stop_no_run(others: Any, trainer: Any, caplog: Any) -> None:
    audit = InputAudit(on_finding="raise")
    with caplog.at_level("INFO"):
        trainer(*others, audit).fit(ReadsOneKey(), DataLoader([{"x": torch.ones(4), "group": torch.ones(1)}]))  # type: ignore[arg-type]
    assert [(f.severity, f.module, f.argument, f.kind) for f in audit.findings] == [
        ("info", "", "batch['group']", "unused")
    ]
    assert all(finding.confirmed for finding in audit.findings)
    assert "stops no run" in caplog.text


def test_an_installation_that_is_interrupted_is_undone(monkeypatch: Any) -> None:
    left = [4]

    def interrupted(self: Readers, notice: Any, original: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return original

    monkeypatch.setattr(Readers, "_noticed", interrupted)
    watch = InputWatch(Faulty())
    with pytest.raises(KeyboardInterrupt):
        watch.begin_batch(0, 0)
    assert "shape" in vars(Tensor)
    watch.end_batch()  # as `on_exception` calls it
    assert clean()


# --- both packages, copies


def test_both_trainers_take_it(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": str(tmp_path)}

    class Unified(unified.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.block(batch[0], mask=torch.ones(4)).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    one, two = InputAudit(), InputAudit()
    with pytest.warns(UserWarning, match="never uses it"):
        unified.Trainer(callbacks=[one], **quiet).fit(Unified(), batches(1))
    with pytest.warns(UserWarning, match="never uses it"):
        pl.Trainer(callbacks=[two], **quiet).fit(Faulty(), batches(1))
    assert keys(one.findings) == {("block", "mask", "unused")}
    assert keys(two.findings) == FOUND


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda audit: pickle.loads(pickle.dumps(audit))])
def test_a_copy_of_the_callback_works(copied: Any, trainer: Any) -> None:
    audit = InputAudit(whitelist={"Block.mask": {"reason": "why", "when": {"training": True}}})
    trainer(audit).fit(Faulty(), batches(1))
    other = copied(audit)
    trainer(other).fit(Faulty(), batches(1))
    assert other.findings == []
    assert other.verdicts == audit.verdicts != {}
    with pytest.warns(UserWarning, match="never uses it"):
        trainer(other).validate(Faulty(), batches(1))
    assert keys(other.findings) == FOUND


# --- records


@pytest.mark.filterwarnings("ignore:.*never uses it.*")
def test_findings_are_recorded(trainer: Any, tmp_path: Path) -> None:
    audit = InputAudit()
    trainer(audit, max_epochs=2).fit(Faulty(), batches(2))
    records = [r for r in read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl") if r["type"] == "finding"]
    assert len(records) == len(audit.findings) == 2
    for record, finding in zip(records, audit.findings, strict=True):
        assert record["version"] == VERSION
        given = {key: value for key, value in record.items() if key not in ("type", "version")}
        expected = {k: list(v) if isinstance(v, tuple) else v for k, v in finding.as_dict().items()}
        assert given == expected
        assert {"module", "module_class", "argument", "confirmed", "calls", "bytes_passed", "source", "epoch"} <= set(
            given
        )


def test_a_run_without_findings_writes_nothing(trainer: Any, tmp_path: Path) -> None:
    trainer(InputAudit()).fit(Net(), batches(1))
    assert list(tmp_path.iterdir()) == []


# --- declarations in a file

GOOD = """
whitelist:
  Block.mask: {reason: only the decoder masks, when: {training: true}}
metadata_inputs: [Block.like]
"""

# name: (file, what the error says)
BAD_FILES: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["empty"]),
    "a list": ("- Block.mask\n", ["must be a mapping", "`whitelist`"]),
    "a misspelt key": ("whitelst: {}\n", ["line 1, whitelst", "Did you mean 'whitelist'?"]),
    "not a reason": ("whitelist:\n  A.x: fine\n  B.y:\n", ["line 3, whitelist.B.y", "is not a reason"]),
    "a misspelt option": (
        "whitelist:\n  A.x: fine\n  B.y:\n    reason: why\n    wen: {a: 1}\n",
        ["line 5, whitelist.B.y.wen", "Did you mean 'when'"],
    ),
    "a bad condition": ("whitelist:\n  B.y:\n    reason: why\n    when: [a]\n", ["line 4, whitelist.B.y.when", "not a mapping"]),
    "no class": ("whitelist:\n  A.x: fine\n  mask: why\n", ["line 3, whitelist.mask", "no `Class.argument`"]),
    "a key twice": ("whitelist:\n  A.x: one\n  A.x: two\n", ["line 3, whitelist.A.x", "duplicate key"]),
    "whitelist is a list": ("whitelist: [A.x]\n", ["line 1, whitelist", "not a mapping"]),
    "metadata is a string": ("metadata_inputs: A.x\n", ["line 1, metadata_inputs", "Write a list"]),
    "metadata without a class": ("metadata_inputs:\n  - A.x\n  - like\n", ["line 3, metadata_inputs[1]", "'like' is no `Class.argument`"]),
    "no YAML": ("whitelist: {A.x: why\n", ["line 2", "not YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_line_and_key(name: str, tmp_path: Path) -> None:
    text, words = BAD_FILES[name]
    file = tmp_path / "known.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        InputAudit(whitelist=str(file))
    assert str(raised.value).startswith(str(file))
    assert str(raised.value).count(str(file)) == 1
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml' does not exist") as raised:
        InputAudit(whitelist="nowhere.yaml")
    assert str(raised.value).endswith(
        "To write it, run `lightning-freeze inputs --config <config without this line> --out nowhere.yaml`."
    )


def test_a_file_covers_what_it_names(trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(GOOD)
    audit = InputAudit(whitelist=str(tmp_path / "known.yaml"), on_finding="raise")
    trainer(audit).fit(Faulty(), batches(1))
    assert audit.findings == []
    trainer(audit).fit(Shapes(), batches(1))
    assert audit.findings == []


def test_a_stale_entry_is_found(trainer: Any) -> None:
    audit = InputAudit(whitelist={"Block.x": "never used, they said"})
    with pytest.warns(UserWarning, match=r"'Block.x' \(never used, they said\) is listed as not used"):
        trainer(audit).fit(Shapes(), batches(1))
    assert {f.kind for f in audit.findings} == {"stale", "metadata"}


class UsedButOnce(Net):
    """Its block is handed a mask that it uses, but for one epoch."""

    without: int | None = None

    class Block(nn.Module):
        use = True

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask if self.use else x

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        self.block.use = self.trainer.current_epoch != self.without
        return super().training_step([self.block(batch[0], torch.ones(4)), batch[1]], batch_idx)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.block(batch[0], torch.ones(4))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.block(batch[0], torch.ones(4))


@pytest.mark.filterwarnings("error:.*is listed as not used.*")
def test_an_entry_is_judged_over_the_whole_run(trainer: Any) -> None:
    audit = InputAudit(on_finding="raise", whitelist={"Block.mask": "later epochs do without"})
    model = UsedButOnce()
    model.without = 1
    trainer(audit, max_epochs=3).fit(model, batches(1))
    assert audit.findings == []


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_a_stale_entry_is_told_once_at_the_run_s_end_and_never_stops_it(
    loop: str, trainer: Any, tmp_path: Path
) -> None:
    ended: list[int] = []

    class Notes(pl.Callback):
        def on_train_epoch_end(self, *args: Any) -> None:
            ended.append(len(audit.findings))

    audit = InputAudit(on_finding="raise", whitelist={"Block.x": "never used, they said"})
    with pytest.warns(UserWarning, match=r"'Block.x' \(never used, they said\) is listed as not used") as warned:
        getattr(trainer(audit, Notes(), max_epochs=3), loop)(UsedButOnce(), batches(1))
    assert sum("Block.x" in str(w.message) for w in warned) == 1
    assert [f.kind for f in audit.findings] == ["stale"]
    assert ended == ([0, 0, 0] if loop == "fit" else [])
    recorded = (
        [r["kind"] for r in read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl")]
        if loop == "fit"
        else ["stale"]
    )
    assert recorded == ["stale"]


@pytest.mark.parametrize("kind", ["scheduler", "audit"])
def test_a_scheduler_tells_a_stale_declaration_once_and_goes_on(kind: str, trainer: Any) -> None:
    class Declares(UsedButOnce.Block):
        metadata_inputs = ("mask",)

    model, audit = UsedButOnce(), auditor(kind)
    model.block = Declares()
    with pytest.warns(UserWarning, match=r"freeze: inputs: declarations that match nothing: Declares.mask") as warned:
        trainer(audit, max_epochs=2).fit(model, batches(1))
    assert sum("declarations that match nothing" in str(w.message) for w in warned) == 1
    assert [f.kind for f in audit.findings if f.audit == "inputs"] == ["stale"]


# --- with the scheduler


def alternating(**options: Any) -> AlternatingFreeze:
    return AlternatingFreeze("layer1", "layer2", every=5, **options)


def test_a_scheduler_gives_one_line_an_epoch(trainer: Any) -> None:
    scheduler, model = alternating(), Faulty()
    with pytest.warns(UserWarning, match=r"freeze, epoch \d: inputs: ") as warned:
        trainer(scheduler, max_epochs=2).fit(model, batches(3))
    lines = [str(w.message) for w in warned if "inputs" in str(w.message) or "never uses" in str(w.message)]
    assert [line[: line.index(": inputs")] for line in lines] == ["freeze, epoch 0", "freeze, epoch 1"]
    assert all("\n" not in line and "Block.mask (unused, 2 modules)" in line for line in lines)
    assert keys(scheduler.findings) == FOUND
    assert model.watched == [True, False, False] * 2


def test_a_finding_about_inputs_never_stops_a_scheduler(trainer: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="inputs: 2"):
        trainer(alternating(on_finding="raise")).fit(Faulty(), batches(2))
    found = [r for r in read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl") if r["type"] == "finding"]
    assert [(r["audit"], r["module"]) for r in found] == [("inputs", "blocks.0"), ("inputs", "blocks.1")]


@pytest.mark.parametrize(
    "callback", [lambda: alternating(audit=False), lambda: alternating(audit=FreezeAudit(inputs=False)), lambda: FreezeAudit(inputs=False)]
)  # fmt: skip
def test_the_audit_of_inputs_can_be_left_out(callback: Any, trainer: Any) -> None:
    made, model = callback(), Faulty()
    trainer(made).fit(model, batches(2))
    assert keys(made.findings) == set()
    assert model.watched == [False, False]


def test_freeze_audit_alone_watches_inputs(trainer: Any) -> None:
    audit = FreezeAudit()
    with pytest.warns(UserWarning, match="inputs: 2"):
        trainer(audit).fit(Faulty(), batches(1))
    assert keys(audit.findings) == FOUND


@pytest.mark.parametrize("first", [True, False])
def test_an_input_audit_takes_over_from_a_scheduler_s(first: bool, trainer: Any) -> None:
    scheduler, audit, model = alternating(), InputAudit(batches=2), Faulty()
    pair = [audit, scheduler] if first else [scheduler, audit]
    with pytest.warns(UserWarning, match="never uses it"):
        trainer(*pair).fit(model, batches(3))
    assert keys(audit.findings) == FOUND
    assert keys(scheduler.findings) == set()
    assert model.watched == [True, True, False]


def test_two_classes_under_one_name_are_two_findings() -> None:
    model = Faulty()
    watch = InputWatch(model)
    news = []
    for block in (Block, type("Other", (Block,), {})):
        model.blocks[0] = block()
        watch.begin_batch(0, 0)
        model(torch.ones(2, 4))
        news.append([(f.module, f.module_class) for f in watch.end_epoch(0)[1]])
    assert news == [[("blocks.0", "Block"), ("blocks.1", "Block")], [("blocks.0", "Other")]]


def test_two_input_audits_are_refused(trainer: Any) -> None:
    with pytest.raises(ScheduleError, match=r"two InputAudit callbacks.*Keep one"):
        trainer(InputAudit(), InputAudit(batches=2)).fit(Net(), batches(1))
    assert clean()


# --- one finding a class


def one(module: str, kind: str = "unused") -> Finding:
    return Finding(
        audit="inputs", kind=kind, severity="warning", message="m.", module=module, module_class="B", argument="x"
    )


def test_one_finding_is_told_for_a_class() -> None:
    assert once_a_class([]) == []
    assert [f.message for f in once_a_class([one("a")])] == ["m."]
    told = once_a_class([*(one(name) for name in "abcdef"), one("g", "dead")])
    assert [f.message for f in told] == ["m. The same in 5 more of its class: 'b', 'c', 'd', ….", "m."]


def test_a_watch_tells_what_is_new() -> None:
    model = Faulty()
    watch = InputWatch(model)
    news = []
    for epoch in range(2):
        watch.begin_batch(epoch, 0)
        model(torch.ones(2, 4))
        findings, fresh = watch.end_epoch(epoch)
        assert keys(findings) == FOUND
        assert {f.epoch for f in findings} == {epoch}
        news.append(keys(fresh))
    assert news == [FOUND, set()]


# --- the switch


def test_both_packages_ask_the_same_entry_point() -> None:
    for group in ("pytorch_lightning.callbacks_factory", "lightning.pytorch.callbacks_factory"):
        (entry,) = [e for e in entry_points(group=group) if e.name == "lightning_freeze"]
        assert entry.load() is switch.callbacks


def test_unset_there_are_no_callbacks(monkeypatch: Any) -> None:
    monkeypatch.delenv("LIGHTNING_FREEZE_AUDIT", raising=False)
    assert switch.callbacks() == []
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "")
    assert switch.callbacks() == []


@pytest.mark.parametrize("value", ["yes", "WARN", "1", "rise"])
def test_a_wrong_value_is_a_clear_error(value: str, monkeypatch: Any, trainer: Any) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", value)
    with pytest.raises(
        ValueError, match=rf"LIGHTNING_FREEZE_AUDIT is '{value}', but must be 'warn' or 'raise'; unset it"
    ):
        trainer()


@pytest.mark.parametrize("package", [pl, unified])
def test_set_every_trainer_is_audited(package: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "warn")
    made = package.Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path))
    assert [type(c).__name__ for c in made.callbacks if type(c).__module__.startswith("lightning_freeze")] == [
        "FreezeAudit",
        "InputAudit",
    ]


def test_warn_warns_and_writes_nothing(monkeypatch: Any, trainer: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "warn")
    with pytest.warns(UserWarning, match=r"`mask` and never uses it"):
        trainer().fit(Faulty(), batches(2))
    assert list(tmp_path.iterdir()) == []


def test_raise_raises_and_says_how_to_go_on(monkeypatch: Any, trainer: Any) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    with pytest.raises(FreezeViolation, match="modules are passed what they never use") as raised:
        trainer().fit(Faulty(), batches(2))
    assert str(raised.value).endswith(
        "To go on all the same, set LIGHTNING_FREEZE_AUDIT=warn, or name a whitelist in LIGHTNING_FREEZE_WHITELIST: "
        "`lightning-freeze inputs --config <yours>` writes the list. More: `lightning-freeze explain unused`."
    )
    trainer().fit(Net(), batches(2))


@pytest.mark.parametrize("model", ["Faulty", "Moves"])
@pytest.mark.parametrize("keeps", [True, False])
def test_the_switch_saves_only_where_the_trainer_keeps_checkpoints(
    keeps: bool, model: str, monkeypatch: Any, trainer: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    with pytest.raises(FreezeViolation) as raised:
        trainer(enable_checkpointing=keeps).fit(globals()[model](), batches(2))
    saved = [path for path in tmp_path.iterdir() if "violation" in path.name]
    assert [str(path) for path in saved] == ([raised.value.checkpoint] if keeps else [])
    assert ("Nothing was saved, since the Trainer keeps no checkpoints." in str(raised.value)) is not keeps
    assert "LIGHTNING_FREEZE_AUDIT=warn" in str(pickle.loads(pickle.dumps(raised.value)))


def test_the_switch_names_the_variable_of_a_whitelist_that_is_not_there(monkeypatch: Any, trainer: Any) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    monkeypatch.setenv("LIGHTNING_FREEZE_WHITELIST", "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"LIGHTNING_FREEZE_WHITELIST is 'nowhere.yaml': the file .* does not exist"):
        trainer()


def test_of_two_switched_audits_one_watches(trainer: Any) -> None:
    pair, model = [InputAudit.create_for("switch"), InputAudit.create_for("switch")], Faulty()
    with pytest.warns(UserWarning, match="never uses it"):
        trainer(*pair).fit(model, batches(1))
    assert [keys(audit.findings) for audit in pair] == [FOUND, set()]


class Moves(Net):
    """Freezes a layer and moves it all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1.requires_grad_(False)

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            self.layer1.weight.add_(1)


def test_the_switch_audits_weights_too(monkeypatch: Any, trainer: Any) -> None:
    trainer().fit(Moves(), batches(2))
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    with pytest.raises(FreezeViolation, match="what was planned frozen moved"):
        trainer().fit(Moves(), batches(2))


def test_the_switch_takes_a_whitelist(monkeypatch: Any, trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(GOOD)
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    monkeypatch.setenv("LIGHTNING_FREEZE_WHITELIST", str(tmp_path / "known.yaml"))
    trainer().fit(Faulty(), batches(2))


@pytest.mark.parametrize("own", [InputAudit, FreezeAudit, alternating])
def test_the_switch_stands_back_where_a_trainer_has_its_own(own: Any, monkeypatch: Any, trainer: Any) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "warn")
    callback, model = own(), Faulty()
    fit = trainer(callback)
    with pytest.warns(UserWarning, match="mask") as warned:
        fit.fit(model, batches(3))
    assert model.watched == [True, False, False]
    assert sum("never uses it" in str(w.message) or "inputs: 2" in str(w.message) for w in warned) == 1
    switched = [
        c for c in fit.callbacks if getattr(c, "created_by", "user") == "switch" and isinstance(c, type(callback))
    ]
    assert [c.findings for c in switched] in ([[]], [])


LOADED = """
import os, sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning, lightning.pytorch
for value in ("", "warn"):
    os.environ["LIGHTNING_FREEZE_AUDIT"] = value
    for package in (pytorch_lightning, lightning.pytorch):
        package.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    print("LOADED", *sorted(name for name in sys.modules if name.startswith("lightning_freeze")))
"""


@pytest.mark.slow
def test_unset_the_switch_loads_nothing_in_either_package() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_FREEZE")}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, check=True)
    unset, on = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("LOADED"))
    assert unset == ["lightning_freeze", "lightning_freeze.trainer", "lightning_freeze.trainer.switch"]
    assert "lightning_freeze.trainer.input_audit" in on


# --- Lightning's own demos and our configurations run unchanged under the switch


class SmallTransformer(pl.LightningModule):
    """Lightning's demo of a language model, small, on numbers instead of a text that would have to be downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=11, ninp=8, nhead=2, nhid=8, nlayers=2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, target = batch
        out = self.model(tokens, target)
        return nn.functional.nll_loss(out, target.view(-1))

    def train_dataloader(self) -> Any:
        made = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 11, (12, 6), generator=made)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens, tokens.roll(1, 1)), batch_size=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SmallLSTM(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from pytorch_lightning.demos.lstm import SimpleLSTM

        self.model = SimpleLSTM(vocab_size=11, ninp=8, nhid=8, nlayers=2)
        self.hidden: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, target = batch
        hidden = self.model.init_hidden(tokens.size(0))
        output, _ = self.model(tokens, hidden)
        return nn.functional.nll_loss(output, target.reshape(-1))

    train_dataloader = SmallTransformer.train_dataloader
    configure_optimizers = SmallTransformer.configure_optimizers


DEMOS: dict[str, Callable[[], Any]] = {
    "boring": BoringModel,
    "manual optimization": ManualOptimBoringModel,
    "transformer": SmallTransformer,
    "LSTM": SmallLSTM,
}


@pytest.mark.filterwarnings("ignore:.*is handed.*", "ignore:.*inputs.*", "ignore:.*no gradient.*", "ignore:.*nested.*")
@pytest.mark.parametrize("mode", ["warn", "raise"])
@pytest.mark.parametrize("name", DEMOS)
def test_lightning_s_demos_run_unchanged(name: str, mode: str, trainer: Any, monkeypatch: Any, tmp_path: Path) -> None:
    plainly = trained(trainer, DEMOS[name])
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", mode)
    assert equal(trained(trainer, DEMOS[name]), plainly)


RUNS = ["alternating.yaml", "phases.yaml", "gan.yaml"]


def configured(config: str, folder: Path, monkeypatch: Any) -> dict[str, Tensor]:
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.chdir(folder)
    main(
        [
            *(
                "fit",
                "--config",
                str(CONFIGS / config),
                "--trainer.max_epochs",
                "1",
                "--trainer.limit_train_batches",
                "6",
            ),
            *("--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
            *("--trainer.default_root_dir", str(folder)),
        ]
    )
    (saved,) = folder.rglob("*.ckpt")
    return dict(torch.load(saved, weights_only=False)["state_dict"])


@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers", "ignore:The number of training batches"
)
@pytest.mark.parametrize("config", RUNS)
def test_our_configurations_run_unchanged(config: str, tmp_path: Path, monkeypatch: Any) -> None:
    plainly = configured(config, tmp_path / "plain", monkeypatch)
    monkeypatch.setenv("LIGHTNING_FREEZE_AUDIT", "raise")
    assert equal(configured(config, tmp_path / "audited", monkeypatch), plainly)
