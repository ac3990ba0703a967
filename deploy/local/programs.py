"""Programs that come with the virtual environment or the machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from deploy.local.errors import LocalError


def find(name: str) -> str:
    """The path of a program; raises LocalError when there is none."""
    beside = Path(sys.prefix) / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise LocalError(f"{name} is missing: run make setup")
    return found
