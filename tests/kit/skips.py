"""Skipped tests are counted in one line; in CI they fail the run, which has all that a test may need."""

from __future__ import annotations

import os

import pytest


class Skips:
    """A pytest plugin."""

    def __init__(self) -> None:
        self._skipped: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):  # type: ignore[no-untyped-def] # a hook's wrapper is a generator
        """Notes what was skipped."""
        report = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.append(item.nodeid)
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A green CI must have run them."""
        if self._skipped and os.environ.get("CI") == "true" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The one line."""
        if self._skipped:
            terminalreporter.write_line(f"{len(self._skipped)} tests were skipped: something that they need is not here", yellow=True)
