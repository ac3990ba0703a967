"""Field rules."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.fleet.v1 import cluster_service_pb2, enrolment_service_pb2
from kubegems.identity.v1 import session_service_pb2, user_service_pb2
from kubegems.jobs.v1 import job_pb2, job_service_pb2
from kubegems.messages.v1 import message_service_pb2
from kubegems.tenancy.v1 import environment_service_pb2, quota_pb2, quota_service_pb2, tenant_pb2, tenant_service_pb2
from libs.faults import Invalid
from libs.rpc.validation import validate


def violations(message: Any) -> dict[str, str]:
    """Field → what is wrong with it."""
    try:
        validate(message)
    except Invalid as fault:
        return {v.field: v.description for v in fault.violations}
    return {}


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (tenant_service_pb2.CreateTenantRequest(), "tenant_id", "is required"),
        (tenant_service_pb2.CreateTenantRequest(tenant_id="Acme"), "tenant_id", "'Acme' must match"),
        (tenant_service_pb2.CreateTenantRequest(tenant_id="acme\n"), "tenant_id", "must match"),
        (
            tenant_service_pb2.CreateTenantRequest(tenant_id="a", tenant=tenant_pb2.Tenant(display_name="x" * 129)),
            "tenant.display_name",
            "129 characters; at most 128",
        ),
        (tenant_service_pb2.CreateTenantRequest(tenant_id="a", tenant=tenant_pb2.Tenant(name="nope")), "tenant.name", "must match"),
        (tenant_service_pb2.UpdateTenantRequest(), "tenant", "is required"),
        (tenant_service_pb2.ListTenantsRequest(page_size=-1), "page_size", "-1 must be at least 0"),
        (tenant_service_pb2.ListTenantsRequest(page_size=501), "page_size", "501 must be at most 500"),
        (tenant_service_pb2.ListTenantsRequest(filter="x" * 4097), "filter", "4097 characters; at most"),
        (cluster_service_pb2.ConfirmClusterRequest(name="clusters/a"), "generation", "is required"),
        (
            environment_service_pb2.CreateEnvironmentRequest(parent="tenants/a/projects/b", environment_id="dev"),
            "environment.cluster",
            "is required",
        ),
        (
            user_service_pb2.ChangePasswordRequest(name="users/me", old_password="the same words", new_password="the same words"),
            "new_password",
            "must differ from old_password",
        ),
        (message_service_pb2.SubscribeRequest(scopes=["tenants/a", "x"]), "scopes[1]", "'x' must match"),
        (message_service_pb2.SubscribeRequest(scopes=["tenants/a"] * 65), "scopes", "65 items; at most 64"),
        (
            quota_service_pb2.UpdateTenantQuotaRequest(quota=quota_pb2.TenantQuota(hard={"limits.cpu": "many"})),
            "quota.hard[limits.cpu]",
            "'many' must be a Kubernetes quantity",
        ),
        (
            quota_service_pb2.UpdateTenantQuotaRequest(quota=quota_pb2.TenantQuota(hard={"limits.cpu": "-1"})),
            "quota.hard[limits.cpu]",
            "not negative",
        ),
        (enrolment_service_pb2.RenewRequest(certificate="c", certificate_request="r", proof=b"x" * 1025), "proof", "1025"),
    ],
)
def test_names_the_field_and_the_value(message: Any, field: str, words: str) -> None:
    """A wrong value is told with its path in proto names."""
    assert words in violations(message).get(field, "")


def test_tells_all_at_once() -> None:
    """Every wrong field is in one answer."""
    wrong = user_service_pb2.CreateUserRequest(user_id="A B", initial_password="short", request_id="x" * 65)
    assert set(violations(wrong)) == {"user_id", "initial_password", "request_id"}


def test_never_shows_a_secret() -> None:
    """A wrong password is not in the message."""
    assert "short" not in str(violations(user_service_pb2.CreateUserRequest(user_id="a", initial_password="short")))


def test_refuses_an_unknown_enum_number() -> None:
    """A number that names no value is refused, with the names that there are."""
    request: Any = user_service_pb2.UpdateUserRequest()
    request.user.platform_role = 99
    assert "99 is none of" in violations(request)["user.platform_role"]


def test_clears_what_is_the_servers() -> None:
    """Output-only fields do not reach the handler."""
    request = tenant_service_pb2.CreateTenantRequest(
        tenant_id="acme", tenant=tenant_pb2.Tenant(uid="forged", state=tenant_pb2.Tenant.SUSPENDED)
    )
    validate(request)
    assert not request.tenant.uid
    assert not request.tenant.state


_HARD = {"limits.cpu\0": "1", "limits.memory": "1\0"}


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (tenant_service_pb2.ListTenantsRequest(filter="a\0", page_token="\0"), {"filter", "page_token"}),
        (tenant_service_pb2.CreateTenantRequest(tenant_id="a", tenant=tenant_pb2.Tenant(description="a\0b")), {"tenant.description"}),
        (session_service_pb2.CreateSessionRequest(username="a\0", password="\0 is none"), {"username", "password"}),
        (message_service_pb2.SubscribeRequest(scopes=["tenants/\0"]), {"scopes[0]"}),
        (
            quota_service_pb2.UpdateTenantQuotaRequest(quota=quota_pb2.TenantQuota(name="tenants/a/quotas/b", hard=_HARD)),
            {"quota.hard[limits.cpu\ufffd]", "quota.hard[limits.memory]"},
        ),
        (
            tenant_service_pb2.UpdateTenantRequest(tenant=tenant_pb2.Tenant(), update_mask=FieldMask(paths=["a\0"])),
            {"update_mask"},
        ),
    ],
)
def test_no_text_holds_a_nul(message: Any, fields: set[str]) -> None:
    """Wherever a text stands; PostgreSQL keeps none, and the value is not shown."""
    found = violations(message)
    assert {field for field, said in found.items() if "NUL character" in said} == fields
    assert "is none" not in str(found)


@pytest.mark.parametrize("payload", [{"a\0": 1}, {"a": {"b": ["c", "\0"]}}])
def test_no_free_form_holds_a_nul(payload: Any) -> None:
    """Nor do a Struct's keys and values, however deep; one without passes."""
    for given, wrong in ((payload, {"job.payload"}), ({"a": ["b"]}, set())):
        request = job_service_pb2.CreateJobRequest(job=job_pb2.Job(kind="k", target="tenants/a"))
        request.job.payload.update(given)
        assert {field for field, said in violations(request).items() if "NUL" in said} == wrong


@pytest.mark.parametrize("quantity", ["1", "500m", "1.5", ".5", "4Gi", "1e3", "+2", "100Mi"])
def test_takes_quantities(quantity: str) -> None:
    """Kubernetes' own forms pass."""
    request = quota_service_pb2.UpdateTenantQuotaRequest(
        quota=quota_pb2.TenantQuota(name="tenants/a/quotas/b", hard={"limits.cpu": quantity})
    )
    assert violations(request) == {}
