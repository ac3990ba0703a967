"""`python -m services.gateway`."""

from __future__ import annotations

from libs import run
from services.gateway.app import start
from services.gateway.config import Config

if __name__ == "__main__":
    run.main("gateway", Config, start)
