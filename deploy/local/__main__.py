"""`python -m deploy.local <run|stop|status|doctor|clean|admin-password|env|nats-config>`: the local stack, from `make`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from deploy.local import admin, doctor, starter, status
from deploy.local.errors import LocalError
from deploy.local.layout import Layout

_ROOT = Path(__file__).parents[2]


def main() -> int:
    """Does what was asked; a failure is one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("verb", choices=("run", "stop", "status", "doctor", "clean", "admin-password", "env", "nats-config"))
    parser.add_argument("--state", type=Path, default=_ROOT / ".local", help="folder that holds the stack's state")
    arguments = parser.parse_args()
    layout = Layout(arguments.state)
    try:
        match arguments.verb:
            case "run":
                asyncio.run(starter.run(layout))
            case "stop":
                starter.stop(layout)
            case "status":
                return status.show(layout)
            case "doctor":
                return doctor.run(layout)
            case "clean":
                starter.clean(layout)
            case "admin-password":
                asyncio.run(admin.reset(layout))
            case "nats-config":
                sys.stdout.write(admin.nats_configuration(layout))
            case "env":
                sys.stdout.write(layout.env.read_text() if layout.env.exists() else "")
    except LocalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


sys.exit(main())
