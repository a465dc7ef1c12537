"""`lightning-freeze report`: a run in the terminal, as a page, as a picture; and what each mistake is answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_freeze.cli.main import main
from tests.report.made_runs import write


def test_it_prints_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("violations", tmp_path)
    main(["report", str(tmp_path)])
    said = capsys.readouterr().out
    assert "16 updates in 2 epochs" in said
    assert "- [error] 'body.weight' (group 'body', frozen) moved" in said
    assert max(map(len, said.splitlines())) > 100  # nothing is cut


def test_it_writes_a_page_and_a_picture_of_the_run_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("resumed", tmp_path)
    page, picture = tmp_path / "new" / "a.html", tmp_path / "a.png"
    main(["report", str(path), "--html", str(page), "--png", str(picture), "--run", "bb"])
    assert capsys.readouterr().out == f"The page is in {page}.\nThe picture is in {picture}.\n"
    assert "<title>Other: " in page.read_text(encoding="utf-8")
    assert picture.stat().st_size > 1000


WRONG = {
    "no path": ([], "arguments are required: path"),
    "not there": (["{}/smal/freeze_audit.jsonl"], "does not exist. Did you mean '{}/small/freeze_audit.jsonl'"),
    "empty folder": (["{}/empty"], "there is no freeze_audit.jsonl below {}/empty"),
    "run": (["{}/resumed", "--run", "zz"], "'zz' is not one of the runs in {}/resumed/freeze_audit.jsonl: aaaaaaaaaaaa, bb"),
    "page": (["{}/small", "--html", "a.htm"], "--html is 'a.htm', but must end in .html. Did you mean a.html?"),
    "picture": (["{}/small", "--png", "a.gif"], "--png is 'a.gif', but must end in .png, .svg or .pdf. Did you mean a.png?"),
    "no update": (["{}/not_yet", "--png", "{}/a.png"], "has no update to draw"),
    "no records": (["{}/other.txt"], "is a file of something else"),
    "option": (["{}/small", "--htm", "a.html"], "--htm"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error"), WRONG.values(), ids=WRONG)
def test_errors_teach(arguments: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("small", "resumed", "not_yet"):
        write(name, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.txt").write_text("something else\n")
    with pytest.raises(SystemExit) as ended:
        main(["report", *(each.format(tmp_path) for each in arguments)])
    assert ended.value.code == 2
    assert error.format(tmp_path) in capsys.readouterr().err


def test_it_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    write("small", tmp_path)
    program = (
        "import sys; from lightning_freeze.cli.main import main; main(['report', sys.argv[1], '--html', sys.argv[2]]); "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "a.html")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"rich", "yaml"} <= set(loaded)
    assert not {"torch", "pytorch_lightning", "lightning", "matplotlib"} & set(loaded)
