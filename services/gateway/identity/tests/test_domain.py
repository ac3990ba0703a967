"""Rules of sign-in and of the last admin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from libs.faults import Invalid
from services.gateway.identity import domain
from services.gateway.identity.domain import LastAdmin, PlatformRole, User, UserState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _user(uid: UUID) -> User:
    return User(uid, "root", "", "", UserState.ACTIVE, PlatformRole.ADMIN, 1, NOW, NOW)


def test_delays_start_late_double_and_end_at_five_minutes() -> None:
    """Nothing for the free failures, then 1, 2, 4 s and so on; never more than the longest, however many."""
    delays = [domain.delay_after(n).total_seconds() for n in range(domain.FREE_FAILURES + 4)]
    assert delays == [0] * (domain.FREE_FAILURES + 1) + [1, 2, 4]
    assert domain.delay_after(10**9) == domain.LONGEST_DELAY


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("", "unknown"),
        ("not an address", "unknown"),
    ],
)
def test_failures_are_counted_by_source_network(address: str, network: str) -> None:
    """A /24 of IPv4, also when it comes mapped into IPv6, a /64 of IPv6, one bucket for what is no address."""
    assert domain.source_network(address) == network


def test_a_session_ends_when_idle_and_at_the_latest_after_its_lifetime() -> None:
    """Refreshing moves the end by the idle time, but not past the lifetime."""
    assert domain.session_expiry(NOW, NOW) == NOW + domain.SESSION_IDLE
    late = NOW + domain.SESSION_LIFETIME - timedelta(hours=1)
    assert domain.session_expiry(NOW, late) == NOW + domain.SESSION_LIFETIME


def test_only_the_only_active_admin_is_kept() -> None:
    """A second one sets the first free; whoever is no active admin may always change."""
    first, second = uuid4(), uuid4()
    with pytest.raises(LastAdmin):
        domain.check_not_last_admin(_user(first), frozenset({first}))
    domain.check_not_last_admin(_user(first), frozenset({first, second}))
    domain.check_not_last_admin(_user(first), frozenset({second}))


def test_texts_for_people_hold_no_control_characters() -> None:
    """Letters of any script pass; a NUL or a line end is refused with its field."""
    assert domain.text("user.display_name", "Zoë 王") == "Zoë 王"
    for bad in ("a\0b", "a\nb", "\x1b[31m"):
        with pytest.raises(Invalid) as caught:
            domain.text("user.display_name", bad)
        assert caught.value.violations[0].field == "user.display_name"
