"""The entry point by which both Lightning packages ask for further callbacks, in every Trainer that is made.

It is loaded without being asked for, so it loads nothing itself: without the variable it costs a look into the
environment.
"""

import os
from typing import Any


def callbacks() -> list[Any]:
    """The audits that ``LIGHTNING_FREEZE_AUDIT=warn|raise`` turns on; none without it.

    Raises:
        ValueError: The variable holds something else.
    """
    if not os.environ.get("LIGHTNING_FREEZE_AUDIT"):
        return []
    from lightning_freeze.input_audit import switched_on

    return switched_on()
