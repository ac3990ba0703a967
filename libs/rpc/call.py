"""One call: who makes it, what it may, and what is kept of it. The same object for gRPC, REST and the tunnel."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class Scopes:
    """Where a permission is held: everywhere, at names and all below them (`trees`), or at names alone (`exact`)."""

    everything: bool = False
    trees: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()

    def covers(self, name: str) -> bool:
        """Whether the permission is held at a resource name; `""` is the platform."""
        if self.everything or name in self.exact or name in self.trees:
            return True
        return any(name.startswith(tree + "/") for tree in self.trees)

    @property
    def empty(self) -> bool:
        """Whether it is held nowhere."""
        return not (self.everything or self.trees or self.exact)


class Rights(Protocol):
    """What a caller may do."""

    def scopes(self, permission: str) -> Scopes:
        """Where the permission is held."""
        ...


class NoRights:
    """Nothing, anywhere."""

    def scopes(self, permission: str) -> Scopes:  # noqa: ARG002 -- whatever is asked
        """Nowhere."""
        return Scopes()


class Kind(enum.Enum):
    """What a caller is."""

    ANONYMOUS = "anonymous"
    USER = "users"
    AGENT = "clusters"
    SERVICE = "services"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, proved.

    Attributes:
        kind: what it is.
        id: user name, cluster uid or service name; empty for ANONYMOUS.
        uid: the user's or cluster's uid.
        session: id of the user's session.
        rights: what it may do.
        username: same as id for a USER.
    """

    kind: Kind = Kind.ANONYMOUS
    id: str = ""
    uid: str = ""
    session: str = ""
    rights: Rights = field(default_factory=NoRights)

    @property
    def name(self) -> str:
        """Resource name, such as `users/dev`; empty for ANONYMOUS."""
        return f"{self.kind.value}/{self.id}" if self.id else ""

    def allows(self, permission: str, scope: str = "") -> bool:
        """Whether it holds a permission at a resource name (`""`: the platform)."""
        return self.rights.scopes(permission).covers(scope)


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its descriptor, its rule and who answers it.

    `handler` is `async (request, call) -> reply` for a unary method, `(request, call) -> AsyncIterator[reply]` for a
    server stream, which may yield a list of replies where it has several at once. A `forwarded` method is answered by
    another process, which keeps its record; its replies are encoded bytes.

    Attributes:
        path: `/package.Service/Method`.
        streams: whether it answers with a stream.
        uploads: whether its request comes as a stream: one message that names things, then the bytes of a body (`Call.upload`).
    """

    descriptor: MethodDescriptor
    rule: policy_pb2.Rule
    request_class: type[Message]
    response_class: type[Message]
    handler: Callable[[Any, Call], Awaitable[Any]] | Callable[[Any, Call], AsyncIterator[Any]]
    forwarded: bool = False
    path: str = field(init=False)
    streams: bool = field(init=False)
    uploads: bool = field(init=False)

    def __post_init__(self) -> None:
        """Reads the descriptor once; each call asks for these several times."""
        descriptor = self.descriptor
        object.__setattr__(self, "path", f"/{descriptor.containing_service.full_name}/{descriptor.name}")
        object.__setattr__(self, "streams", bool(descriptor.server_streaming))
        object.__setattr__(self, "uploads", bool(descriptor.client_streaming))


class Unit(Protocol):
    """What a call does in PostgreSQL, as one transaction, with its audit record and its idempotency answer in it."""

    async def begin(self, call: Call) -> Any:
        """The transaction, opened at the first ask."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """One call on its way through the pipeline.

    Attributes:
        method: the RPC.
        address: the client's address, without port.
        user_agent: what the client calls itself.
        transport: `grpc`, `rest` or `tunnel`.
        request_id: our id of the request, sent back to the client.
        traceparent: what the client sent; linked, never trusted on the public edge.
        metadata: lower-case headers or metadata, without credentials.
        credential: the bearer token; never logged.
        peer: SPIFFE id that the peer's certificate proved on an mTLS listener; empty elsewhere.
        timeout: seconds the client still waits; None for no limit.
        caller: who it is; ANONYMOUS until authenticated.
        resources: resource names that the request carries, for audit; handlers may add what they made.
        tenant: `tenants/{tenant}` that it belongs to, for audit.
        upload: the chunks of the body that the request's stream brings, read as fast as they are taken; None for other requests.
        unit: the call's transaction.
        recorded: whether the audit record is committed, here or by the service that it was forwarded to.
        response_headers: lower-case headers or trailing metadata of the answer.
        started: monotonic seconds when it came in.
    """

    method: Method
    address: str = ""
    user_agent: str = ""
    transport: str = "grpc"
    request_id: str = ""
    traceparent: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    credential: str = ""
    peer: str = ""
    timeout: float | None = None
    caller: Caller = field(default_factory=Caller)
    resources: list[str] = field(default_factory=list)
    tenant: str = ""
    upload: AsyncIterator[bytes] | None = None
    unit: Unit | None = None
    recorded: bool = False
    response_headers: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
