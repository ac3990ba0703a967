"""Runs the measurements of this folder, or those named, one after the other; each prints one JSON line per bar.

`python -m tests.bench rest` runs all whose names start so; `python -m tests.bench rest_vs_envoy:small_get:blob` hands `small_get
blob` to one script. What goes on is told on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SECONDS = 1200.0  # a script may take; kubectl.py makes 5,000 pods first
_GRACE = 20.0  # to clean up in


def scripts() -> list[Path]:
    """All of them."""
    return sorted(Path(__file__).parent.glob("[a-z]*.py"))


def commands(wanted: Sequence[str]) -> Iterator[list[str]]:
    """What to run; ValueError for a name that no script has."""
    for name in wanted or [""]:
        start, *arguments = name.split(":")
        found = [script for script in scripts() if script.stem.startswith(start)]
        if not found:
            raise ValueError(f"{start} is none of {', '.join(script.stem for script in scripts())}")
        yield from ([sys.executable, str(script), *arguments] for script in found)


def run(command: Sequence[str], seconds: float = SECONDS) -> int:
    """Its exit code. What takes too long is interrupted and then killed with everything that it started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _tell(f"{command[1]} takes more than {seconds:g} s; ended")
        return 1
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):  # when nobody is left of them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tell(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def main() -> int:
    """0 when all ran; a missed goal is for the reader, a crash is not."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is ended by `run`
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME[:BAR…]", help=", ".join(script.stem for script in scripts()))
    try:
        chosen = list(commands(parser.parse_args().names))
    except ValueError as error:
        parser.error(str(error))
    worst = 0
    for number, command in enumerate(chosen, 1):
        name, began = Path(command[1]).stem, time.monotonic()
        _tell(f"{number}/{len(chosen)} {name}")
        code = run(command)
        worst = max(worst, abs(code))
        _tell(f"{number}/{len(chosen)} {name}: {'done' if code == 0 else f'failed ({code})'} after {time.monotonic() - began:.0f} s")
    return worst


if __name__ == "__main__":
    sys.exit(main())
