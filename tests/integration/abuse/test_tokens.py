"""Tokens that are no good, sent to the real edge: all refused, none differently from the others."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import jwt
import pytest
from grpc.aio import AioRpcError

from libs.crypt.box import Box
from libs.crypt.signing import SigningKey
from tests.integration.abuse.conftest import Edge

_NOW = timedelta(0)


@pytest.fixture(scope="module")
async def key(edge: Edge) -> SigningKey:
    """The hub's own signing key, as only the hub has it."""
    config = edge.gateway.config
    connection = await asyncpg.connect(config.database_url_file.read_text())
    try:
        row = await connection.fetchrow(
            "SELECT kid, sealed FROM identity.signing_keys WHERE purpose = 'access' ORDER BY created DESC LIMIT 1"
        )
    finally:
        await connection.close()
    assert row is not None
    return SigningKey(row["kid"], Box.load(config.master_key_file).open(row["sealed"], f"identity.signing_keys/{row['kid']}"))


def _segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _claims(good: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(good, options={"verify_signature": False})
    return {k: v for k, v in claims.items() if k not in ("iss", "aud", "iat", "nbf", "exp")}


def _signed(key: SigningKey, good: str, *, audience: str = "kubegems", begin: timedelta = _NOW, life: float = 600, **more: Any) -> str:
    return key.token(audience, _claims(good) | more, now=datetime.now(UTC) + begin, lifetime=timedelta(seconds=life))


def _header(good: str, **more: Any) -> str:
    """The good token with another header, under its old signature."""
    head, body, signature = good.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "==")) | more
    return f"{_segment(header)}.{body}.{signature}"


def _unsigned(good: str, name: str) -> str:
    _, body, _ = good.split(".")
    return f"{_segment({'alg': name, 'typ': 'JWT', 'kid': jwt.get_unverified_header(good)['kid']})}.{body}."


def _confused(key: SigningKey, good: str, secret: bytes) -> str:
    """Signed by HMAC with the public key, which everybody has."""
    return jwt.encode(_claims(good) | {"iss": "kubegems", "aud": "kubegems"}, secret, algorithm="HS256", headers={"kid": key.kid})


def _without(key: SigningKey, good: str, claim: str) -> str:
    full = jwt.decode(good, options={"verify_signature": False})
    full.pop(claim)
    return jwt.encode(full, key._key(), algorithm="EdDSA", headers={"kid": key.kid})


CORPUS: dict[str, Callable[[SigningKey, str], str]] = {
    "alg none": lambda _, good: _unsigned(good, "none"),
    "alg None": lambda _, good: _unsigned(good, "None"),
    "alg empty": lambda _, good: _unsigned(good, ""),
    "key confusion, raw": lambda key, good: _confused(key, good, key.public),
    "key confusion, hex": lambda key, good: _confused(key, good, key.public.hex().encode()),
    "wrong audience": lambda key, good: _signed(key, good, audience="kubegems-kubernetes"),
    "a service's audience": lambda key, good: _signed(key, good, audience="worker"),
    "expired": lambda key, good: _signed(key, good, begin=timedelta(hours=-1)),
    "from the future": lambda key, good: _signed(key, good, begin=timedelta(hours=1)),
    "unknown kid": lambda _, good: _signed(SigningKey.generate("nobody"), good),
    "another key under a known kid": lambda key, good: _signed(SigningKey.generate(key.kid), good),
    "kid is a path": lambda _, good: _header(good, kid="../../etc/passwd"),
    "kid is SQL": lambda _, good: _header(good, kid="' OR 1=1 --"),
    "kid is a number": lambda _, good: _header(good, kid=1),
    "crit": lambda _, good: _header(good, crit=["exp"]),
    "brings its own key": lambda _, good: _header(good, jwk={"kty": "OKP"}, jku="https://evil.example/keys"),
    "no expiry": lambda key, good: _without(key, good, "exp"),
    "no audience": lambda key, good: _without(key, good, "aud"),
    "no issuer": lambda key, good: _without(key, good, "iss"),
    "another session": lambda key, good: _signed(key, good, sid="00000000-0000-4000-8000-000000000000"),
    "session is no uuid": lambda key, good: _signed(key, good, sid="x"),
    "truncated signature": lambda _, good: good[:-10],
    "no signature": lambda _, good: good.rpartition(".")[0] + ".",
    "two segments": lambda _, good: good.rpartition(".")[0],
    "five segments": lambda _, good: good + ".a.b",
    "changed claims": lambda _, good: ".".join([good.split(".")[0], _segment({"sub": "admin"}), good.split(".")[2]]),
    "twice": lambda _, good: f"{good} {good}",
    "empty": lambda *_: "",
    "very long": lambda _, good: good + "A" * 9000,
    "not text": lambda *_: "\xff\xfe",
}


@pytest.mark.parametrize("name", CORPUS)
async def test_no_such_token_is_let_in(edge: Edge, key: SigningKey, name: str) -> None:
    """401 with one reason, over REST, over gRPC and under `/k8s` alike."""
    token = CORPUS[name](key, edge.admin.token)
    reply = await edge.send(edge.get("/api/v1/tenants", token=token))
    assert (reply.status, reply.body["error"]["status"]) == (401, "UNAUTHENTICATED"), reply
    if name == "wrong audience":  # which is the right one there
        return
    kubernetes = await edge.send(edge.get("/k8s/clusters/local/api", token=token))
    assert (kubernetes.status, kubernetes.body["kind"]) == (401, "Status")
    if token.isascii():
        async with edge.gateway.plain(edge.gateway.config.grpc_address) as channel:
            call: Any = channel.unary_unary("/kubegems.tenancy.v1.TenantService/ListTenants")
            with pytest.raises(AioRpcError) as refused:
                await call(b"", metadata=(("authorization", f"Bearer {token}"),))
            assert refused.value.code().name == "UNAUTHENTICATED"


async def test_the_same_making_lets_a_good_one_in(edge: Edge, key: SigningKey) -> None:
    """The control: a token made here like the bad ones, with nothing wrong in it, is taken."""
    reply = await edge.send(edge.get("/api/v1/tenants", token=_signed(key, edge.admin.token)))
    assert reply.status == 200, reply
