"""A short-lived folder that another account can reach."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Self


class Scratch:
    """A folder under /tmp for the length of a block; others may go through it, not list it, when an account is given."""

    def __init__(self, user: tuple[int, int] | None) -> None:
        self._user = user
        self.path = Path()

    def __enter__(self) -> Self:
        self.path = Path(tempfile.mkdtemp(prefix="kubegems-"))
        self.path.chmod(0o711 if self._user else 0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
