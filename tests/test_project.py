"""The project's own files say what is so; those of the repository are not beside an installed package."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from lightning_freeze import __version__
from tests.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
in_a_checkout = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not a checkout")


def load(path: str) -> Any:
    return yaml.load((ROOT / path).read_text(encoding="utf-8"), yaml.BaseLoader)


def test_links_authors_and_version() -> None:
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= PROJECT["urls"].keys()
    assert all(url.startswith(PROJECT["urls"]["Homepage"]) for url in PROJECT["urls"].values())
    assert PROJECT["authors"] == [{"name": "lightning-freeze developers"}]
    assert PROJECT["version"] == __version__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"url = {{{PROJECT['urls']['Homepage']}}}" in readme


@in_a_checkout
def test_the_workflow_runs_the_checks_on_every_python_that_is_named() -> None:
    job = load(".github/workflows/checks.yml")["jobs"]["checks"]
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert job["strategy"]["matrix"]["python"] == named
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@in_a_checkout
def test_a_report_of_a_bug_asks_for_the_file_and_the_versions() -> None:
    fields = {field["id"]: field for field in load(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    for name in ("audit", "versions", "what"):
        assert fields[name]["validations"] == {"required": "true"}
    assert fields["audit"]["attributes"]["label"] == "freeze_audit.jsonl"
    assert load(".github/ISSUE_TEMPLATE/idea.yml")["body"]


@in_a_checkout
def test_what_else_a_project_has() -> None:
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert zenodo["creators"] == PROJECT["authors"]
    assert zenodo["license"] == PROJECT["license"]
    rev = load(".pre-commit-config.yaml")["repos"][0]["rev"]
    assert f"ruff=={rev.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert {"freeze_audit.jsonl", "freeze_runs/"} <= {*(ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    assert "vulnerability" in (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")


@in_a_checkout
def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "https://keepachangelog.com" in text
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert releases[0].startswith("[Unreleased]\n")
    for release in releases:
        kinds = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert kinds
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
