"""The REST side over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from google.api import httpbody_pb2
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from kubegems.fleet.v1 import cluster_service_pb2
from kubegems.identity.v1 import access_service_pb2
from kubegems.messages.v1 import event_pb2
from kubegems.tenancy.v1 import member_pb2, member_service_pb2, quota_service_pb2, tenant_pb2
from libs.faults import Exhausted, NotFound
from libs.log import trace
from libs.rest import Api, HttpServer, streams
from libs.rpc import Pipeline, methods
from libs.rpc.registry import bind
from libs.rpc.tests.doubles import MESSAGES, TENANTS, Messages, Rights, Tenants, Units, Users, completed

SERVICES = [
    member_service_pb2.DESCRIPTOR.services_by_name["MemberService"],
    quota_service_pb2.DESCRIPTOR.services_by_name["QuotaService"],
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"],
]


class Echo:
    """Answers every RPC of a service with an empty reply, and shows what it was asked."""

    def __init__(self, service: Any) -> None:
        self.asked: list[Any] = []
        for method in service.methods:
            setattr(self, method.name, self._answer(GetMessageClass(method.output_type)))

    def _answer(self, kind: Any) -> Any:
        async def answer(request: Any, call: Any) -> Any:
            self.asked.append(request)
            if kind is httpbody_pb2.HttpBody:
                return kind(content_type="application/yaml", data=b"kind: Config\n")
            return kind()

        return answer


class Access:
    """Internal; must not be reachable."""

    async def ListCallerKeys(self, request: Any, call: Any) -> Any:
        return access_service_pb2.ListCallerKeysResponse()

    async def CheckAccess(self, request: Any, call: Any) -> Any:
        return access_service_pb2.CheckAccessResponse()

    async def WatchGrants(self, request: Any, call: Any) -> AsyncIterator[Any]:
        yield access_service_pb2.WatchGrantsResponse()


class Here:
    """A server with doubles, and an admin's client."""

    def __init__(self) -> None:
        self.tenants, self.messages, self.members, self.units, self.users = Tenants(), Messages(), Echo(SERVICES[0]), Units(), Users()
        served = [*methods(TENANTS, self.tenants), *methods(MESSAGES, self.messages)]
        served += methods(SERVICES[0], self.members)
        for service in SERVICES[1:]:
            served += methods(service, Echo(service))
        access = access_service_pb2.DESCRIPTOR.services_by_name["AccessService"]
        served += methods(access, completed(access, Access()))
        pipeline = Pipeline(served, authenticate=self.users, units=self.units, registry=CollectorRegistry())
        self.server = HttpServer(Api(pipeline))
        self.base = ""
        self.port = 0
        self.session: Any = None

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        sent = {"Authorization": "Bearer admin"} | {k.replace("_", "-"): v for k, v in headers.items()}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        content = None if data is None else io.BytesIO(data)
        async with self.session.request(method, self.base + path, data=content, headers=sent) as reply:
            raw = await reply.read()
            return reply.status, reply.headers, json.loads(raw) if raw and "json" in reply.content_type else raw

    async def raw(self, content: bytes) -> bytes:
        """What comes back for raw bytes, up to the first 4 KiB or the close."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(content)
        await writer.drain()
        async with asyncio.timeout(5):
            answer = await reader.read(4096)
        writer.close()
        return answer


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    trace.setup("test", endpoint=None)
    made = Here()

    async def raw(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"{request.match_info['name']} {request.match_info['tail']}")

    made.server.add_raw_route("/k8s/clusters/{name}/{tail:.*}", raw)
    made.port = await made.server.start("127.0.0.1", 0, None)
    made.base = f"http://127.0.0.1:{made.port}"
    async with aiohttp.ClientSession() as made.session:
        yield made
    await made.server.drain()


async def test_get(here: Here) -> None:
    """A path becomes a request, a reply JSON; each answer carries the ids of request and trace, and the etag."""
    status, headers, body = await here.call("GET", "/api/v1/tenants/acme")
    assert (status, body) == (200, {"name": "tenants/acme", "displayName": "Acme", "etag": "7"})
    assert len(headers["kubegems-request-id"]) == 32
    assert len(headers["kubegems-trace-id"]) == 32
    assert headers["ETag"] == '"7"'
    assert (await here.call("HEAD", "/api/v1/tenants/acme"))[0] == 200
    assert (await here.call("GET", "/api/v1/tenants/acme", If_None_Match='"7"'))[0] == 304


async def test_bodies_paths_and_queries_meet(here: Here) -> None:
    """Body `*`, body of a field, nested path variables, additional bindings, verbs and query parameters."""
    assert (await here.call("POST", "/api/v1/tenants", {"tenantId": "acme", "tenant": {"displayName": "A"}}))[0] == 200
    assert here.tenants.asked[-1].tenant.display_name == "A"
    await here.call("PATCH", "/api/v1/tenants/acme?updateMask=displayName", {"display_name": "B"})
    asked = here.tenants.asked[-1]
    assert (asked.tenant.name, asked.tenant.display_name, list(asked.update_mask.paths)) == ("tenants/acme", "B", ["display_name"])
    for at in ("tenants/a", "tenants/a/projects/p", "tenants/a/projects/p/environments/e"):
        await here.call("PUT", f"/api/v1/{at}/members/dev", {"role": "OPERATOR"})
        assert here.members.asked[-1].member == member_pb2.Member(name=f"{at}/members/dev", role=member_pb2.Member.OPERATOR)
    await here.call("POST", "/api/v1/tenants/acme:suspend")
    assert here.tenants.asked[-1].name == "tenants/acme"
    await here.call("GET", "/api/v1/tenants?page_size=7&filter=state%3DACTIVE&orderBy=name")
    assert (here.tenants.asked[-1].page_size, here.tenants.asked[-1].filter, here.tenants.asked[-1].order_by) == (7, "state=ACTIVE", "name")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/api/v1/tenants", {"tenantId": "acme", "tenat": {}}, 400, "tenat: no such field"),
        ("POST", "/api/v1/tenants", {"tenantId": "NO"}, 400, "tenant_id: 'NO' must match"),
        ("POST", "/api/v1/tenants?x=1", {"tenantId": "acme"}, 400, "x: belongs into the body"),
        ("GET", "/api/v1/tenants?pageSize=a", None, 400, "pageSize: 'a' must be a whole number"),
        ("GET", "/api/v1/tenants?pageSize=1&page_size=2", None, 400, "given twice"),
        ("GET", "/api/v1/tenants?colour=red", None, 400, "colour: no such parameter"),
        ("GET", "/api/v1/tenants/acme?name=tenants/b", None, 400, "given by the path"),
        ("PATCH", "/api/v1/tenants/acme", {"name": "tenants/globex"}, 400, "in the body is not"),
        ("PATCH", "/api/v1/tenants/acme?tenant.displayName=x", {}, 400, "given by the path or the body"),
        ("GET", "/api/v1/tenants/acme", b"{}", 400, "no body"),
        ("GET", "/api/v1/nowhere", None, 404, "no such path"),
        ("GET", "/api/v1/tenants/acme/", None, 400, "empty"),
        ("POST", "/api/v1/tenants", b"{", 400, "no JSON"),
        ("POST", "/api/v1/tenants", b"x" * 1_100_000, 413, "more than"),
    ],
)
async def test_refuses(here: Here, *, method: str, path: str, body: Any, status: int, words: str) -> None:
    """Each mistake has its status and a message that names it; nothing reaches a handler."""
    got, _, error = await here.call(method, path, body)
    assert got == status, error
    assert error["error"]["code"] == status
    assert words in error["error"]["message"]
    assert error["error"]["details"][0]["domain"] == "kubegems.io"
    assert not here.tenants.asked


async def test_all_wrong_fields_come_at_once(here: Here) -> None:
    """Unknown fields of body and query are told together, as violations with paths."""
    _, _, error = await here.call("PATCH", "/api/v1/tenants/acme?zz=1", {"a": 1, "displayName": 2})
    fields = [v["field"] for v in error["error"]["details"][1]["fieldViolations"]]
    assert fields == ["tenant.a", "tenant.display_name", "zz"]


async def test_what_cannot_be_read_and_what_breaks_a_rule_come_at_once(here: Here) -> None:
    """A field that is not there beside a missing and a wrong one; of a field whose value is no value its rules say nothing more."""
    _, _, error = await here.call("POST", "/api/v1/tenants", {"tenantID": "acme", "requestId": "x" * 100, "tenant": {"displayName": 2}})
    wrong = {v["field"]: v["description"] for v in error["error"]["details"][1]["fieldViolations"]}
    assert {"tenantID": "no such field", "tenant_id": "is required"}.items() <= wrong.items()
    assert wrong.keys() == {"tenantID", "tenant_id", "request_id", "tenant.display_name"}


async def test_the_forms_of_http(here: Here) -> None:
    """405 with Allow, 406, 415; a method override is not looked at."""
    status, headers, _ = await here.call("PUT", "/api/v1/tenants/acme")
    assert (status, headers["Allow"]) == (405, "DELETE, GET, HEAD, OPTIONS, PATCH")
    assert (await here.call("GET", "/api/v1/tenants/acme", Accept="text/html"))[0] == 406
    assert (await here.call("GET", "/api/v1/messages:subscribe", Accept="application/json"))[0] == 406
    assert (await here.call("POST", "/api/v1/tenants", b"a=b", Content_Type="application/x-www-form-urlencoded"))[0] == 415
    assert (await here.call("POST", "/api/v1/tenants", b"{}", Content_Encoding="gzip"))[0] == 415
    assert (await here.call("GET", "/api/v1/tenants/acme", X_HTTP_Method_Override="DELETE"))[0] == 200
    assert not [r for r in here.tenants.asked if type(r).__name__ == "DeleteTenantRequest"]


async def test_faults_become_statuses(here: Here) -> None:
    """The standard mapping, with Retry-After and WWW-Authenticate."""
    here.tenants.raises = Exhausted("slow down", retry_after=timedelta(seconds=1.5))
    status, headers, error = await here.call("GET", "/api/v1/tenants/acme")
    assert (status, headers["Retry-After"], error["error"]["status"]) == (429, "2", "RESOURCE_EXHAUSTED")
    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"} in error["error"]["details"]
    status, headers, _ = await here.call("GET", "/api/v1/tenants/acme", Authorization="Bearer nobody")
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert len(headers["kubegems-request-id"]) == 32
    here.users.known["dev"] = Rights()
    assert (await here.call("GET", "/api/v1/tenants/acme", Authorization="Bearer dev"))[0] == 404


async def test_internal_methods_are_nowhere(here: Here) -> None:
    """No path, no verb and no name reaches a method that is internal."""
    for path in ("/kubegems.identity.v1.AccessService/ListCallerKeys", "/api/v1/callerKeys", "/api/v1/accessService:listCallerKeys"):
        assert (await here.call("POST", path, {}))[0] == 404


async def test_raw_bodies_and_routes(here: Here) -> None:
    """HttpBody goes out as it is; a raw route owns its paths."""
    status, headers, body = await here.call("GET", "/api/v1/clusters/local:kubeconfig")
    assert (status, headers["Content-Type"], body) == (200, "application/yaml", b"kind: Config\n")
    assert (await here.call("GET", "/k8s/clusters/local/api/v1/pods"))[2] == b"local api/v1/pods"


async def test_etags_and_request_ids_travel_in_headers(here: Here) -> None:
    """If-Match is the etag, Idempotency-Key the request id; a body that says otherwise is refused."""
    await here.call("PATCH", "/api/v1/tenants/acme", {}, If_Match='"5"')
    assert here.tenants.asked[-1].tenant.etag == "5"
    await here.call("DELETE", "/api/v1/tenants/acme", If_Match='"6"')
    assert here.tenants.asked[-1].etag == "6"
    assert (await here.call("PATCH", "/api/v1/tenants/acme", {"etag": "4"}, If_Match='"5"'))[0] == 400
    for replayed in (None, "true"):
        status, headers, _ = await here.call("POST", "/api/v1/tenants", {"tenantId": "acme"}, Idempotency_Key="k1")
        assert (status, headers.get("kubegems-replayed")) == (200, replayed)
    assert here.tenants.asked[-1].request_id == "k1"
    assert (await here.call("POST", "/api/v1/tenants", {"tenantId": "acme", "requestId": "k2"}, Idempotency_Key="k1"))[0] == 400


async def _lines(here: Here, accept: str, path: str = "/api/v1/messages:subscribe") -> Any:
    reply = await here.session.get(here.base + path, headers={"Authorization": "Bearer admin", "Accept": accept})
    assert reply.status == 200, await reply.text()
    return reply


async def test_sse_is_live_and_ends_with_its_client(here: Here) -> None:
    """Headers come before any event, each event when it is sent; a client that goes ends the handler within a second."""
    reply = await asyncio.wait_for(_lines(here, "text/event-stream"), 2)
    assert reply.content_type == "text/event-stream"
    for number in ("1", "2"):
        here.messages.events.put_nowait(event_pb2.Event(scope=number, resume_token=f"t{number}"))
        lines = [(await asyncio.wait_for(reply.content.readline(), 1)).decode().strip() for _ in range(3)]
        assert lines[0] == f"id: t{number}"
        assert json.loads(lines[1].removeprefix("data: "))["scope"] == number
    reply.close()
    await asyncio.wait_for(here.messages.closed.wait(), 1)


async def test_ndjson_batches_what_is_ready_and_ends_with_its_fault(here: Here) -> None:
    """One line per message, an error as the last line, then the end."""
    for number in range(50):
        here.messages.events.put_nowait(event_pb2.Event(scope=str(number)))
    here.messages.events.put_nowait(NotFound("gone"))
    reply = await _lines(here, "*/*")
    rows = [json.loads(row) for row in (await asyncio.wait_for(reply.read(), 2)).splitlines()]
    assert [row.get("scope") for row in rows[:-1]] == [str(n) for n in range(50)]
    assert rows[-1]["error"]["status"] == "NOT_FOUND"


async def test_a_refused_stream_is_an_error_and_no_stream(here: Here) -> None:
    """Refusals and faults at once have their own status."""
    headers = {"Accept": "text/event-stream"}
    assert (await here.session.get(here.base + "/api/v1/messages:subscribe", headers=headers)).status == 401
    here.messages.events.put_nowait(NotFound("no such scope"))
    reply = await here.session.get(here.base + "/api/v1/messages:subscribe", headers=headers | {"Authorization": "Bearer admin"})
    assert (reply.status, reply.content_type) == (404, "application/json")


async def test_silence_is_filled(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment goes out when nothing happens for the keep-alive's time."""
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.05)
    reply = await _lines(here, "text/event-stream")
    assert await asyncio.wait_for(reply.content.readline(), 2) == b": keep-alive\n"
    reply.close()


async def test_query_parameters_of_a_stream_repeat(here: Here) -> None:
    """A repeated field takes its parameter several times."""
    here.messages.events.put_nowait(None)
    reply = await _lines(here, "*/*", "/api/v1/messages:subscribe?scopes=tenants/a&scopes=tenants/b&snapshot=true")
    await reply.read()
    assert here.messages.calls[0].resources == ["tenants/a", "tenants/b"]


async def test_an_eventsource_goes_on_where_it_was(here: Here) -> None:
    """`Last-Event-ID` is the resume token, and wins over the one of the URL, which an EventSource sends again and again."""
    here.messages.events.put_nowait(None)
    headers = {"Authorization": "Bearer admin", "Accept": "text/event-stream", "Last-Event-ID": "t7"}
    async with here.session.get(here.base + "/api/v1/messages:subscribe?resumeToken=t1", headers=headers) as reply:
        assert reply.status == 200
        await reply.read()
    assert here.messages.requests[0].resume_token == "t7"


async def test_a_client_that_goes_cancels_its_call(here: Here) -> None:
    """An answer that nobody waits for is not computed to its end."""
    here.tenants.wait = asyncio.Event()
    task = asyncio.create_task(here.call("GET", "/api/v1/tenants/acme"), name="client")
    while not here.tenants.asked:
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait_for(here.tenants.cancelled.wait(), 1)


_GET = b"GET /api/v1/tenants/acme HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n"
_POST = b"POST /api/v1/tenants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        _POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        _POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        _POST + b"Content-Length: +2\r\n\r\n{}",
        _GET + b"X-Folded: a\r\n b\r\n\r\n",
        _GET + b"X-Bad: a\x00b\r\n\r\n",
        _GET + b"X Bad: a\r\n\r\n",
        _GET + b"X-Bad : a\r\n\r\n",
        _GET + b"Authorization: Bearer other\r\n\r\n",
        _GET + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/tenants/../tenants/acme HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n\r\n",
        b"GET /api/v1/tenants%2Facme HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n\r\n",
    ],
    ids=lambda content: content[-40:].decode("latin-1"),
)
async def test_refuses_what_two_parsers_could_read_differently(here: Here, request_bytes: bytes) -> None:
    """Smuggling, folding, doubled and oversized headers, crooked paths: 4xx, and no handler runs."""
    assert (await here.raw(_GET + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
    here.tenants.asked.clear()
    answer = await here.raw(request_bytes)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]
    assert not here.tenants.asked


async def test_what_another_process_answered_is_encoded_here() -> None:
    """Forwarded replies and stream items come as bytes, and go out as JSON."""

    async def get(request: Any, _call: Any) -> bytes:
        return bytes(tenant_pb2.Tenant(name=request.name, display_name="Far").SerializeToString())

    async def subscribe(_request: Any, _call: Any) -> AsyncIterator[bytes]:
        yield event_pb2.Event(scope="far").SerializeToString()

    rpcs = ((TENANTS.methods_by_name["GetTenant"], get), (MESSAGES.methods_by_name["Subscribe"], subscribe))
    served = [bind(rpc, handler, forwarded=True) for rpc, handler in rpcs]
    server = HttpServer(Api(Pipeline(served, authenticate=Users(), registry=CollectorRegistry())))
    base = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}/api/v1"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer admin"}) as session:
        assert await (await session.get(f"{base}/tenants/acme")).json() == {"name": "tenants/acme", "displayName": "Far"}
        assert json.loads(await (await session.get(f"{base}/messages:subscribe")).read()) == {"scope": "far"}
    await server.drain()
