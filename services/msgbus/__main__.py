"""`python -m services.msgbus`."""

from __future__ import annotations

from libs import run
from services.msgbus.app import start
from services.msgbus.config import Config

if __name__ == "__main__":
    run.main("msgbus", Config, start)
