"""Registers the shared fixtures for every test of the repository."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uvloop

from tests.kit.skips import Skips

pytest_plugins = ["tests.kit.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    """Counts skipped tests; a run that is told to end cleans up as after Ctrl-C.

    `KUBEGEMS_TEST_LOOP=uvloop` runs the tests on the event loop that services run on; TLS behaves otherwise there.
    """
    if os.environ.get("KUBEGEMS_TEST_LOOP") == "uvloop":
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for whatever a shell starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    config.pluginmanager.register(Skips(), "kubegems-skips")
