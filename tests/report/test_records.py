"""The records of a run: written line by line, read back whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_freeze.report import records
from lightning_freeze.report.records import VERSION, Recorder, read_records
from lightning_freeze.report.steps import Steps, runs_of, steps_of

FEW = settings(max_examples=80, deadline=None)
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.frozensets(st.sampled_from(["a", "b", "c/0", "rest"]), min_size=1)), max_size=40
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def encoded(steps: list[tuple[int, frozenset[str]]], first: int = 0) -> dict[str, Any]:
    """A ``phase`` record as JSON brings it back."""
    made = Steps(first)
    for optimizer, groups in steps:
        made.add(optimizer, groups)
    return json.loads(json.dumps({"type": "phase", **made.as_dict()}))


def run(updates_before: int) -> dict[str, Any]:
    return {"type": "run", "updates_before": updates_before}


# --- steps -----------------------------------------------------------------------------------------------------------


def test_runs_of_equal_steps_are_one_entry() -> None:
    slow, fast = frozenset({"slow", "fast"}), frozenset({"fast"})
    assert encoded([(0, slow), (0, fast), (0, fast), (0, slow), (1, slow)], first=7) == {
        "type": "phase",
        "first": 7,
        "sets": [["fast", "slow"], ["fast"]],
        "planned": [None, None],
        "places": ["", ""],
        "lr_factors": [{}, {}],
        "steps": [[0, 0, 1], [0, 1, 2], [0, 0, 1], [1, 0, 1]],
    }


@FEW
@given(STEPS)
def test_steps_come_back_as_they_were(steps: list[tuple[int, frozenset[str]]]) -> None:
    assert steps_of([encoded(steps)]) == steps


@FEW
@given(STEPS)
def test_no_two_adjacent_runs_are_the_same(steps: list[tuple[int, frozenset[str]]]) -> None:
    assert runs_of([encoded(steps)]).number == len(list(groupby(steps)))


@FEW
@given(STEPS, STEPS, st.integers(0, 9))
def test_steps_go_on_after_they_were_saved(before: list[Any], after: list[Any], first: int) -> None:
    straight, saved = Steps(first), Steps(first)
    for step in before:
        straight.add(*step)
        saved.add(*step)
    resumed = Steps.from_dict(json.loads(json.dumps(saved.as_dict())))
    for step in after:
        straight.add(*step)
        resumed.add(*step)
    assert steps_of([resumed.record(0)]) == steps_of([straight.record(0)]) == before + after


def test_saved_steps_share_nothing_with_the_ones_that_go_on() -> None:
    steps = Steps()
    steps.add(0, frozenset({"a"}))
    saved = steps.as_dict()
    steps.add(0, frozenset({"a"}))
    assert saved["steps"] == [[0, 0, 1]]


A, B = (0, frozenset({"a"})), (0, frozenset({"b"}))


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([run(0), encoded([A, A]), encoded([B], first=2)], [A, A, B]),
        # Resumed from the end of the first epoch, the second is done again.
        ([run(0), encoded([A, A]), encoded([A, A], first=2), run(2), encoded([B], first=2)], [A, A, B]),
        # Resumed within the second epoch, of which the killed run recorded nothing.
        ([run(0), encoded([A, A]), run(3), encoded([A, B], first=2)], [A, A, A, B]),
        # Resumed within the first epoch, from a checkpoint that was made within it.
        ([run(0), encoded([A, A, A]), run(2), encoded([A, A, B, B])], [A, A, B, B]),
        # Begun anew in the same folder.
        ([run(0), encoded([A, A]), run(0), encoded([B])], [B]),
        ([run(0), {"type": "finding"}, encoded([A]), {"type": "counts"}], [A]),
        ([run(0), encoded([A, A]), run(1)], [A]),
        # The file begins with a run that goes on from one in another.
        ([run(40), encoded([A, A, A], first=40), run(42), encoded([B], first=42)], [A, A, B]),
        # Nothing is known of what came before the second phase, and the third goes back into it.
        ([run(0), encoded([A]), encoded([B, B], first=5), run(6), encoded([A], first=6)], [A, B, A]),
        ([], []),
    ],
    ids=["straight", "epoch", "unrecorded", "within", "anew", "others", "cut", "later", "gap", "empty"],
)
def test_what_a_resumed_run_did_again_stands_once(records: list[Any], expected: list[Any]) -> None:
    assert steps_of(records) == expected


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_folder_is_made_at_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "audit.jsonl"
    recorder = Recorder(path)
    assert not path.parent.exists()
    recorder({"type": "run"})
    assert [*read_records(path)] == [{"version": VERSION, "type": "run"}]


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "audit.jsonl")
    for number in range(3):
        recorder({"n": number})
        assert len([*read_records(recorder.path)]) == number + 1


def test_a_second_recorder_appends(tmp_path: Path) -> None:
    for number in range(2):
        Recorder(tmp_path / "audit.jsonl")({"n": number})
    assert [record["n"] for record in read_records(tmp_path / "audit.jsonl")] == [0, 1]


def test_a_full_disk_is_warned_of_once_and_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "audit.jsonl")
    recorder({"n": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.warns(UserWarning, match=r"no longer written to .*audit.jsonl: .*No space left.*The run goes on"):
            recorder({"n": 1})
    recorder({"n": 2})  # not a record after one that is missing
    assert [record["n"] for record in read_records(recorder.path)] == [0]


@FEW
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_any_text_comes_back(messages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "audit.jsonl")
        for message in messages:
            recorder({"message": message})
        assert [record["message"] for record in read_records(recorder.path)] == messages


LINES = ['{"version": 1, "type": "run"}', '{"version": 1, "message": "größer … 層"}']


def cuts() -> Iterator[bytes]:
    """A file cut off at each byte of its second record."""
    first, second = (line.encode() + b"\n" for line in LINES)
    yield from (first + second[:end] for end in range(1, len(second) - 1))


@pytest.mark.parametrize("cut", [*cuts()])
def test_an_unfinished_last_line_is_passed_over(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(cut)
    assert [*read_records(path)] == [json.loads(LINES[0])]


@pytest.mark.parametrize("cut", [b"", *cuts()])
def test_a_resumed_run_replaces_the_unfinished_line(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(cut)
    recorder = Recorder(path)
    recorder({"n": 1})
    recorder({"n": 2})
    whole = [json.loads(LINES[0])] if cut else []
    assert [*read_records(path)] == [*whole, {"version": VERSION, "n": 1}, {"version": VERSION, "n": 2}]


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    assert [*read_records(path)] == [json.loads(line) for line in LINES]


@pytest.mark.parametrize("broken", ['{"version": 1, "ty', "", "[1]", "3", "nonsense"])
def test_a_broken_line_before_the_last_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(f"{LINES[0]}\n{broken}\n{LINES[1]}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON record") as caught:
        [*read_records(path)]
    assert str(caught.value).startswith(f"{path}, line 2: no JSON record")
    assert str(caught.value).endswith("Was the file edited?")


def _others(path: Path) -> dict[str, Any]:
    """What may be in the place of a file of records, and how it is made there."""
    other = path.with_name("notes.txt")
    other.write_text("first line\nlast line, without an end")
    return {
        "a link": lambda: path.symlink_to(other),
        "a link to a device": lambda: path.symlink_to("/dev/null"),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a folder": path.mkdir,
        "a device": lambda: os.mkfifo(path),
        "a file of something else": lambda: path.write_text('{"name": "a configuration"}\n{'),
    }


@pytest.mark.parametrize(
    "kind", ["a link", "a link to a device", "a link to nothing", "a folder", "a device", "a file of something else"]
)
def test_only_regular_files_of_records_are_written_and_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "freeze_audit.jsonl"
    begun = Recorder(path)
    _others(path)[kind]()
    before = path.lstat()
    for use in (Recorder, lambda path: [*read_records(path)]):
        with pytest.raises(ValueError, match="regular files of their own alone") as caught:
            use(path)
        assert str(caught.value).startswith(
            f"{path} is {kind.removesuffix(' to a device').removesuffix(' to nothing')}: "
        )
    with pytest.warns(UserWarning, match="no longer written .* regular files of their own alone.* The run goes on"):
        begun({"n": 1})
    begun({"n": 2})  # warned of once
    assert path.lstat() == before
    assert (tmp_path / "notes.txt").read_text().endswith("last line, without an end")


@pytest.mark.parametrize("text", ["", "{", '{"version": ', LINES[0] + "\n" + LINES[1][:9], *LINES])
def test_a_file_cut_off_anywhere_is_a_file_of_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(text, encoding="utf-8")
    Recorder(path)({"n": 1})
    assert [*read_records(path)][-1] == {"version": VERSION, "n": 1}


def test_a_disk_that_is_full_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "audit.jsonl")
    monkeypatch.setattr(records, "_whole_lines", full)
    with pytest.warns(
        UserWarning, match=r"no longer written to .*audit.jsonl: .*No space left on device\. The run goes on"
    ):
        recorder({"n": 1})
    recorder({"n": 2})


@pytest.mark.parametrize("tail", ["", "{", "x" * 40])
def test_the_last_line_is_found_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str) -> None:
    monkeypatch.setattr(records, "_BLOCK", 16)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"x" * 1000 + b"\n" + tail.encode())

    class Counting:
        """A file that counts what is read of it."""

        def __init__(self, file: Any) -> None:
            self.file, self.seek, self.bytes = file, file.seek, 0

        def read(self, size: int) -> bytes:
            self.bytes += size
            return bytes(self.file.read(size))

    with path.open("rb") as file:
        counting = Counting(file)
        assert records._whole_lines(counting) == 1001  # type: ignore[arg-type]
        assert counting.bytes <= len(tail) + 16


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(f'{LINES[0]}\n{{"version": {VERSION + 1}}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="version") as caught:
        [*read_records(path)]
    assert str(caught.value) == (
        f"{path}, line 2: a record of version {VERSION + 1}; this release reads up to {VERSION}. Update "
        f"lightning-freeze."
    )


WRITES = "import sys; from lightning_freeze.report.records import *; r = Recorder(Path(sys.argv[1]))\n"
WRITES += "r({}); print(flush=True); input(); [r({'text': 300 * 'x'}) for _ in range(300)]"


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Each repairs the file before its first record, and never again: what looks unfinished may be another's line."""
    command = [sys.executable, "-c", WRITES, str(tmp_path / "audit.jsonl")]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        writer.communicate(b"\n", timeout=60)
    assert len([*read_records(tmp_path / "audit.jsonl")]) == 602


def test_what_json_has_not_is_read_as_nothing(tmp_path: Path) -> None:
    """A page's script could not read it: a learning rate may be NaN or infinite."""
    Recorder(tmp_path / "audit.jsonl")({"lr": {"a": float("nan"), "b": float("-inf"), "c": 0.5}})
    assert [*read_records(tmp_path / "audit.jsonl")] == [{"version": VERSION, "lr": {"a": None, "b": None, "c": 0.5}}]
