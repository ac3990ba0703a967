"""Idempotency: one answer per caller, method and request id, for 24 h; committed with what it answers."""

from __future__ import annotations

import hmac
from typing import Any

from google.protobuf.message import Message

from libs.audit.redact import holds_secrets
from libs.faults import Precondition
from libs.pg import Tx
from libs.rpc.call import Call

HEADER = "idempotency-key"
_MAX = 64


def request_id(call: Call, request: Any) -> str:
    """The id under which the caller wants one answer; empty for none, and for callers without a name, who could ask for others' answers."""
    given = getattr(request, "request_id", "") or call.metadata.get(HEADER, "")
    return str(given)[:_MAX] if call.caller.name else ""


def digest(key: bytes, request: Message) -> bytes:
    """A keyed hash of a request without its request id: a password in it cannot be guessed from the table."""
    bare = type(request)()
    bare.CopyFrom(request)
    if "request_id" in bare.DESCRIPTOR.fields_by_name:
        bare.ClearField("request_id")
    return hmac.digest(key, bare.SerializeToString(deterministic=True), "sha256")


async def claim(tx: Tx, call: Call, id_: str, body: bytes) -> Message | None:
    """Takes the id for this call, or returns the answer that was given to it.

    A second call with the same id waits here until the first has committed or rolled back.

    Raises:
        Precondition: the id came with another body, or its answer held secrets and was not kept.
    """
    caller, method = _whose(call)
    taken = await tx.execute(
        "insert into audit.requests as r (caller, method, request_id, body) values ($1, $2, $3, $4)"
        " on conflict (caller, method, request_id) do update set body = excluded.body, answer = null, created = now()"
        " where r.created < now() - interval '24 hours'",
        caller, method, id_, body,
    )  # fmt: skip
    if taken:
        return None
    row = await tx.row("select body, answer from audit.requests where caller = $1 and method = $2 and request_id = $3", caller, method, id_)
    if row is None or not hmac.compare_digest(row["body"], body):
        raise Precondition(f"request id {id_!r} was used with another request; take a new one", {"request_id": id_})
    if row["answer"] is None:
        raise Precondition(f"request {id_!r} is done; its answer held secrets and was not kept", {"request_id": id_})
    answer: Message = call.method.response_class.FromString(row["answer"])
    return answer


async def keep(tx: Tx, call: Call, id_: str, reply: Message) -> None:
    """Stores the answer, unless it holds secrets."""
    if holds_secrets(reply):
        return
    await tx.execute(
        "update audit.requests set answer = $4 where caller = $1 and method = $2 and request_id = $3",
        *_whose(call), id_, reply.SerializeToString(),
    )  # fmt: skip


def _whose(call: Call) -> tuple[str, str]:
    return f"{call.caller.name}#{call.caller.uid}", call.method.path
