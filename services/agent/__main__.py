"""Starts the agent."""

from __future__ import annotations

from libs import run
from services.agent.app import start
from services.agent.config import Config

run.main("agent", Config, start)
