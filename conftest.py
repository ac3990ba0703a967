"""Registers the shared fixtures for every test of the repository."""

from __future__ import annotations

import pytest

from tests.kit.skips import Skips

pytest_plugins = ["tests.kit.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    """Counts skipped cluster tests."""
    config.pluginmanager.register(Skips(), "kubegems-skips")
