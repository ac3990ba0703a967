"""`python -m services.controller`."""

from __future__ import annotations

from libs import run
from services.controller.app import start
from services.controller.config import Config

if __name__ == "__main__":
    run.main("controller", Config, start)
