"""A run is read back from its records: the one that is asked for, with those that it goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from lightning_freeze import AlternatingFreeze, read_report
from lightning_freeze.report.page import page_data
from lightning_freeze.report.steps import runs_of
from tests.conftest import Net, batches


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"version": 2, **record}) + "\n" for record in records), encoding="utf-8")
    return path


def run(name: str, resumes: str | None = None, before: int = 0) -> dict[str, Any]:
    groups = {"a": {"parameters": 1, "elements": 3, "bytes": 12}}
    resumed = resumes is not None
    return {
        "type": "run",
        "run": name,
        "resumes": resumes,
        "groups": groups,
        "updates_before": before,
        "resumed": resumed,
    }


def counts(name: str, total: int, intervals: int = 0) -> dict[str, Any]:
    return {"type": "counts", "run": name, "epoch": 0, "updates": {"a": total}, "total": total, "intervals": intervals}


def phase(name: str, first: int, count: int) -> dict[str, Any]:
    return {"type": "phase", "run": name, "epoch": 0, "first": first, "sets": [["a"]], "steps": [[0, 0, count]]}


def finding(name: str, severity: str = "error") -> dict[str, Any]:
    kind = {"audit": "frozen", "kind": "value", "severity": severity, "message": "moved", "epoch": 0}
    return {"type": "finding", "run": name, **kind}


def test_runs_in_a_file_are_kept_apart_and_resumed_ones_belong_together(tmp_path: Path) -> None:
    file = written(
        tmp_path / "freeze_audit.jsonl",
        run("aa11"),
        phase("aa11", 0, 4),
        run("bb22"),  # another process, which writes at the same time
        counts("aa11", 4, 2),
        phase("bb22", 0, 9),
        counts("bb22", 9),
        finding("bb22"),
        run("cc33", resumes="aa11", before=3),
        phase("cc33", 3, 2),
        counts("cc33", 5, 1),
    )
    last = read_report(file)
    assert [each["run"] for each in last.runs] == ["aa11", "cc33"]
    assert (last.total, last.updates, last.intervals, last.findings) == (5, {"a": 5}, 3, [])
    assert sum(count for _, count in last.steps) == 5
    assert last.verdict == "3 of 3 frozen intervals held, bit for bit"
    other = read_report(tmp_path, run="bb")
    assert other.run["run"] == "bb22"
    assert other.verdict == "1 violation: what was planned frozen moved"
    assert [each.kind for each in other.violations] == ["value"]


def test_a_file_of_the_first_version_has_runs_by_their_order(tmp_path: Path) -> None:
    former = [
        {k: v for k, v in each.items() if k not in ("run", "resumes")} for each in (run("", None), run("", "x", 2))
    ]
    plain = [{k: v for k, v in phase("", 0, 2).items() if k != "run"}, {**phase("", 2, 1), "run": None}]
    file = written(tmp_path / "freeze_audit.jsonl", former[0], plain[0], former[1], plain[1])
    report = read_report(file)
    assert [each["run"] for each in report.runs] == ["1", "2"]
    assert sum(count for _, count in report.steps) == 3


@pytest.mark.parametrize(
    ("given", "chosen", "message"),
    [
        ("", "zz", r"'zz' is not one of the runs in .*: aa11, ab22\."),
        ("", "a", r"'a' is the beginning of several of the runs in .*: aa11, ab22\."),
        ("nothing", None, r"there is no freeze_audit.jsonl below .*nothing\. A fit writes it"),
        ("freeze_audit.json", None, r"does not exist\. Did you mean '.*freeze_audit\.jsonl'\? Give the folder"),
        ("inputs.jsonl", None, r"inputs\.jsonl holds no run\. A fit with a FreezeScheduler"),
    ],
)
def test_what_cannot_be_read_is_refused(given: str, chosen: str | None, message: str, tmp_path: Path) -> None:
    written(tmp_path / "freeze_audit.jsonl", run("aa11"), run("ab22"))
    written(tmp_path / "inputs.jsonl", {"type": "finding"})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path / given, chosen)


def test_a_wrong_path_searches_no_whole_disk(tmp_path: Path) -> None:
    written(tmp_path / "logs" / "version_0" / "freeze_audit.jsonl", run("aa"))
    written(tmp_path / "deep" / "a" / "b" / "c" / "freeze_audit.jsonl", run("aa"))
    with pytest.raises(ValueError, match=r"Did you mean '.*logs/version_0/freeze_audit\.jsonl'"):
        read_report(tmp_path / "logs" / "version_1" / "freeze_audit.jsonl")
    with pytest.raises(ValueError, match=r"does not exist\. Give"):
        read_report(tmp_path / "deep" / "freeze_audit.jsonl")


@pytest.mark.parametrize(
    "damaged",
    [
        {**run("aa11"), "groups": ["a"]},
        {"type": "run", "run": "aa11", "updates_before": 0},
        {**run("aa11"), "resumes": []},
        {**phase("aa11", 0, 4), "steps": [[0, 1, 4]]},
        {**phase("aa11", 0, 4), "steps": [4]},
        {**phase("aa11", 0, 4), "places": ["a", "b"]},
        {"type": "phase", "run": "aa11", "first": 0},
        {"type": "counts", "run": "aa11"},
        {"type": "finding", "run": "aa11", "audit": "frozen"},
        {**finding("aa11"), "unknown": 1},
    ],
)
def test_damaged_records_are_refused_with_their_file(damaged: dict[str, Any], tmp_path: Path) -> None:
    first = [] if damaged["type"] == "run" else [run("aa11")]
    file = written(tmp_path / "freeze_audit.jsonl", *first, damaged)
    with pytest.raises(
        ValueError, match=r"freeze_audit\.jsonl: the records of run aa11 are not as a run writes them \("
    ):
        read_report(file)


def test_the_newest_file_below_a_folder_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(("newer", "older")):
        file = written(tmp_path / name / "freeze_audit.jsonl", run(name))
        os.utime(file, (0, 100 - number))
    assert read_report(tmp_path).run["run"] == "newer"


def test_a_fit_and_the_one_that_resumes_it_are_one_report(trainer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    fit = trainer(AlternatingFreeze("layer1", "layer2", every=2))
    fit.fit(Net(), batches(3))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    trainer(AlternatingFreeze("layer1", "layer2", every=2), max_epochs=2).fit(
        Net(), batches(3), ckpt_path=tmp_path / "a.ckpt"
    )
    report = read_report(tmp_path)
    first, second = report.runs
    assert second["resumes"] == first["run"]
    assert sum(count for _, count in report.steps) == report.total
    assert (report.total, report.updates) == (6, {"slow": 3, "fast": 6})
    run = report.run
    assert run["model"] == "Net"
    assert run["versions"].keys() == {"lightning_freeze", "torch", "lightning", "python"}
    assert run["versions"]["lightning"].startswith("pytorch_lightning 2.")
    assert (run["strategy"], run["precision"], run["processes"]) == ("SingleDeviceStrategy", "32-true", 1)
    assert (run["seed"], run["device"], run["optimizer_state"], run["frozen_modules"]) == (7, "cpu", "keep", "train")
    assert run["skip_backward"] == {"asked": "auto", "skips": True, "why": run["skip_backward"]["why"]}
    optimizer = run["optimizers"][0]
    assert optimizer["groups"] == ["slow", "fast"]
    assert (optimizer["skips_none"], optimizer["excludes"], optimizer["step_counters"]) == (True, False, [])


def test_a_second_fit_of_a_trainer_is_one_report_with_the_first(trainer: Any, tmp_path: Path) -> None:
    model, fit = Net(), trainer(AlternatingFreeze("layer1", "layer2", every=2), max_epochs=1)
    fit.fit(model, batches(3))
    fit.fit_loop.max_epochs = 2
    fit.fit(model, batches(3))
    report = read_report(tmp_path)
    assert [each["updates_before"] for each in report.runs] == [0, 3]
    assert sum(count for _, count in report.steps) == report.total == 6


WHOLE = (run("aa"), phase("aa", 0, 3), counts("aa", 3, 1), finding("aa"))
DAMAGED: dict[str, Any] = {
    "version": {"version": "2"},
    "set": {"steps": [[0, 1, 3]]},
    "step": {"steps": [[0, 0]]},
    "count": {"steps": [[0, 0, "3"]]},
    "planned": {"planned": [None, None]},
    "intervals": {"intervals": None},
    **{key: key for key in ("groups", "updates_before", "first", "sets", "total", "severity")},
    "type": "type",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_records_that_are_not_whole_are_refused(damage: Any, tmp_path: Path) -> None:
    """By a message with the file's name, not by whatever Python says of it somewhere."""
    if isinstance(damage, str):
        records = [{k: v for k, v in each.items() if k != damage} for each in WHOLE]
    else:
        records = [each | damage if damage.keys() & {"version", *each, "planned"} else each for each in WHOLE]
    file = written(tmp_path / "freeze_audit.jsonl", *records)
    with pytest.raises(ValueError, match="not as a run writes them|no JSON record|holds no run") as caught:
        read_report(file)
    assert str(caught.value).startswith(str(file))


def test_a_second_fit_of_a_trainer_goes_on_in_the_same_report(trainer: Any, tmp_path: Path) -> None:
    fit, net = trainer(AlternatingFreeze("layer1", "layer2", every=2)), Net()
    fit.fit(net, batches(3))
    fit.fit_loop.max_epochs = 2
    fit.fit(net, batches(3))
    report = read_report(tmp_path)
    assert [each["resumes"] for each in report.runs] == [None, report.runs[0]["run"]]
    assert sum(count for _, count in report.steps) == report.total == 6


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_time_of_a_step_is_of_those_that_a_run_made_itself(trainer: Any, tmp_path: Path) -> None:
    class Ends(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            if trainer.global_step == 4:
                raise KeyError("planned")

    with pytest.raises(KeyError, match="planned"):
        trainer(AlternatingFreeze("layer1", "layer2", every=2), Ends()).fit(Net(), batches(6))
    fit = trainer(AlternatingFreeze("layer1", "layer2", every=2))
    fit.fit(Net(), batches(6), ckpt_path=tmp_path / "a.ckpt")
    report = read_report(tmp_path)
    first, second = report.counts
    assert runs_of([report.phases[1]]).length == 6
    assert first["step_seconds"] == pytest.approx(first["seconds"] / 4, rel=1e-3)
    assert second["step_seconds"] == pytest.approx(second["seconds"] / 2, rel=1e-3)
    assert sum(steps for _, steps, _ in page_data(report)["seconds"]) == 6
