"""The entry point by which both Lightning packages ask for further callbacks, in every Trainer.

It is loaded in every Trainer, so it loads nothing itself: without the variable it costs a look into the environment.
"""

import os
from typing import Any

WHITELIST_VARIABLE = "LIGHTNING_FREEZE_WHITELIST"


def callbacks() -> list[Any]:
    """The audits that ``LIGHTNING_FREEZE_AUDIT=warn|raise`` turns on; each gives way to the user's own.

    Raises:
        ValueError: The variable holds something else.
        ConfigError: The whitelist that ``LIGHTNING_FREEZE_WHITELIST`` names is missing, or cannot be read.
    """
    mode: Any = os.environ.get("LIGHTNING_FREEZE_AUDIT")
    if not mode:
        return []
    from lightning_freeze.trainer.freeze_audit import FreezeAudit
    from lightning_freeze.trainer.input_audit import InputAudit
    from lightning_freeze.yaml_file import ConfigError

    if mode not in ("warn", "raise"):
        raise ValueError(
            f"the environment variable LIGHTNING_FREEZE_AUDIT is {mode!r}, but must be 'warn' or 'raise'; unset it to "
            "turn the audits off."
        )
    whitelist = os.environ.get(WHITELIST_VARIABLE) or None
    try:
        inputs = InputAudit.create_for("switch", on_finding=mode, whitelist=whitelist)
    except ConfigError as error:
        raise ConfigError(f"the environment variable {WHITELIST_VARIABLE} is {whitelist!r}: {error}") from None
    return [FreezeAudit.create_for("switch", on_finding=mode, inputs=False, verbose=False), inputs]
