"""Words that a PyTorch user has to guess at stand nowhere: neither in the code, nor in what it prints, nor in the guides."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_freeze
from lightning_freeze.cli.main import COMMANDS

ALIKE = {"fit", "validate", "test", "predict"}
ROOT = Path(__file__).parents[1]
PACKAGE = Path(lightning_freeze.__file__).parent

ODD = {
    "lane": "optimizer",
    "anew": "again",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "whoever": "code that",
    "in vain": "without effect",
    "told": "logged, sent, reported",
    "insist": "send zero gradients",
    "heard": "logged",
    "unheard": "missing",
    "hears": "logs",
    "stands twice": "duplicate key",
    "stand still": "stay frozen",
    "stands still": "stays frozen",
    "hold still": "stay frozen",
    "twin": "clone",
    "twins": "clones",
    "stand-in": "proxy parameter",
    "stand-ins": "proxy parameters",
    "clock": "step counter",
    "clocks": "step counters",
    "founding": "alternating updates; comparison of freezing methods",
    "by hand": "in manual optimization, in a plain loop",
    "emptied": "set to None",
    "the peers": "other tools",
    "begins anew": "supports a state reset",
    "witness": "audit",
    "uneven": "variable batch size",
    "as trained": "training weights",
    "row of phases": "sequence of phases",
    "gradients of None": "gradients set to None",
}
"""Each word and what to say instead."""

_BETWEEN = r"[\s#\"]+"  # a line may end between two words, within a comment or a text
_ODD = re.compile(
    rf"(?<![\w-])({'|'.join(sorted(ODD, key=len, reverse=True)).replace(' ', _BETWEEN)})(?![\w-])", re.IGNORECASE
)

KEPT = {
    "lightning_freeze/checkpoint.py": {"heard", "unheard"},
    "lightning_freeze/plan/schedule.py": {"heard", "unheard"},  # keys in checkpoints
    "CHANGELOG.md": {"clocks", "uneven"},  # former names
    "lightning_freeze/plan/phases.py": {"heard", "unheard"},
    "lightning_freeze/plan/metric_log.py": {"unheard"},
    "lightning_freeze/controller.py": {"unheard", "hears_backward"},  # former names
    "lightning_freeze/probe/probe.py": {"clocks"},  # a former name
}
"""Words that a file may hold, as names of something that was saved or imported before."""

_WRITTEN = {".py", ".md", ".json", ".html", ".css", ".js"}
_GUIDES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/reference.md", "examples/README.md")
FILES = {
    f"lightning_freeze/{path.relative_to(PACKAGE).as_posix()}": path
    for path in sorted(PACKAGE.rglob("*"))
    if path.suffix in _WRITTEN
} | {
    path.relative_to(ROOT).as_posix(): path
    for pattern in ("configs/*.yaml", "examples/*.py", "examples/guide/*", "examples/coming_from/*", *_GUIDES)
    for path in sorted(ROOT.glob(pattern))
}
"""Those that are there: tests of an installed package have no `CONTRIBUTING.md` beside them."""


def odd_words(text: str) -> list[str]:
    """The odd words in a text, each with its line; parts of names that `_` or a capital letter sets off count."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text)
    found = [
        (parts.count("\n", 0, match.start()) + 1, " ".join(re.findall(r"[\w-]+", match[0])))
        for match in _ODD.finditer(parts)
    ]
    return [f"{number}: {word!r} → {ODD[word.lower()]}" for number, word in found]


@pytest.mark.parametrize("file", FILES)
def test_no_odd_word_stands_in(file: str) -> None:
    text = FILES[file].read_text(encoding="utf-8")
    for word in KEPT.get(file, ()):
        text = re.sub(rf"\b{word}\b", "", text)
    assert odd_words(text) == []


@pytest.mark.parametrize("command", [[], ["fit"], *([name] for name in COMMANDS if name not in ALIKE)], ids=" ".join)
@pytest.mark.slow
def test_no_odd_word_stands_in_the_help(command: list[str]) -> None:
    program = [
        sys.executable,
        "-m",
        "lightning_freeze.cli.main",
        *command,
        "--help",
    ]  # the tests' own classes are not in it
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "usage" in said
    assert odd_words(said) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the mend", ["1: 'mend' → fix"]),
        ("fine\ndef _begins_anew", ["2: 'begins anew' → supports a state reset"]),
        ("class TwinMaker", ["1: 'Twin' → clone"]),
        ("all in\n    # vain", ["1: 'in vain' → without effect"]),
        ("recommended, clockwise, soldered, a planed lane-keeping row", []),
    ],
)
def test_an_odd_word_is_found(text: str, found: list[str]) -> None:
    assert odd_words(text) == found


def test_what_is_kept_is_still_there() -> None:
    for file in KEPT.keys() & FILES.keys():
        assert KEPT[file] <= set(re.findall(r"\w+", FILES[file].read_text(encoding="utf-8")))
