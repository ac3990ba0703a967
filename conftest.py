"""Registers the shared fixtures for every test of the repository."""

from __future__ import annotations

import signal

import pytest

from tests.kit.skips import Skips

pytest_plugins = ["tests.kit.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    """Counts skipped tests; a run that is told to end cleans up as after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    config.pluginmanager.register(Skips(), "kubegems-skips")
