"""The entry point by which both Lightning packages ask for further callbacks, in every Trainer that is made.

It is loaded without being asked for, so it loads nothing itself: without the variable it costs a look into the
environment.
"""

import os
from typing import Any

WHITELIST_VARIABLE = "LIGHTNING_FREEZE_WHITELIST"


def callbacks() -> list[Any]:
    """The audits that ``LIGHTNING_FREEZE_AUDIT=warn|raise`` turns on; none without it.

    Raises:
        ValueError: The variable holds something else.
    """
    if not os.environ.get("LIGHTNING_FREEZE_AUDIT"):
        return []
    return switched_on()


def switched_on() -> list[Any]:
    """The audits that ``LIGHTNING_FREEZE_AUDIT`` asks for; they stand back where the Trainer has its own.

    Raises:
        ValueError: The variable holds neither ``warn`` nor ``raise``.
        ConfigError: The whitelist that ``LIGHTNING_FREEZE_WHITELIST`` names is not there, or cannot be read.
    """
    from lightning_freeze.trainer.freeze_audit import FreezeAudit
    from lightning_freeze.trainer.input_audit import InputAudit
    from lightning_freeze.yaml_file import ConfigError

    mode: Any = os.environ["LIGHTNING_FREEZE_AUDIT"]
    if mode not in ("warn", "raise"):
        raise ValueError(
            f"the environment variable LIGHTNING_FREEZE_AUDIT is {mode!r}, but must be 'warn' or 'raise'; unset it to "
            "turn the audits off."
        )
    whitelist = os.environ.get(WHITELIST_VARIABLE) or None
    try:
        inputs = InputAudit.for_the("switch", on_finding=mode, whitelist=whitelist)
    except ConfigError as error:
        raise ConfigError(f"the environment variable {WHITELIST_VARIABLE} is {whitelist!r}: {error}") from None
    return [FreezeAudit.for_the("switch", on_finding=mode, inputs=False), inputs]
