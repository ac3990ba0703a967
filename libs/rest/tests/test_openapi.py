"""The document of a service with every form of binding, and how rules become keywords."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf import any_pb2, duration_pb2, struct_pb2, wrappers_pb2

from kubegems.fleet.v1 import cluster_service_pb2
from kubegems.identity.v1 import user_service_pb2
from kubegems.jobs.v1 import job_pb2
from kubegems.messages.v1 import message_service_pb2
from kubegems.tenancy.v1 import environment_pb2, environment_service_pb2, quota_pb2, tenant_service_pb2
from libs.rest.openapi import About, comments, document, fields, paths, schemas
from libs.rest.tests.library import LIBRARY
from libs.rpc.registry import bind

ABOUT = About(title="T", version="v1", placeholders={"tenant": "acme"})


def of(*services: Any, said: Any = None) -> dict[str, Any]:
    return document([bind(d, None) for service in services for d in service.methods], ABOUT, said)


def service(module: Any) -> Any:
    (found,) = module.DESCRIPTOR.services_by_name.values()
    return found


def test_every_form_of_binding_has_its_place() -> None:
    """Verbs, variables over many segments, any method, bodies and replies that are fields or raw, streams."""
    found = of(LIBRARY, said={})["paths"]
    book = found["/v1/shelves/{shelve}/books/{book}"]
    assert [p["name"] for p in book["get"]["parameters"] if p["in"] == "path"] == ["shelve", "book"]
    assert "report" not in book, "OpenAPI has no place for other methods"
    assert found["/v1/shelves/{shelve}/books/{book}/titles"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "type": "array", "items": {"type": "string"},
    }  # fmt: skip
    assert (
        found["/v1/shelves/{shelve}/books/{book}/titles"]["put"]["requestBody"]["content"]["application/json"]["schema"]["type"] == "array"
    )
    assert set(found["/v1/rest/{rest}:any"]) == {"get", "put", "post", "delete", "patch"}
    assert "slashes" in found["/v1/rest/{rest}:any"]["get"]["parameters"][0]["description"]
    assert "/v1/{v1}/any/{any}" in found, "the second binding, whose first star no field takes"
    upload, download = found["/v1/files/{file}:upload"]["post"], found["/v1/files/{file}:download"]["get"]
    assert (list(upload["requestBody"]["content"]), upload["x-kubegems-max-request-bytes"]) == (["*/*"], 8 * 1024 * 1024)
    assert (list(download["responses"]["200"]["content"]), download["x-kubegems-stream"]) == (["*/*"], "raw")
    tail = found["/v1/shelves/{shelve}/books/{book}:tail"]["get"]["responses"]["200"]["content"]
    assert list(tail) == ["application/x-ndjson", "text/event-stream"]


def test_query_parameters_are_what_is_left() -> None:
    """Neither path nor body, dotted where nested, lists exploded, no lists of messages."""
    get = of(service(tenant_service_pb2), said={})["paths"]["/api/v1/tenants/{tenant}"]
    assert {p["name"] for p in get["get"]["parameters"] if p["in"] == "query"} == set()
    assert {p["name"] for p in get["patch"]["parameters"] if p["in"] == "query"} == {"updateMask"}
    assert {p["name"] for p in get["delete"]["parameters"] if p["in"] == "query"} == {"etag"}
    both = of(service(message_service_pb2), said={})["paths"]["/api/v1/messages:subscribe"]
    query = {p["name"]: p for p in both["get"]["parameters"] if p["in"] == "query"}
    assert query["scopes"]["schema"]["type"] == "array"
    assert not [p for p in both["post"]["parameters"] if p["in"] == "query"]
    assert "Last-Event-ID" in {p["name"] for p in both["get"]["parameters"]}


def test_rules_are_keywords() -> None:
    """Required, lengths, patterns, ranges, quantities, secrets, what is the server's; only of what is sent."""
    made = schemas.Schemas({})
    create = made.object(environment_service_pb2.CreateEnvironmentRequest.DESCRIPTOR, sent=True, elsewhere=("parent",))
    assert (create["required"], create["additionalProperties"], create["properties"]["parent"]["readOnly"]) == (
        ["environmentId"],
        False,
        True,
    )
    assert create["properties"]["environmentId"]["pattern"] == "^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$"
    listed = made.object(tenant_service_pb2.ListTenantsRequest.DESCRIPTOR, sent=True)
    assert {"minimum": 0, "maximum": 500}.items() <= listed["properties"]["pageSize"].items()
    hard = made.object(quota_pb2.TenantQuota.DESCRIPTOR, sent=True)["properties"]["hard"]
    assert (hard["minProperties"], hard["additionalProperties"]["x-kubegems-format"]) == (1, "quantity")
    for quantity, fits in (("500m", True), ("many", False)):
        assert bool(re.search(hard["additionalProperties"]["pattern"], quantity)) is fits
    secret = made.object(user_service_pb2.CreateUserRequest.DESCRIPTOR, sent=True)["properties"]["initialPassword"]
    assert (secret["writeOnly"], secret["format"]) == (True, "password")
    environment = made.object(environment_pb2.Environment.DESCRIPTOR, sent=True)["properties"]
    assert (environment["uid"]["readOnly"], environment["cluster"]["x-kubegems-immutable"]) == (True, True)
    answered = made.object(environment_pb2.Environment.DESCRIPTOR, sent=False)
    assert "required" not in answered
    assert "additionalProperties" not in answered
    assert "pattern" not in answered["properties"]["cluster"]


def test_types_are_those_of_proto3_json() -> None:
    """Wide integers, enums, bytes, well-known types."""
    job = {f.name: f for f in job_pb2.Job.DESCRIPTOR.fields}
    assert fields.plain(job["state"])["enum"][:2] == ["STATE_UNSPECIFIED", "QUEUED"]
    confirm = cluster_service_pb2.ConfirmClusterRequest.DESCRIPTOR.fields_by_name["generation"]
    assert fields.plain(confirm)["type"] == "string"
    assert {kind["type"] for kind in fields.plain(confirm, sent=True)["anyOf"]} == {"string", "integer"}
    assert fields.plain(confirm, text=True)["type"] == "integer"
    for message, kind in (
        (duration_pb2.Duration, "string"), (struct_pb2.Struct, "object"), (struct_pb2.ListValue, "array"), (any_pb2.Any, "object"),
        (wrappers_pb2.BoolValue, "boolean"), (wrappers_pb2.BytesValue, "string"), (wrappers_pb2.Int64Value, "string"),
    ):  # fmt: skip
        assert (fields.known(message.DESCRIPTOR) or {})["type"] == kind
    assert fields.known(struct_pb2.Value.DESCRIPTOR) == {}
    assert "anyOf" in fields.plain(wrappers_pb2.DoubleValue.DESCRIPTOR.fields_by_name["value"])


def test_rules_over_several_fields() -> None:
    """Those that differ in kind: at least one, at most one; JSON schema cannot say `different`."""
    for name, message in vars(job_pb2).items():
        if hasattr(message, "DESCRIPTOR") and hasattr(message.DESCRIPTOR, "oneofs"):
            schema = schemas.Schemas({}).object(message.DESCRIPTOR, sent=True)
            assert ("allOf" in schema) == any(len(o.fields) > 1 for o in message.DESCRIPTOR.oneofs), name


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("tenants/[^/]+", ["tenants", "[^/]+"]),
        ("tenants/[^/]+/x/[a-z]([a-z/]{0,2}[a-z])?", ["tenants", "[^/]+", "x", "[a-z]([a-z/]{0,2}[a-z])?"]),
        ("tenants/[^/]+(/projects/[^/]+)?", []),
        ("users/[^/]+|tenants/[^/]+", []),
        ("", []),
    ],
)
def test_an_expression_is_taken_apart_only_where_it_can_be(pattern: str, parts: list[str]) -> None:
    """Slashes in brackets are none; a choice or a group over slashes cannot be split."""
    assert paths.slashed(pattern) == parts


@pytest.mark.parametrize(
    ("word", "one"), [("tenants", "tenant"), ("policies", "policy"), ("inbox", "inbox"), ("statuses", "status"), ("apiKeys", "apiKey")]
)
def test_parameters_are_named_in_the_singular(word: str, one: str) -> None:
    """By the collection before them."""
    assert paths.singular(word) == one


def test_comments_say_it() -> None:
    """First sentences, examples, and the names of resources with their places filled."""
    assert comments.summary("Makes a tenant. ALREADY_EXISTS when not.") == "Makes a tenant"
    assert comments.example("Hard quota, such as `limits.cpu`: `4`.", {}) == "limits.cpu"
    assert comments.example("`tenants/{tenant}/members/{member}`.", {"tenant": "acme"}) == "tenants/acme/members/member"
    assert comments.example("Name for people.", {}) is None
    loaded = comments.load()
    assert loaded["kubegems.tenancy.v1.TenantService.CreateTenant"].startswith("Makes a tenant.")
    assert loaded["kubegems.tenancy.v1.Tenant.State.SUSPENDED"]
