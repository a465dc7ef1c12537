"""What the figures were measured on, and with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch


def machine() -> dict[str, Any]:
    """The versions, and the processor's name."""
    return {
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "python": platform.python_version(),
        "threads": 1,
        "cpu": _cpu(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
