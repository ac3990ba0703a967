"""Tokens that must be refused, and keys that come and go."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kubegems.identity.v1 import user_service_pb2
from libs.clock import HeldClock, SystemClock
from libs.crypt.box import Box, Broken
from libs.crypt.signing import Rejected, SigningKey
from libs.faults import Unauthenticated
from services.gateway.identity.keys import CHANNEL, ROTATION, Keyring, Purpose, jwks
from services.gateway.identity.rotate import rotate
from services.gateway.identity.tests.conftest import BOX, House
from services.gateway.identity.tokens import ACCESS_AUDIENCE, KUBERNETES_AUDIENCE, Tokens

Forge = Callable[[SigningKey, dict[str, Any]], str]


def _now() -> datetime:
    return datetime.now(UTC)


def _unsigned(header: dict[str, Any], body: dict[str, Any], signature: str = "") -> str:
    def part(content: dict[str, Any]) -> str:
        plain = {k: int(v.timestamp()) if isinstance(v, datetime) else v for k, v in content.items()}
        return base64.urlsafe_b64encode(json.dumps(plain).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(body)}.{signature}"


def _signed(key: SigningKey, body: dict[str, Any], **header: Any) -> str:
    private = Ed25519PrivateKey.from_private_bytes(key.private)
    headers = {name: value for name, value in ({"kid": key.kid} | header).items() if value is not None}
    return jwt.encode(body, private, algorithm="EdDSA", headers=headers)


def _with(**changes: Any) -> Forge:
    return lambda key, body: _signed(key, body | changes)


def _without(claim: str) -> Forge:
    return lambda key, body: _signed(key, {k: v for k, v in body.items() if k != claim})


def _hmac(key: SigningKey, body: dict[str, Any]) -> str:
    """The classic: the public key taken for a shared secret."""
    return jwt.encode(body, key.public, algorithm="HS256", headers={"kid": key.kid})


def _tampered(key: SigningKey, body: dict[str, Any]) -> str:
    header, _, signature = _signed(key, body).split(".")
    return ".".join((header, _unsigned({}, body | {"sub": "admin"}).split(".")[1], signature))


CORPUS: dict[str, Forge] = {
    "alg none": lambda key, body: _unsigned({"alg": "none", "typ": "JWT", "kid": key.kid}, body),
    "alg None, mixed case": lambda key, body: _unsigned({"alg": "nOnE", "kid": key.kid}, body),
    "alg HS256 with the public key": _hmac,
    "unknown kid": lambda _, body: _signed(SigningKey.generate("unknown"), body),
    "known kid, another's signature": lambda key, body: _signed(SigningKey.generate(key.kid), body),
    "no kid": lambda key, body: _signed(key, body, kid=None),
    "kid that is a path": lambda key, body: _signed(key, body, kid="../../dev/null"),
    "unknown crit": lambda key, body: _signed(key, body, crit=["exp2"], exp2=1),
    "key in the header": lambda key, body: _signed(SigningKey.generate("x"), body, kid=key.kid, jwk={"kty": "OKP"}),
    "wrong audience": _with(aud="kubegems-internal"),
    "audience of kubeconfigs": _with(aud=KUBERNETES_AUDIENCE),
    "no audience": _without("aud"),
    "wrong issuer": _with(iss="someone"),
    "no issuer": _without("iss"),
    "expired": _with(exp=_now() - timedelta(minutes=1)),
    "no expiry": _without("exp"),
    "not yet good": _with(nbf=_now() + timedelta(minutes=5)),
    "made in the future": _with(iat=_now() + timedelta(minutes=5)),
    "no user": _without("sub"),
    "no session": _without("sid"),
    "a session that never was": _with(sid=str(uuid4())),
    "another user's uid": _with(uid=str(uuid4())),
    "a session that is no id": _with(sid="1 OR 1=1"),
    "tampered body": _tampered,
    "truncated": lambda key, body: _signed(key, body)[:-10],
    "no signature": lambda key, body: _signed(key, body).rsplit(".", 1)[0] + ".",
    "two parts": lambda key, body: _signed(key, body).rsplit(".", 1)[0],
    "not a token": lambda _key, _body: "not a token",
    "not ASCII": lambda _key, _body: "é" * 20,
    "far too long": lambda key, body: _signed(key, body | {"pad": "x" * 10_000}),
    "empty": lambda _key, _body: "",
}


async def _body(house: House) -> dict[str, Any]:
    signed_in = await house.sign_in(await house.user())
    found: dict[str, Any] = jwt.decode(signed_in.access_token, options={"verify_signature": False})
    return found


async def _me(house: House, token: str) -> Any:
    return await house.call("UserService/GetUser", user_service_pb2.GetUserRequest(name="users/me"), token)


@pytest.mark.parametrize("name", CORPUS)
async def test_a_bad_token_is_refused(house: House, name: str) -> None:
    """7.2.10: uNAUTHENTICATED in the same words for all; the untouched claims, signed the same way, are let in."""
    key, body = house.identity.access_keys.signing, await _body(house)
    assert (await _me(house, _signed(key, body))).name == f"users/{body['sub']}", "the control"
    with pytest.raises(Unauthenticated) as caught:
        await _me(house, CORPUS[name](key, body))
    assert caught.value.reason == "NOT_SIGNED_IN"


async def test_tokens_hold_no_rights_and_no_secrets(house: House) -> None:
    """Who and which session, nothing else: rights are looked up at each call."""
    assert set(await _body(house)) == {"sub", "uid", "sid", "iss", "aud", "iat", "nbf", "exp"}


async def test_a_remembered_token_still_expires() -> None:
    """Verifying once does not make it good for ever."""
    clock = HeldClock(_now())
    key = SigningKey.generate("k")
    tokens = Tokens(_Fixed(key), clock)  # type: ignore[arg-type] # all that Tokens uses of a keyring
    token = tokens.access("dev", uuid4(), uuid4(), clock.now() + timedelta(hours=1)).token
    assert (await tokens.verify(token, ACCESS_AUDIENCE)).username == "dev"
    clock.advance(timedelta(minutes=11))
    with pytest.raises(Exception, match="not valid"):
        await tokens.verify(token, ACCESS_AUDIENCE)


async def test_an_access_token_never_outlives_its_session() -> None:
    """Three minutes before the session's end it is good for three minutes."""
    clock = HeldClock(_now())
    tokens = Tokens(_Fixed(SigningKey.generate("k")), clock)  # type: ignore[arg-type] # all that Tokens uses of a keyring
    issued = tokens.access("dev", uuid4(), uuid4(), clock.now() + timedelta(minutes=3))
    assert issued.expires <= clock.now() + timedelta(minutes=3)


class _Fixed:
    def __init__(self, key: SigningKey) -> None:
        self.signing, self.public = key, {key.kid: key.public}

    async def knows(self, kid: str) -> bool:
        return kid in self.public


async def test_kubeconfig_tokens_are_for_one_cluster_and_for_nothing_else(house: House) -> None:
    """Not for the API, not for another cluster; gone with the session. An access token is good for `/k8s` too."""
    signed_in = await house.sign_in(await house.user())
    authenticator = house.identity.authenticator
    caller = await authenticator.authenticate(house.open("UserService/GetUser", credential=signed_in.access_token))
    cluster = str(uuid4())
    token = authenticator.kubeconfig_token(caller, cluster, timedelta(hours=2)).token
    assert (await authenticator.kubernetes(token, cluster)).name == caller.name
    assert (await authenticator.kubernetes(signed_in.access_token, cluster)).name == caller.name
    assert (await authenticator.still(caller)).name == caller.name
    with pytest.raises(Unauthenticated):
        await authenticator.kubernetes(token, str(uuid4()))
    with pytest.raises(Unauthenticated):
        await _me(house, token)
    await house.sql("UPDATE identity.sessions SET ended = now() WHERE id = $1", UUID(caller.session))
    house.identity.directory._sessions.drop(UUID(caller.session))
    with pytest.raises(Unauthenticated):
        await authenticator.kubernetes(token, cluster)
    with pytest.raises(Unauthenticated):
        await authenticator.still(caller)


async def test_kubeconfig_tokens_live_as_asked_but_not_for_ever(house: House) -> None:
    """An hour by default, what was asked otherwise, twelve hours at most."""
    signed_in = await house.sign_in("admin", "first-admin-password")
    authenticator = house.identity.authenticator
    caller = await authenticator.authenticate(house.open("UserService/GetUser", credential=signed_in.access_token))
    for asked, given in ((None, 1.0), (timedelta(hours=3), 3.0), (timedelta(days=9), 12.0)):
        left = authenticator.kubeconfig_token(caller, "c", asked).expires - _now()
        assert left.total_seconds() / 3600 == pytest.approx(given, abs=0.01)


async def test_keys_rotate_two_are_valid_and_replicas_share_them(house: House) -> None:
    """After a rotation the last key's tokens still count, after two they do not; a second replica signs with the same key."""
    clock = HeldClock(_now() + timedelta(days=100))
    mine, other = (Keyring(house.database, BOX, clock, Purpose.GRANT) for _ in range(2))
    await mine.refresh()
    first = mine.signing.kid
    clock.advance(ROTATION + timedelta(seconds=1))
    await mine.refresh()
    second = mine.signing.kid
    assert list(mine.public) == [second, first]
    assert await other.knows(second), "the other replica looks when it meets an unknown key id"
    assert other.signing == mine.signing
    clock.advance(ROTATION + timedelta(seconds=1))
    await other.refresh()
    assert first not in other.public
    assert second in other.public
    assert await mine.knows(other.signing.kid)


async def test_replicas_that_start_at_once_make_one_key(house: House) -> None:
    """They take turns, and the second finds what the first made."""
    clock = HeldClock(_now() + timedelta(days=900))
    rings = [Keyring(house.database, BOX, clock, Purpose.CALLER) for _ in range(4)]
    for ring in rings:
        await ring.refresh()
    assert len({ring.signing.kid for ring in rings}) == 1


async def test_private_keys_lie_sealed(house: House) -> None:
    """Neither the private bytes nor a key that opens under another hub's key is in the table."""
    private = house.identity.access_keys.signing.private
    async with house.database.transaction() as tx:
        rows = await tx.rows("SELECT sealed::text, public::text FROM identity.signing_keys")
    assert private.hex() not in str(rows)
    with pytest.raises(Broken):
        await Keyring(house.database, Box(b"x" * 32), SystemClock(), Purpose.ACCESS).refresh()


async def test_the_published_key_set_verifies_tokens(house: House) -> None:
    """A stranger with nothing but the JWKS can check a token; private parts are not in it."""
    signed_in = await house.sign_in("admin", "first-admin-password")
    keys = jwks(house.identity.access_keys)
    by_kid = {key["kid"]: jwt.PyJWK(dict(key)).key for key in keys["keys"]}
    kid = jwt.get_unverified_header(signed_in.access_token)["kid"]
    claims = jwt.decode(signed_in.access_token, by_kid[kid], algorithms=["EdDSA"], audience=ACCESS_AUDIENCE)
    assert claims["sub"] == "admin"
    assert all(set(key) == {"kty", "crv", "kid", "x", "use", "alg"} for key in keys["keys"])
    assert (
        by_kid[kid].public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw) in house.identity.access_keys.public.values()
    )


async def test_a_key_that_was_taken_away_is_good_for_nothing_at_once(house: House, database: Any, eventually: Any) -> None:
    """Other gateways hear of it; a token that was believed a moment ago is refused; the next key signs, and the audit log tells."""
    ring = Keyring(house.database, BOX, SystemClock(), Purpose.ACCESS)
    await ring.refresh()
    await house.database.listen(CHANNEL, ring.changed)
    tokens = Tokens(ring, SystemClock())
    old = tokens.access("dev", uuid4(), uuid4(), datetime.now(UTC) + timedelta(hours=1)).token
    await tokens.verify(old, ACCESS_AUDIENCE)
    kid = ring.signing.kid
    assert await rotate(database.dsn, [Purpose.ACCESS]) >= 1
    await eventually(lambda: ring.signing.kid != kid, within=5)
    with pytest.raises(Rejected):
        await tokens.verify(old, ACCESS_AUDIENCE)
    await tokens.verify(tokens.access("dev", uuid4(), uuid4(), datetime.now(UTC) + timedelta(hours=1)).token, ACCESS_AUDIENCE)
