"""How large requests may be, and which answers may be compressed; both by the method."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from kubegems.policy.v1 import policy_pb2
from libs.faults import Exhausted
from libs.rpc import fields
from libs.rpc.call import Method

PUBLIC_BYTES = 1024 * 1024
INTERNAL_BYTES = 8 * 1024 * 1024
COMPRESSED_FROM = 1024  # bytes; below, an answer fits a packet or two and compressing only costs
HTTP_BODY = "google.api.HttpBody"


class TooLarge(Exhausted):
    """The request is larger than its method takes; trying again does not help."""

    reason = "REQUEST_TOO_LARGE"


def most(method: Method) -> int:
    """Bytes of the largest request that a method takes."""
    return method.rule.max_request_bytes or (INTERNAL_BYTES if method.rule.internal else PUBLIC_BYTES)


def refuse(method: Method, size: int) -> None:
    """Raises TooLarge when a request of so many bytes is too large."""
    limit = most(method)
    if size > limit:
        raise TooLarge(f"the request has more than {limit} bytes, which is all that {method.descriptor.name} takes", {"limit": str(limit)})


def compressible(method: Method) -> bool:
    """Whether answers may be compressed: none that may hold a secret, since its length would tell of it (BREACH)."""
    if method.rule.audit == policy_pb2.Rule.SENSITIVE or method.rule.auth != policy_pb2.Rule.USER:
        return False
    return not _secret(method.descriptor.output_type, set())


def _secret(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(fields.rule(f).secret or (f.message_type is not None and _secret(f.message_type, seen)) for f in descriptor.fields)
