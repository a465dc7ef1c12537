"""The page of a run: one file, nothing from elsewhere, and the data that its script draws."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_freeze import read_report
from lightning_freeze.report.page import html_page, page_data
from tests.report.made_runs import RUNS, UNUSED, write, write_metrics


class Parts(HTMLParser):
    """The tags of a page with what is in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        tag, attributes, before = self.tags[-1] if self.tags else ("", {}, "")
        self.tags[-1:] = [(tag, attributes, before + data)]

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.tags if name == tag]


@pytest.fixture(params=[name for name in RUNS if name != "large"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return html_page(read_report(write(request.param, tmp_path)))


def data_in(page: str) -> dict[str, Any]:
    (text,) = [text for attributes, text in Parts(page).all("script") if attributes.get("id") == "data"]
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_policy_allows_what_is_in_it_and_nothing_else(page: str) -> None:
    parts = Parts(page)
    (policy,) = [
        each["content"] for each, _ in parts.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = {
        kind: "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
        for kind in ("style", "script")
        for attributes, text in parts.all(kind)
        if not attributes
    }
    assert policy == (
        f"default-src 'none'; script-src '{digest['script']}'; style-src '{digest['style']}'; img-src data:"
    )
    assert len(parts.all("style")) == 1
    assert [each.get("type") for each, _ in parts.all("script")] == ["application/json", None]


def test_it_refers_to_nothing_else(page: str) -> None:
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"']*", page) == []
    attributes = {name for _, each, _ in Parts(page).tags for name in each}
    assert not attributes & {"src", "href", "style", "onclick", "onload"}
    assert not re.search(r"@import|url\((?!#)|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", page)


def test_names_end_no_script(tmp_path: Path) -> None:
    page = html_page(read_report(write("untrusted", tmp_path)))
    assert [tag for tag, _, _ in Parts(page).tags if tag in ("img", "b")] == []
    assert "<b>" not in page
    assert next(iter(data_in(page)["run"]["groups"])) == "</script><script>alert(1)</script>"


SECTIONS = {
    "small": {"timeline", "rates", "seconds", "schedule", "state_bytes", "intervals"},
    "violations": {"timeline", "rates", "seconds", "schedule", "state_bytes", "intervals", "findings"},
    "audit_alone": {"timeline", "rates", "seconds", "state_bytes", "intervals"},
    "resumed": {"timeline", "rates", "seconds", "schedule", "state_bytes", "intervals", "resumes"},
    "not_yet": {"schedule"},
}


@pytest.mark.parametrize(("name", "sections"), SECTIONS.items(), ids=SECTIONS)
def test_what_there_is_nothing_of_is_left_out(name: str, sections: set[str], tmp_path: Path) -> None:
    data = page_data(read_report(write(name, tmp_path)))
    assert data.keys() == sections | {"title", "verdict", "path", "run", "sizes"}


def sets_of(timeline: dict[str, Any], which: int) -> list[frozenset[str]]:
    """The oracle: the timeline spelt out, a set an update."""
    names = timeline["groups"]
    sets = [frozenset(n for i, n in enumerate(names) if int(each, 16) >> i & 1) for each in timeline["sets"]]
    runs = zip(timeline["runs"][::2], timeline["runs"][1::2], strict=True)
    return [sets[timeline["kinds"][kind][which]] for kind, count in runs for _ in range(count)]


@pytest.mark.parametrize("name", ["small", "violations", "resumed", "untrusted"])
def test_the_timeline_is_the_steps(name: str, tmp_path: Path) -> None:
    report = read_report(write(name, tmp_path))
    timeline = data_in(html_page(report))["timeline"]
    steps = [step for step, count in report.steps for _ in range(count)]
    assert sets_of(timeline, 1) == [step.updated for step in steps]
    assert sets_of(timeline, 2) == [step.planned for step in steps]
    assert timeline["total"] == len(steps)
    begins = [[epoch, [step.epoch for step in steps].index(epoch)] for epoch in sorted({step.epoch for step in steps})]
    assert timeline["epochs"] == begins
    kinds = [timeline["kinds"][kind] for kind in timeline["runs"][::2]]
    assert [timeline["places"][kind[3]] for kind in kinds] == [step.place for step, _ in report.steps]


def test_updates_that_were_planned_and_not_made_differ(tmp_path: Path) -> None:
    timeline = data_in(html_page(read_report(write("violations", tmp_path))))["timeline"]
    pairs = zip(sets_of(timeline, 1), sets_of(timeline, 2), strict=True)
    assert [update for update, (updated, planned) in enumerate(pairs) if updated != planned] == [8, 9, 10, 11]


def test_metrics_lie_beside(tmp_path: Path) -> None:
    path = write("small", tmp_path)
    write_metrics(path.parent)
    metrics = data_in(html_page(read_report(path)))["metrics"]
    assert list(metrics) == ["train_loss", "word", "val_accuracy", "val_loss"]
    assert metrics["val_accuracy"] == [["0", "11", "0.3"], ["1", "23", "0.5"], ["2", "35", "0.7"]]
    assert len(metrics["train_loss"]) == 37


def test_metrics_may_be_anything(tmp_path: Path) -> None:
    """The script leaves out what is no number."""
    path = write("small", tmp_path)
    path.with_name("metrics.csv").write_text("epoch,step,a,b\n0,1,nan,word,more\n,2,0.5\n", encoding="utf-8")
    metrics = data_in(html_page(read_report(path)))["metrics"]
    assert metrics == {"a": [["0", "1", "nan"], ["", "2", "0.5"]], "b": [["0", "1", "word"]]}
    damaged = b"epoch,step,a\n0,1,\xff\n0,2," + b"9" * 200_000 + b"\n0,3,1\n"  # a field longer than Python's csv reads
    path.with_name("metrics.csv").write_bytes(damaged)
    assert data_in(html_page(read_report(path)))["metrics"] == {"a": [["0", "1", "\ufffd"]]}


def test_findings_are_whole(tmp_path: Path) -> None:
    findings = data_in(html_page(read_report(write("violations", tmp_path))))["findings"]
    assert UNUSED in findings
    assert sum(each["severity"] == "error" for each in findings) == 2


def test_time_is_that_of_sets(tmp_path: Path) -> None:
    report = read_report(write("small", tmp_path))
    seconds = page_data(report)["seconds"]
    assert [(names, steps) for names, steps, _ in seconds] == [
        (["body", "head", "rest"], 12),
        (["head", "rest"], 12),
        (["body", "rest"], 12),
    ]
    assert sum(each[2] for each in seconds) == pytest.approx(sum(sum(phase["seconds"]) for phase in report.phases))


def test_a_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    report = read_report(write("untrusted", tmp_path))
    (tag, attributes, _), *others = Parts(report._repr_html_()).tags
    assert (tag, others) == ("iframe", [("/iframe", {}, "")])
    assert attributes["srcdoc"] == html_page(report)
    assert attributes["sandbox"] == "allow-scripts"


def test_too_many_runs_to_draw_are_in_bins_with_every_update_counted(tmp_path: Path) -> None:
    data = page_data(read_report(write("folded", tmp_path)))
    timeline, total = data["timeline"], 1_000_000_010
    kinds, counts = timeline["runs"][::2], timeline["runs"][1::2]
    assert (timeline["total"], sum(counts), timeline["bin"]) == (total, total, 500_001)
    assert len(counts) <= 2000 * 3 + 6
    assert timeline["epochs"] == [(0, 0), (1, 10**9)]
    bit = 1 << timeline["groups"].index("body")
    sets = [int(each, 16) for each in timeline["sets"]]
    updated = [sets[timeline["kinds"][kind][1]] for kind in kinds]
    assert sum(count for each, count in zip(updated, counts, strict=True) if each & bit) == 85_000_009
    assert [steps for _, steps, _ in data["seconds"]] == [25_000_007, 915_000_001, 60_000_002]
