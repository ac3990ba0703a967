"""The broker's questions: only one that a server signed is read."""

from __future__ import annotations

from typing import Any

import nkeys
import orjson
import pytest

from libs.bus import callout, nkey

_QUESTION = {"aud": "nats-authorization-request", "nats": {"user_nkey": "U1", "server_id": {"id": "N1"}}}


def _pair(kind: int) -> Any:
    return nkeys.from_seed(nkey.new_seed(kind).encode())


def _question(pair: Any, signer: Any, **more: Any) -> bytes:
    head = callout._encode(orjson.dumps({"typ": "JWT", "alg": "ed25519-nkey"}))
    signed = f"{head}.{callout._encode(orjson.dumps(_QUESTION | {'iss': nkey.public(pair)} | more))}"
    return f"{signed}.{callout._encode(signer.sign(signed.encode()))}".encode()


def test_a_question_of_a_server_is_read() -> None:
    """The control of what follows."""
    server = _pair(nkeys.PREFIX_BYTE_SERVER)
    assert callout._request(_question(server, server)) == _QUESTION["nats"]


def test_other_questions_are_refused() -> None:
    """Signed by another, by somebody who is no server, for something else, or changed: whoever asks so gets no answer."""
    server, other, user = _pair(nkeys.PREFIX_BYTE_SERVER), _pair(nkeys.PREFIX_BYTE_SERVER), _pair(nkey.USER)
    head, _, signature = _question(server, server).split(b".")
    changed = callout._encode(orjson.dumps(_QUESTION | {"iss": nkey.public(server), "nats": {"user_nkey": "U2"}})).encode()
    for bad in (
        _question(server, other),
        _question(user, user),
        _question(server, server, aud="something else"),
        b".".join((head, changed, signature)),
        b"",
        b"x.y.z",
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            callout._request(bad)
