"""RPC: one pipeline for every call, whatever carries it, and the gRPC servers and channels around it.

`methods(descriptor, servicer)` joins a service's descriptor with plain async methods and refuses to start when a rule,
permission, scope field or RPC is missing. `Pipeline` runs each call in one order: address limit, authentication, rate,
validation of the proto's field rules, authorisation of every name in the scope fields, audit intent, handler, commit,
outcome. `Server` is a generic grpc.aio server (raw bytes, health, reflection, TLS, drain), `Channel` its client over
mTLS with Faults rebuilt from the status, `context` the signed caller context between hub services, `forward` the road
to a service that another process owns. It refuses methods without a rule, stack traces on the wire, and waits without
a deadline. It knows no database: what a call keeps goes through the `Units` and `Audit` protocols.
"""

from libs.rpc.call import Call, Caller, Kind, Method, NoRights, Rights, Scopes
from libs.rpc.client import Channel
from libs.rpc.listeners import for_agents, for_enrolment, for_services, public
from libs.rpc.peers import by_peer
from libs.rpc.pipeline import Pipeline
from libs.rpc.protocols import Audit, Limiter, Units, WorkUnit
from libs.rpc.registry import Refused, methods
from libs.rpc.server import Server
from libs.rpc.tls import Tls

__all__ = [
    "Audit",
    "Call",
    "Caller",
    "Channel",
    "Kind",
    "Limiter",
    "Method",
    "NoRights",
    "Pipeline",
    "Refused",
    "Rights",
    "Scopes",
    "Server",
    "Tls",
    "Units",
    "WorkUnit",
    "by_peer",
    "for_agents",
    "for_enrolment",
    "for_services",
    "methods",
    "public",
]
