from __future__ import annotations

import importlib
import io
import json

import pytest
from rich.console import Console

from tests.benchmarks.__main__ import PAGE, RATIOS, main, ratios_page, ratios_table, where_measured
from tests.benchmarks.ratios import Ratio


def test_each_benchmark_can_be_called_alike():
    for name in RATIOS:
        code = importlib.import_module(f"tests.benchmarks.{name}").measure.__code__
        assert code.co_varnames[: code.co_argcount] == ("device", "rounds", "quick"), name


def test_the_table_says_what_was_met():
    rows = [
        Ratio("step of [ours]", "theirs", [0.9, 1.0, 1.2], 1.03, note="pip install -e '.[peers]'", stretch=0.95),
        Ratio("rate", "sum", [0.4], 0.5, "at least"),
        Ratio("missing", "peer", [], 1.0),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ratios_table(rows, where_measured("cpu")))
    text = console.export_text()
    for said in (
        "step of [ours]",
        "≤ 1.03 (0.95)",
        "1.000",
        "0.950–1.100",
        "yes (NO)",
        "'.[peers]'",
        "≥ 0.5",
        "NO",
        "–",
    ):
        assert said in text, said


def test_the_page_has_a_row_for_each_ratio():
    rows = [Ratio("rate", "sum", [0.4, 0.6, 0.5], 0.5, "at least", "a note"), Ratio("missing", "peer", [])]
    lines = ratios_page(rows, where_measured("cpu"), 3).splitlines()
    assert "| rate | sum | ≥ 0.5 | 0.500 | 0.450–0.550 | yes | a note |" in lines
    assert "| missing | peer |  | – |  |  |  |" in lines
    assert PAGE.read_text(encoding="utf-8").splitlines()[:3] == lines[:3]


def test_chosen_benchmarks_are_written_as_json(tmp_path, capsys):
    file = tmp_path / "folder" / "numbers.json"
    main(["offload", "training", "--quick", "--rounds", "1", "--device", "cpu", "--out", str(file)])
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [row["of"] for row in written["ratios"]] == ["offload"] * 2 + ["training"] * 8
    assert (written["quick"], written["rounds"]) == (True, 1)
    assert (written["machine"]["threads"], written["machine"]["gpu"]) == (1, None)
    assert f"numbers: {file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["trainings"], "there is no benchmark 'trainings'"),
        (["training", "inputs"], "'inputs' has tables of its own. Run it alone."),
        (["--rounds", "0"], "--rounds is 0. Give at least 1."),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, error, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--device", "cpu"])
    assert error in capsys.readouterr().err
