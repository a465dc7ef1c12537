"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_freeze.cli.main import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with a status, by default 2 (bad input); what it says on stderr."""

    def run(*arguments: str, status: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr().err
        assert (ended.value.code or 0) == status, said
        assert "Traceback" not in said
        return said

    return run
