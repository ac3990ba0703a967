"""Signing in, staying signed in, signing out: through the whole pipeline."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from kubegems.identity.v1 import session_service_pb2 as pb
from kubegems.identity.v1 import user_service_pb2
from libs.faults import Exhausted, Invalid, NotFound, Unauthenticated
from services.gateway.identity.domain import FREE_FAILURES
from services.gateway.identity.passwords import PasswordPoolFull
from services.gateway.identity.tests.conftest import ADMIN_PASSWORD, PASSWORD, House
from tests.kit.eventually import eventually


async def _me(house: House, token: str) -> str:
    name: str = (await house.call("UserService/GetUser", user_service_pb2.GetUserRequest(name="users/me"), token)).name
    return name


async def _refused(house: House, token: str) -> bool:
    try:
        await _me(house, token)
    except Unauthenticated:
        return True
    return False


async def _refresh(house: House, token: str) -> pb.RefreshSessionResponse:
    reply: pb.RefreshSessionResponse = await house.call("SessionService/RefreshSession", pb.RefreshSessionRequest(refresh_token=token))
    return reply


async def test_signing_in_gives_a_token_that_names_its_user(house: House) -> None:
    """`users/me` is whoever the token was given to; the token lives ten minutes."""
    name = await house.user()
    signed_in = await house.sign_in(name)
    assert await _me(house, signed_in.access_token) == f"users/{name}"
    assert signed_in.session.name.startswith(f"users/{name}/sessions/")
    assert signed_in.session.address == "192.0.2.7"
    life = signed_in.expire_time.ToDatetime() - signed_in.session.create_time.ToDatetime()
    assert timedelta(minutes=9, seconds=58) < life <= timedelta(minutes=10)


async def test_unknown_user_wrong_password_and_disabled_user_cannot_be_told_apart(house: House) -> None:
    """Same code, same reason, same words for all three."""
    known, disabled = await house.user(), await house.user()
    await house.call("UserService/DisableUser", user_service_pb2.DisableUserRequest(name=f"users/{disabled}"), await house.admin())
    told = []
    for username, password in ((known, "not the password"), ("nobody-at-all", PASSWORD), (disabled, PASSWORD)):
        with pytest.raises(Unauthenticated) as caught:
            await house.sign_in(username, password)
        told.append((caught.value.reason, caught.value.message, caught.value.metadata))
    assert len(set(map(str, told))) == 1
    assert (await house.sign_in(known)).access_token, "the control: the right password signs in"


async def test_an_unknown_user_costs_the_same_work(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash is computed and the same number of statements runs, whether or not the user is there."""
    known = await house.user()
    passwords, seen = house.identity.passwords, []
    verify = passwords._verify

    def counted(password_hash: str, password: str) -> bool:
        seen.append(password_hash.split("$")[1:4])
        return verify(password_hash, password)

    monkeypatch.setattr(passwords, "_verify", counted)
    for username in (known, "nobody-here"):
        with pytest.raises(Unauthenticated):
            await house.sign_in(username, "wrong password!")
    assert len(seen) == 2
    assert seen[0] == seen[1], "same algorithm, version and cost"


async def test_failures_delay_further_attempts_of_that_network_only(house: House) -> None:
    """After some free failures an attempt is refused unchecked, even a right one; from elsewhere the user still signs in."""
    name = await house.user()
    for _ in range(FREE_FAILURES + 1):
        with pytest.raises(Unauthenticated):
            await house.sign_in(name, "not the password", address="198.51.100.5")
    with pytest.raises(Exhausted) as caught:
        await house.sign_in(name, PASSWORD, address="198.51.100.77")  # same /24
    assert caught.value.reason == "SIGN_IN_DELAYED"
    assert caught.value.retry_after is not None
    assert timedelta(0) < caught.value.retry_after <= timedelta(seconds=1)
    assert (await house.sign_in(name, PASSWORD, address="203.0.113.9")).access_token


async def test_delays_grow_and_a_success_ends_them(house: House) -> None:
    """Each failure doubles the wait; when it is over the right password signs in and the count starts anew."""
    name, network = await house.user(), "198.51.101.0/24"
    await house.sql(
        "INSERT INTO identity.sign_in_failures (username, network, failures, last) VALUES ($1, $2, $3, now())", name, network, 9
    )
    with pytest.raises(Exhausted) as caught:
        await house.sign_in(name, address="198.51.101.1")
    assert caught.value.retry_after is not None
    assert timedelta(seconds=6) < caught.value.retry_after <= timedelta(seconds=8)
    await house.sql("UPDATE identity.sign_in_failures SET last = now() - interval '9 s' WHERE username = $1", name)
    await house.sign_in(name, address="198.51.101.1")
    async with house.database.transaction() as tx:
        assert await tx.value("SELECT count(*) FROM identity.sign_in_failures WHERE username = $1", name) == 0


async def test_many_guesses_at_once_are_no_way_around_the_delay(house: House) -> None:
    """Attempts count before they are checked, so of thirty at once only the free ones are."""
    name = await house.user()
    results = await asyncio.gather(
        *(house.sign_in(name, f"guess number {n}", address="198.51.102.1") for n in range(30)), return_exceptions=True
    )
    checked = [r for r in results if isinstance(r, Unauthenticated)]
    assert len(checked) == FREE_FAILURES + 1
    assert all(isinstance(r, Unauthenticated | Exhausted) for r in results)


async def test_a_full_pool_refuses_at_once_and_does_not_count(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with RetryInfo; whoever was turned away is not delayed later for it."""
    name = await house.user()
    monkeypatch.setattr(house.identity.passwords, "_places", 0)
    for _ in range(FREE_FAILURES + 3):
        with pytest.raises(PasswordPoolFull) as caught:
            await house.sign_in(name)
        assert caught.value.retry_after
    monkeypatch.undo()
    assert (await house.sign_in(name)).access_token


async def test_a_refresh_token_works_once_and_gives_the_next(house: House) -> None:
    """The chain goes on with the newest token; the session stays the same."""
    first = await house.sign_in(await house.user())
    second = await _refresh(house, first.refresh_token)
    third = await _refresh(house, second.refresh_token)
    assert first.session.name == second.session.name == third.session.name
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert not await _refused(house, third.access_token)


async def test_a_refresh_token_used_twice_ends_the_session(house: House) -> None:
    """Whoever holds the copy, both lose: newest refresh token and access token are refused within a second."""
    first = await house.sign_in(await house.user())
    second = await _refresh(house, first.refresh_token)
    assert not await _refused(house, second.access_token)
    with pytest.raises(Unauthenticated) as caught:
        await _refresh(house, first.refresh_token)
    assert caught.value.reason == "REFRESH_REFUSED"
    with pytest.raises(Unauthenticated):
        await _refresh(house, second.refresh_token)
    await eventually(lambda: _refused(house, second.access_token), within=1, what="session ended by reuse")
    async with house.database.transaction() as tx:
        sql = "SELECT outcome FROM audit.events WHERE $1 = ANY(resources) AND method LIKE '%RefreshSession' ORDER BY time DESC LIMIT 1"
        assert await tx.value(sql, first.session.name) == "DENIED", "the refusal's record names the session"


async def test_two_refreshes_at_once_cannot_both_win(house: House) -> None:
    """One gets tokens, the other ends the session."""
    first = await house.sign_in(await house.user())
    results = await asyncio.gather(*(_refresh(house, first.refresh_token) for _ in range(4)), return_exceptions=True)
    won = [r for r in results if not isinstance(r, BaseException)]
    assert len(won) <= 1
    assert all(isinstance(r, Unauthenticated) for r in results if isinstance(r, BaseException))
    with pytest.raises(Unauthenticated):
        await _refresh(house, won[0].refresh_token if won else first.refresh_token)


async def test_made_up_and_empty_refresh_tokens_are_refused(house: House) -> None:
    """UNAUTHENTICATED, or INVALID_ARGUMENT when there is none."""
    with pytest.raises(Unauthenticated):
        await _refresh(house, "made-up")
    with pytest.raises(Invalid):
        await _refresh(house, "")


async def test_signing_out_ends_the_session_within_a_second(house: House) -> None:
    """`users/me/sessions/current` is the caller's; access token, refresh token and a second sign-out are refused."""
    signed_in, other = await house.sign_in("admin", ADMIN_PASSWORD), await house.sign_in("admin", ADMIN_PASSWORD)
    request = pb.DeleteSessionRequest(name="users/me/sessions/current")
    await house.call("SessionService/DeleteSession", request, signed_in.access_token)
    await eventually(lambda: _refused(house, signed_in.access_token), within=1, what="session ended by sign-out")
    with pytest.raises(Unauthenticated):
        await _refresh(house, signed_in.refresh_token)
    with pytest.raises(NotFound):
        await house.call("SessionService/DeleteSession", pb.DeleteSessionRequest(name=signed_in.session.name), other.access_token)
    assert not await _refused(house, other.access_token), "the control: the other session lives"


async def test_anothers_session_looks_absent(house: House) -> None:
    """A user can neither list nor end the sessions of another; an admin can."""
    mine, theirs = await house.sign_in(await house.user()), await house.sign_in(await house.user())
    user = theirs.session.name.split("/sessions/")[0]
    with pytest.raises(NotFound):
        await house.call("SessionService/DeleteSession", pb.DeleteSessionRequest(name=theirs.session.name), mine.access_token)
    with pytest.raises(NotFound):
        await house.call("SessionService/ListSessions", pb.ListSessionsRequest(parent=user), mine.access_token)
    swapped = mine.session.name.split("/sessions/")[0] + "/sessions/" + theirs.session.name.rsplit("/", 1)[-1]
    with pytest.raises(NotFound):
        await house.call("SessionService/DeleteSession", pb.DeleteSessionRequest(name=swapped), mine.access_token)
    assert not await _refused(house, theirs.access_token)
    await house.call("SessionService/DeleteSession", pb.DeleteSessionRequest(name=theirs.session.name), await house.admin())
    await eventually(lambda: _refused(house, theirs.access_token), within=1)


async def test_sessions_are_listed_newest_first_in_pages(house: House) -> None:
    """Pages meet without gap or double; ended sessions are not listed."""
    name = await house.user()
    sessions = [await house.sign_in(name) for _ in range(5)]
    token = sessions[-1].access_token
    await house.call("SessionService/DeleteSession", pb.DeleteSessionRequest(name=sessions[1].session.name), token)
    found: list[str] = []
    page = pb.ListSessionsResponse()
    while not found or page.next_page_token:
        request = pb.ListSessionsRequest(parent="users/me", page_size=3, page_token=page.next_page_token)
        page = await house.call("SessionService/ListSessions", request, token)
        found += [s.name for s in page.sessions]
    assert found == [s.session.name for s in (sessions[4], sessions[3], sessions[2], sessions[0])]


async def test_an_expired_session_is_refused(house: House) -> None:
    """Neither its access token nor its refresh token counts any more."""
    signed_in = await house.sign_in(await house.user())
    session = UUID(signed_in.session.name.rsplit("/", 1)[-1])
    await house.sql("UPDATE identity.sessions SET expires = now() - interval '1 s' WHERE id = $1", session)
    house.identity.directory._sessions.drop(session)
    assert await _refused(house, signed_in.access_token)
    with pytest.raises(Unauthenticated):
        await _refresh(house, signed_in.refresh_token)
