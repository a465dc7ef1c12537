"""The page in Chromium, where that, node, playwright-core and axe-core are there (the latter two in NODE_PATH)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_freeze import read_report
from tests.report.made_runs import RUNS, write, write_metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = Path(__file__).with_name("browser.mjs")


def missing() -> str:
    """What is not there."""
    if CHROMIUM is None or shutil.which("node") is None:
        return "chromium and node"
    find = "for (const name of ['playwright-core', 'axe-core']) require.resolve(name)"
    return "playwright-core and axe-core in NODE_PATH" * bool(
        subprocess.run(["node", "-e", find], capture_output=True).returncode
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("missing()", reason="needs chromium, node, playwright-core and axe-core"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the browser saw of each run's page."""
    folder, pages = tmp_path_factory.mktemp("pages"), []
    for name in RUNS:
        path = write(name, folder)
        if name == "small":
            write_metrics(path.parent)
        pages.append(folder / f"{name}.html")
        read_report(path).to_html(pages[-1])
    command = ["node", str(DRIVER), "check", str(CHROMIUM), *map(str, pages)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout.splitlines()
    return {Path(each["file"]).stem: each for each in map(json.loads, lines)}


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_wrong_with_it(name: str, seen: Mapping[str, Any]) -> None:
    """No message on the console, so none about its policy; no request; nothing that axe finds; no wider than a phone."""
    assert seen[name]["problems"] == []
    assert seen[name]["violations"] == []
    assert seen[name]["width"] == 360


def test_200_groups_and_10_000_updates_are_drawn_within_a_second(seen: Mapping[str, Any]) -> None:
    """Some 0.4 s on two cores; a page that drew each cell would take many."""
    assert 0 < seen["large"]["drawn"] < 3000


SECTIONS = {
    "small": "timeline groups savings rates optimizers schedule run",
    "violations": "timeline groups findings savings rates inputs buffers optimizers schedule run",
    "audit_alone": "timeline groups savings rates optimizers run",
    "not_yet": "groups optimizers schedule run",
}


@pytest.mark.parametrize(("name", "sections"), SECTIONS.items(), ids=SECTIONS)
def test_sections_without_data_are_left_out(name: str, sections: str, seen: Mapping[str, Any]) -> None:
    assert seen[name]["sections"] == sections.split()


def test_it_is_read_by_pointer_and_by_keyboard(seen: Mapping[str, Any]) -> None:
    small, large = seen["small"]["seen"], seen["large"]["seen"]
    for each in (small, large):
        assert (each["zoomed"], each["reset"], each["wheel"]) == (True, True, True)
    assert seen["violations"]["seen"]["copy"] in ("Copied", "Selected")
    assert small["hover"] == "bodyupdated as plannedupdate 29, epoch 2, phase 3"
    assert small["right"] == "body: frozen. update 2, epoch 0, phase 1"
    assert small["down"] == "head: updated as planned. update 2, epoch 0, phase 1"
    assert small["end"] == "head: updated as planned. update 36, epoch 2, phase 3"
    assert small["plus"] == "Showing updates 18 to 36 of 36."
    assert large["enter"] == "layers: unfolded, 198 groups"
    assert "phases in turn" in large["hover"]


WORDS = {
    "small": ["18 of 18 frozen intervals held, bit for bit", "67% of the parameters", "36 in 3 epochs", "train_loss"],
    "violations": [
        "2 violations: what was planned frozen moved",
        "Neither a gradient nor its optimizer moved it, so something else wrote to it",
        "Let it leave frozen parameters alone, or do it where the group trains.",
        "lightning-freeze explain optimizer_state",
        "To hold them, set frozen_modules: eval.",
        "it turns None into zeros",
    ],
    "audit_alone": ["Time beside training everything was not measured: no step trained everything."],
    "untrusted": ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<b>Net</b>"],
    "resumed": ["16 in 2 epochs", "aaaaaaaaaaaa"],
}


@pytest.mark.parametrize(("name", "words"), WORDS.items(), ids=WORDS)
def test_it_says(name: str, words: list[str], seen: Mapping[str, Any]) -> None:
    assert [each for each in words if each not in seen[name]["text"]] == []
