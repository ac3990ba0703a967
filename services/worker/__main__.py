"""`python -m services.worker`."""

from __future__ import annotations

from libs import run
from services.worker.app import start
from services.worker.config import Config

if __name__ == "__main__":
    run.main("worker", Config, start)
