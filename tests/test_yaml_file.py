"""YAML files that are too large to be what they should be are refused at once, by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze.yaml_file import ConfigError, compose


def multiplied(levels: int, row: str) -> str:
    """Each level holds nine aliases of the one before."""
    rows = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        rows.append(f"a{level}: &a{level} " + row.format(", ".join([f"*a{level - 1}"] * 9), level))
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("row", "levels", "key"),
    [("[{0}]", 9, "a5"), ("[{0}]", 60, "a5"), ("{{k{1}: [{0}]}}", 9, "a5.k5"), ("{{<<: [{0}]}}", 9, "a5.<<")],
)
def test_aliases_that_multiply_are_refused(row: str, levels: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(multiplied(levels, row), Path("run.yaml"))
    assert str(caught.value).startswith(f"run.yaml, line 6, {key}: it holds ")
    assert str(caught.value).endswith(
        " values, its aliases (`*name`) written out; at most 100,000 are read. Write fewer."
    )


def test_aliases_that_are_few_are_read() -> None:
    assert len(compose(multiplied(4, "[{0}]")).items()) == 4


def test_values_that_are_nested_without_end_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^run.yaml: the values are nested too deep to be read. Is it the right file\?$"
    ):
        compose("[" * 500 + "]" * 500, Path("run.yaml"))
