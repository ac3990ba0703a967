"""One record, before it is stored."""

from __future__ import annotations

import time as monotonic
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs import clock
from libs.audit.redact import redacted
from libs.log import trace
from libs.rpc.call import Call

_LEVELS = ("tenants", "projects", "environments")
_DENIALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


class Outcome(StrEnum):
    """How a call ended."""

    PENDING = "PENDING"
    OK = "OK"
    DENIED = "DENIED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def of(cls, code: str) -> Outcome:
        """The outcome that a canonical code's name stands for."""
        if code == "OK":
            return cls.OK
        return cls.DENIED if code in _DENIALS else cls.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record; the fields are those of kubegems.audit.v1.AuditEvent, where their meaning stands.

    `class_` is READ, WRITE or SENSITIVE; `request` must already be free of secrets.
    """

    method: str
    class_: str
    actor: str = ""
    actor_uid: str = ""
    session: str = ""
    resources: Sequence[str] = ()
    tenant: str = ""
    outcome: Outcome = Outcome.OK
    code: str = ""
    reason: str = ""
    address: str = ""
    user_agent: str = ""
    request_id: str = ""
    took: float = 0.0
    request: dict[str, Any] = field(default_factory=dict)
    id: uuid.UUID = field(default_factory=clock.new_id)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    trace_id: str = field(default_factory=trace.current_trace_id)

    @property
    def scope(self) -> str:
        """The deepest tenant, project or environment that holds all of it; empty for the platform."""
        return common_scope([*self.resources, self.tenant])


def of_call(call: Call, request: Message | None, outcome: Outcome, code: str = "", reason: str = "") -> Entry:
    """The record of a call, as it stands now."""
    took = monotonic.monotonic() - call.started
    return Entry(
        method=call.method.path,
        class_=policy_pb2.Rule.Audit.Name(call.method.rule.audit),
        actor=call.caller.name,
        actor_uid=call.caller.uid,
        session=call.caller.session,
        resources=tuple(dict.fromkeys(call.resources)),
        tenant=call.tenant,
        outcome=outcome,
        code=code,
        reason=reason,
        address=call.address,
        user_agent=call.user_agent,
        request_id=call.request_id,
        took=took,
        request=redacted(request),
        time=datetime.now(UTC) - timedelta(seconds=took),
        id=getattr(call.unit, "event", None) or clock.new_id(),
    )


def common_scope(names: Sequence[str]) -> str:
    """The deepest scope above all names that lie in a tenant; empty when they lie in several tenants, or in none."""
    chains = [_chain(name) for name in names if name.startswith("tenants/")]
    if not chains:
        return ""
    shared = chains[0]
    for chain in chains[1:]:
        # a tenant's own name beside a project of it is its parent, given for context, and takes nothing away
        if len(chain) < len(shared) and shared[: len(chain)] == chain and len(chain) == 1:
            continue
        shared = [a for a, b in zip(shared, chain, strict=False) if a == b]
    return shared[-1] if shared else ""


def above(scope: str) -> list[str]:
    """A scope and all scopes above it."""
    return _chain(scope)


def _chain(name: str) -> list[str]:
    parts = name.split("/")
    chain: list[str] = []
    for depth, level in enumerate(_LEVELS):
        if len(parts) < 2 * depth + 2 or parts[2 * depth] != level or parts[2 * depth + 1] in ("", "-"):
            break
        chain.append("/".join(parts[: 2 * depth + 2]))
    return chain
