"""Headers that become fields."""

from __future__ import annotations

import pytest

from kubegems.tenancy.v1 import tenant_service_pb2
from libs.faults import Invalid
from libs.rest import headers


def test_a_header_that_is_no_utf8_is_a_wrong_field() -> None:
    """Stray bytes, which arrive as surrogates, name the field; a good value is taken, another than the body's is not."""
    message = tenant_service_pb2.CreateTenantRequest()
    with pytest.raises(Invalid, match="Idempotency-Key must be UTF-8"):
        headers._agree(message, "request_id", "\udcb5HS", "Idempotency-Key")
    assert headers._agree(message, "request_id", "once", "Idempotency-Key")
    with pytest.raises(Invalid, match="is not"):
        headers._agree(message, "request_id", "twice", "Idempotency-Key")
    assert message.request_id == "once"
