"""What tests share with those that run after them in the process, and must leave as it was."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.checkpoint import CheckpointFunction

# By pytest with every test; by Lightning's `seed_everything`, torch's inductor and scikit-learn, which is no fault.
CHANGE = ("PYTEST_CURRENT_TEST", "PL_", "KMP_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_")


def state() -> dict[str, Any]:
    """What is process-wide, by a name for each; compared by equality. Files whose names begin with a dot are caches."""
    return {
        "the working directory": os.getcwd(),
        "the environment": {key: value for key, value in os.environ.items() if not key.startswith(CHANGE)},
        "its files": {name for name in os.listdir() if not name.startswith(".")},
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "nn.Module.__call__": nn.Module.__call__,
        "nn.Module.train": nn.Module.train,
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "the collector of garbage": gc.isenabled(),
        "CheckpointFunction.apply": vars(CheckpointFunction).get("apply"),
        "Tensor.shape": vars(torch.Tensor).get("shape"),
        "the dispatch modes": torch._C._len_torch_dispatch_stack(),
        "the function modes": torch._C._len_torch_function_stack(),
        "is_in_torch_dispatch_mode": is_in_torch_dispatch_mode(),  # a flag that torch mixes up between threads
        "hooks of all modules": [
            len(hooks) for name, hooks in vars(module).items() if name.startswith("_global_") and name.endswith("hooks")
        ],
        "a process group": torch.distributed.is_initialized(),
    }


def changes(before: dict[str, Any]) -> list[str]:
    """What is not as it was, one line for each."""
    now = state()
    if now["CheckpointFunction.apply"] not in (None, before["CheckpointFunction.apply"]):
        gc.collect()  # a run that was never detached ends with its controller
        now = state()
    if now["CheckpointFunction.apply"] is None:  # what a failed test's traceback kept alive may go within another test
        before = {**before, "CheckpointFunction.apply": None}
    return [f"{name}: {before[name]!r} became {now[name]!r}" for name in before if now[name] != before[name]]
