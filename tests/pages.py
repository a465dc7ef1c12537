"""Pages of the documentation: where they are, their blocks of code, and the parts that a command writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import lightning_freeze

ROOT = Path(__file__).resolve().parents[1]
KINDS = Path(lightning_freeze.__file__).parent / "report" / "kinds"
PAGES = {
    **{
        path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("examples/**/*.md")))
    },
    **{f"lightning_freeze/report/kinds/{path.name}": path for path in sorted(KINDS.glob("*.md"))},
}
"""Name in the repository to where it is, for an installed package too."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$(?:\n*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, and the output that is shown below it."""

    language: str
    code: str
    output: str | None
    line: int


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks of a page in some languages."""
    found = [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]
    return [block for block in found if block.language in languages]


def _between(text: str, name: str) -> tuple[int, int]:
    begin = re.search(rf"<!-- {name}: made by `[^`]*` -->\n", text)
    assert begin is not None, f"the page has no part {name!r}"
    return begin.end(), text.index(f"<!-- {name}: end -->", begin.end())


def part(page: Path, name: str) -> str:
    """What stands between the two marks of a part that a command writes."""
    text = page.read_text(encoding="utf-8")
    begin, end = _between(text, name)
    return text[begin:end]


def write_part(page: Path, name: str, new: str) -> None:
    """Replace it."""
    text = page.read_text(encoding="utf-8")
    begin, end = _between(text, name)
    page.write_text(f"{text[:begin]}{new}{text[end:]}", encoding="utf-8")
