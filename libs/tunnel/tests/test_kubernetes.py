"""How a Kubernetes request is read: one path, one verb, the headers that may travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.faults import Fault, Invalid, PermissionDenied
from libs.tunnel.kubernetes import HOP_BY_HOP, may_be_sent, reply_headers, request_headers, target, upgrade_of

NS = "/api/v1/namespaces/a"


@pytest.mark.parametrize(
    ("method", "path", "query", "verb", "about"),
    [
        ("GET", "/api/v1/pods", "", "list", ("", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch=1", "watch", ("", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch=True", "watch", ("", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "limit=5&watch", "watch", ("", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch=false", "list", ("", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "w%61tch=true", "watch", ("", "pods", "", "", "")),
        ("GET", "/api/v1/watch/pods", "", "watch", ("", "pods", "", "", "")),
        ("GET", f"{NS}/pods/b", "", "get", ("", "pods", "a", "b", "")),
        ("HEAD", f"{NS}/pods/b", "", "get", ("", "pods", "a", "b", "")),
        ("GET", f"{NS}/pods/b/log", "follow=true", "get", ("", "pods", "a", "b", "log")),
        ("POST", f"{NS}/pods", "", "create", ("", "pods", "a", "", "")),
        ("PUT", f"{NS}/pods/b/status", "", "update", ("", "pods", "a", "b", "status")),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b", "", "patch", ("apps", "deployments", "a", "b", "")),
        ("DELETE", "/apis/apps/v1/namespaces/a/deployments/b", "", "delete", ("apps", "deployments", "a", "b", "")),
        ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "", "deletecollection", ("apps", "deployments", "a", "", "")),
        ("GET", NS, "", "get", ("", "namespaces", "a", "a", "")),
        ("PUT", f"{NS}/finalize", "", "update", ("", "namespaces", "a", "a", "finalize")),
        ("GET", f"{NS}/pods/b/exec", "command=x", "create", ("", "pods", "a", "b", "exec")),
        ("GET", f"{NS}/pods/b/attach", "", "create", ("", "pods", "a", "b", "attach")),
        ("POST", f"{NS}/pods/b/portforward", "", "create", ("", "pods", "a", "b", "portforward")),
        ("GET", "/api/v1/nodes/n/proxy/run/x", "", "proxy", ("", "nodes", "", "n", "proxy")),
        ("GET", "/version/", "", "get", ("", "", "", "", "")),
        ("GET", "/openapi/v3/apis/apps/v1", "", "get", ("", "", "", "", "")),
        ("GET", "/apis/apps/v1", "", "get", ("", "", "", "", "")),
        ("POST", "/healthz", "", "post", ("", "", "", "", "")),
    ],
)
def test_the_verb_is_the_api_servers(method: str, path: str, query: str, verb: str, about: tuple[str, ...]) -> None:
    """Method, path and query together make the verb, as in the API server's RequestInfo."""
    found = target(method, path, query, "")
    assert (found.verb, (found.group, found.resource, found.namespace, found.name, found.subresource)) == (verb, about)


@pytest.mark.parametrize("subresource", ["exec", "attach", "portforward"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_upgrade_is_a_create_whatever_the_method(subresource: str, method: str) -> None:
    """A WebSocket GET needs no less than a POST, and is SENSITIVE."""
    found = target(method, f"{NS}/pods/b/{subresource}", "", "websocket")
    assert (found.verb, found.sensitive, found.action, found.endless) == ("create", True, subresource, True)


@pytest.mark.parametrize("path", ["/api/v1/secrets", f"{NS}/secrets/x", f"{NS}/serviceaccounts/x/token", f"{NS}/services/x/proxy"])
def test_credentials_and_proxies_are_sensitive(path: str) -> None:
    """Whatever shows or makes credentials, or reaches through, is marked; a group that has its own `secrets` is not."""
    assert target("GET", path, "", "").sensitive
    assert not target("GET", "/apis/example.com/v1/secrets", "", "").sensitive


def test_a_path_is_written_in_one_way() -> None:
    """However it was encoded, the same path goes out."""
    assert target("GET", "/api/v1/namespaces/%61/p%6Fds/system%3Ax", "", "").path == "/api/v1/namespaces/a/pods/system:x"
    assert target("GET", "/api/v1/namespaces/a/pods/b%20c", "", "").path == "/api/v1/namespaces/a/pods/b%20c"


@given(st.text(alphabet="/.%2eEfF5cCapi1vnods\\;:~@ \x00\x7fä", max_size=40))
def test_no_path_leads_elsewhere(tail: str) -> None:
    """Whatever is accepted has no dots, double slashes or encoded separators, and reads the same again."""
    try:
        found = target("GET", "/" + tail, "", "")
    except Fault:
        return
    lower = found.path.lower()
    assert "//" not in found.path
    assert not any(bad in lower for bad in ("%2f", "%5c", "%00", "%2e", "%25", "\\", " "))
    assert not {".", ".."} & set(found.path.split("/"))
    assert target("GET", found.path, "", "") == found


@pytest.mark.parametrize("method", ["OPTIONS", "CONNECT", "TRACE", "get", ""])
def test_an_unknown_verb_is_denied(method: str) -> None:
    """What means nothing to Kubernetes is not sent."""
    with pytest.raises(PermissionDenied):
        target(method, "/api/v1/pods", "", "")


FORBIDDEN = ("impersonate-user", "impersonate-extra-x", "authorization", "x-remote-user")
NAMES = st.sampled_from([*sorted(HOP_BY_HOP), *FORBIDDEN, "accept", "x-a", "content-type"])
VALUES = st.sampled_from(["close", "x-a", "impersonate-user", "a, x-a", "accept"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8, unique_by=lambda p: p[0]))
def test_no_mix_of_headers_smuggles_one(pairs: list[tuple[str, str]]) -> None:
    """Whatever is combined: no hop-by-hop, credential or impersonation header travels, and none that Connection names."""
    raw = [(n.title().encode(), v.encode()) for n, v in pairs]
    named = {t.strip() for n, v in pairs if n == "connection" for t in v.split(",")}
    try:
        sent = {name for name, _ in request_headers(raw)}
    except (Invalid, PermissionDenied):
        return
    assert not any(n.startswith("impersonate-") for n, _ in pairs)
    assert not sent & (HOP_BY_HOP | named | {"authorization", "x-remote-user"})
    assert sent == {n for n, _ in pairs if n in ("accept", "x-a", "content-type") and n not in named}


def test_names_with_underscores_do_not_travel() -> None:
    """Whoever takes an underscore for a hyphen would read another header."""
    raw = [(b"Impersonate_User", b"admin"), (b"Content_Length", b"5"), (b"X_A", b"b"), (b"X-A", b"c")]
    assert request_headers(raw) == (("x-a", b"c"),)


def test_the_agent_asks_again() -> None:
    """What the hub should have dropped, the agent does not send."""
    for name in ("impersonate-user", "authorization", "connection", "x-remote-group", "Accept", "a b", "x:y", "impersonate_user"):
        assert not may_be_sent(name, b"x")
    assert not may_be_sent("x-a", b"a\r\nImpersonate-User: b")
    assert may_be_sent("x-a", b"b")


def test_upgrades_are_kubernetes_own() -> None:
    """WebSocket and SPDY/3.1, only when Connection says so."""
    assert upgrade_of([(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket")]) == "websocket"
    assert upgrade_of([(b"connection", b"upgrade"), (b"upgrade", b"spdy/3.1")]) == "SPDY/3.1"
    assert not upgrade_of([(b"Upgrade", b"websocket")])
    with pytest.raises(Invalid):
        upgrade_of([(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")])


def test_answers_headers_are_cleaned() -> None:
    """Cookies, hop-by-hop headers and those that Connection names stay in the cluster."""
    raw = [
        (b"Connection", b"x-a"),
        (b"X-A", b"1"),
        (b"Set-Cookie", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Audit-Id", b"7"),
        (b"b\x00", b"1"),
    ]
    assert reply_headers(raw) == (("audit-id", b"7"),)
