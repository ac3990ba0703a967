"""What audit is told of an exchange that the hub broke off, whatever else goes wrong with it meanwhile."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from libs.tunnel import Ended, Reset
from services.gateway.link.exchange import Exchange


@pytest.mark.parametrize("why", list(Reset))
def test_what_a_stopping_gateway_broke_off_is_told_as_that(why: Reset) -> None:
    """Also when the other end's own reset, or the client's going, is what ends it first."""
    exchange = Exchange(Mock(), upgrade=True)
    assert exchange.outcome is None
    exchange.gateway_stops()
    exchange._fault(Ended(why, "too"))
    assert exchange.outcome == ("UNAVAILABLE", "GATEWAY_STOPPING")


def test_lost_access_is_told_before_all_else() -> None:
    """A right that ends while the gateway stops is a denial."""
    exchange = Exchange(Mock(), upgrade=True)
    exchange.gateway_stops()
    exchange.stop("access ended")
    assert exchange.outcome == ("PERMISSION_DENIED", "ACCESS_ENDED")
