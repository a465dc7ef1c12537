"""Numbers and groups as people write them."""

from __future__ import annotations

import pytest

from lightning_freeze.report.table import human_bytes

BYTES = {
    0: "0 B",
    1: "1 B",
    1023: "1023 B",
    1024: "1 KiB",
    1536: "1.5 KiB",
    1290: "1.26 KiB",
    12_700: "12.4 KiB",
    100 * 1024: "100 KiB",
    2**20 - 1: "1 MiB",
    2**20: "1 MiB",
    640 * 2**20: "640 MiB",
    2**30 * 5 // 4: "1.25 GiB",
    2**40: "1 TiB",
    2000 * 2**50: "2000 PiB",
}


@pytest.mark.parametrize("number", BYTES)
def test_bytes_for_people(number: int) -> None:
    assert human_bytes(number) == BYTES[number]
