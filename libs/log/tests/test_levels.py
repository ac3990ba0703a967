"""What a program shows of others' loggers."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = (
    "import logging, sys; from libs import log; log.setup('s', level=sys.argv[1]); logging.getLogger('asyncio').warning('of a library')"
)


@pytest.mark.parametrize(("level", "shown"), [("ERROR", False), ("INFO", True), ("DEBUG", True)])
def test_a_library_says_no_more_than_the_program(level: str, shown: bool) -> None:
    """A program that tells of errors alone is not talked over by a library's warnings; others show them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, check=True, timeout=60)
    assert ("of a library" in done.stderr) == shown
