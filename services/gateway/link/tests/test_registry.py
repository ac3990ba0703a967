"""Which of several tunnels of one cluster stands, in whatever order they come and go."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from libs import rpc
from libs.clock import SystemClock
from services.gateway.link.door import Refused
from services.gateway.link.links import Links
from services.gateway.link.tunnel import Tunnel


async def _allowed(_uid: str, _serial: str) -> bool:
    return True


@pytest.fixture
def links() -> Links:
    """Of a gateway that is alone."""
    pipeline = rpc.Pipeline([], registry=CollectorRegistry())
    return Links(hub_uid="hub", version="1", pipeline=pipeline, allowed=_allowed, clock=SystemClock(), registry=CollectorRegistry())


def tunnel(number: int) -> Tunnel:
    """One of cluster `east`."""
    return Tunnel("east", "1", f"session {number}", "10.0.0.1", Mock(), Mock(), 0.0, "1f", 2, number)


async def test_the_newest_stands_whatever_order_they_come_in(links: Links) -> None:
    """A greeting that took long, and so comes after a newer one, is refused and harms nothing."""
    second, first, third = tunnel(2), tunnel(1), tunnel(3)
    links.take(second)
    with pytest.raises(Refused, match="a newer tunnel stands"):
        links.take(first)
    assert links.tunnel("east") is second
    second.mux.abort.assert_not_called()  # type: ignore[attr-defined] # a double
    links.take(third)
    assert links.tunnel("east") is third
    second.mux.abort.assert_called_once()  # type: ignore[attr-defined] # a double


async def test_the_end_of_an_older_one_changes_nothing(links: Links) -> None:
    """It ends because of the newer one, which stays."""
    first, second = tunnel(1), tunnel(2)
    links.take(first)
    links.take(second)
    links.drop(first)
    assert links.tunnel("east") is second
    links.drop(second)
    assert not links.online("east")


async def test_a_newer_one_elsewhere_ends_an_older_one_here_and_no_newer(links: Links) -> None:
    """News of another gateway's tunnel may come late."""
    here = tunnel(5)
    links.take(here)
    links.superseded("east", 5)
    links.superseded("east", 4)
    here.mux.abort.assert_not_called()  # type: ignore[attr-defined] # a double
    links.superseded("east", 6)
    here.mux.abort.assert_called_once()  # type: ignore[attr-defined] # a double
