"""Runs the measurements of this folder, or those named (`python -m tests.bench push`); each prints one JSON line per figure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SECONDS = 600


def main() -> int:
    """0 when all ran; a missed goal is for the reader, a crash is not."""
    here = Path(__file__).parent
    scripts = [here / f"{name}.py" for name in sys.argv[1:]] or sorted(here.glob("[a-z]*.py"))
    codes = [subprocess.run([sys.executable, str(script)], check=False, timeout=_SECONDS).returncode for script in scripts]
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
