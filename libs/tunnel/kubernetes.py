"""A Kubernetes request on a stream: its one canonical path, the verb it means, and the headers that may travel.

Both ends read a request with these functions, so what is authorised is what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from libs.faults import Invalid, PermissionDenied

Header = tuple[str, bytes]
SPDY = "SPDY/3.1"
WEBSOCKET = "websocket"
_UPGRADES = {SPDY.lower(): SPDY, WEBSOCKET: WEBSOCKET}
STREAMED = frozenset({"exec", "attach", "portforward"})  # subresources that run things
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PLAIN_VERBS = {"GET": "get", "HEAD": "get", "POST": "post", "PUT": "put", "PATCH": "patch", "DELETE": "delete"}
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]{}|^`\"<>-]|%[0-9A-Fa-f]{2})*")
_SAFE = "!$&'()*+,;=:@~"
_MOST_PATH = 4096
_MOST_QUERY = 16 * 1024
_NAMESPACE_PARTS = frozenset({"status", "finalize"})


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about, as the API server itself reads it.

    Attributes:
        path: canonical path, percent-encoded.
        verb: Kubernetes verb, `proxy` for proxied requests, or the lower-case method of a path that is no resource.
        group: API group; empty for core.
        version: API version.
        resource: plural, such as `pods`; empty for a path that is no resource.
        namespace: namespace; empty for cluster-wide.
        name: object name; empty for a collection.
        subresource: such as `exec` or `log`.
    """

    path: str
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def reads(self) -> bool:
        """Whether it only reads."""
        return self.verb in ("get", "list", "watch")

    @property
    def sensitive(self) -> bool:
        """Whether it runs something, proxies, or shows or makes credentials."""
        if self.subresource in STREAMED or self.verb == "proxy":
            return True
        return (self.group, self.resource) == ("", "secrets") or (self.resource, self.subresource) == ("serviceaccounts", "token")

    @property
    def endless(self) -> bool:
        """Whether the answer may begin and end at any time."""
        return self.verb in ("watch", "proxy") or self.subresource in STREAMED or self.subresource == "log"

    @property
    def action(self) -> str:
        """One word for audit and traces: the verb, or the subresource that runs something."""
        return self.subresource if self.subresource in STREAMED else self.verb


@dataclass(frozen=True, slots=True)
class Request:
    """A Kubernetes request without its body.

    Attributes:
        method: HTTP method.
        path: path, percent-encoded.
        query: raw query string.
        headers: end-to-end headers, lower case.
        upgrade: `websocket` or `SPDY/3.1`; empty for none.
    """

    method: str
    path: str
    query: str = ""
    headers: tuple[Header, ...] = field(default=())
    upgrade: str = ""

    def target(self) -> Target:
        """What it is about; raises Invalid or PermissionDenied."""
        return target(self.method, self.path, self.query, self.upgrade)


def target(method: str, path: str, query: str, upgrade: str) -> Target:
    """Reads a request.

    Raises:
        Invalid: the path or query is not canonical, or the upgrade is none that Kubernetes has.
        PermissionDenied: the method means nothing to Kubernetes.
    """
    segments = _segments(path)
    if len(query) > _MOST_QUERY or not _QUERY.fullmatch(query):
        raise Invalid.one("query", "must be a percent-encoded query string of at most 16 KiB")
    if method not in _VERBS:
        raise PermissionDenied(f"method {method!r} is no Kubernetes verb")
    canonical = "/" + "/".join(quote(s, safe=_SAFE) for s in segments)
    parts = [s for s in segments if s]
    if len(parts) > 2 and parts[0] == "api":  # noqa: PLR2004 -- api, version, resource
        found = _resource(canonical, method, query, ("", parts[1]), parts[2:])
    elif len(parts) > 3 and parts[0] == "apis":  # noqa: PLR2004 -- apis, group, version, resource
        found = _resource(canonical, method, query, (parts[1], parts[2]), parts[3:])
    else:
        found = Target(canonical, _PLAIN_VERBS[method])
    if upgrade and (upgrade not in (SPDY, WEBSOCKET) or not (found.subresource in STREAMED or found.verb == "proxy")):
        raise Invalid.one("upgrade", "only exec, attach, portforward and proxy are upgraded, to websocket or SPDY/3.1")
    return found


def _segments(path: str) -> list[str]:
    """Decoded path segments; an empty one only at the end."""
    if not path.startswith("/") or len(path) > _MOST_PATH:
        raise Invalid.one("path", "must start with / and be at most 4096 characters")
    raw = path[1:].split("/")
    found: list[str] = []
    for index, segment in enumerate(raw):
        if not segment and index == len(raw) - 1:
            found.append("")
            continue
        if not _SEGMENT.fullmatch(segment):
            raise Invalid.one("path", "holds an empty segment or a character that must be percent-encoded")
        found.append(_decoded(segment))
    return found


def _decoded(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise Invalid.one("path", "is not UTF-8") from error
    if text in (".", "..") or any(c in "/\\%" or not c.isprintable() for c in text):
        raise Invalid.one("path", "holds a dot segment or an encoded slash, backslash, percent or control character")
    return text


def _resource(path: str, method: str, query: str, api: tuple[str, str], rest: list[str]) -> Target:
    watch = False
    if rest[0] == "watch":  # the old form of `?watch=1`
        watch, rest = True, rest[1:]
    if not rest or rest[0] == "proxy":
        raise PermissionDenied("the path is none that Kubernetes serves")
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _NAMESPACE_PARTS:  # noqa: PLR2004 -- namespaces, name, resource
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = rest[0], rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""  # noqa: PLR2004 -- three parts
    if resource == "namespaces":
        namespace = name
    verb = _VERBS[method]
    if subresource == "proxy":
        verb = "proxy"
    elif subresource in STREAMED:
        verb = "create"  # by GET too: a WebSocket GET must not need less than a POST (kubernetes#78741)
    elif verb == "get" and (watch or not name):
        verb = "watch" if watch or _watches(query) else "list"
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return Target(path, verb, *api, resource, namespace, name, subresource)


def _watches(query: str) -> bool:
    """Kubernetes takes any value but `false` and `0` for yes, also none."""
    return any(value.lower() not in ("false", "0") for key, value in parse_qsl(query, keep_blank_values=True) if key == "watch")


# -- headers

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "expect",
})  # fmt: skip
_NEVER_SENT = frozenset({
    "authorization", "cookie", "host", "forwarded", "origin", "referer", "traceparent", "tracestate", "baggage",
    "x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url", "x-real-ip",
})  # fmt: skip
_NEVER_SENT_PREFIXES = ("impersonate-", "x-remote-", "x-forwarded-", "kubegems-")
_NEVER_RETURNED = frozenset({"set-cookie", "server", "date", "alt-svc", "strict-transport-security", "www-authenticate", "x-powered-by"})
_IMPERSONATE = {"permission": "fleet.clusters.impersonate"}
_USERNAME = re.compile(r"[a-z0-9._@-]{1,128}")
_MAY_REPEAT = frozenset({"x-stream-protocol-version", "accept", "accept-encoding", "accept-language", "sec-websocket-protocol", "warning"})


def upgrade_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The protocol that a request asks to be upgraded to; empty for none. Invalid for one that is not Kubernetes'."""
    found = {name.lower(): value for name, value in headers}
    tokens = {t.strip().lower() for t in found.get(b"connection", b"").split(b",")}
    asked = found.get(b"upgrade", b"").decode("latin-1").strip()
    if not asked or b"upgrade" not in tokens:
        return ""
    if asked.lower() not in _UPGRADES:
        raise Invalid.one("upgrade", "only websocket and SPDY/3.1 are served")
    return _UPGRADES[asked.lower()]


def impersonated_user(raw: Iterable[tuple[bytes, bytes]]) -> str:
    """The KubeGems user whom a client names in `Impersonate-User`, as `<name>` or `gems:user:<name>`; empty for none.

    Raises:
        PermissionDenied: it names someone else, or groups, a uid or extra fields: those of the user itself are sent.
    """
    given = [(name.lower(), value.decode("latin-1")) for name, value in raw if name.lower().startswith(b"impersonate-")]
    if not given:
        return ""
    user = given[0][1].removeprefix("gems:user:")
    if [name for name, _ in given] != [b"impersonate-user"] or not _USERNAME.fullmatch(user):
        raise PermissionDenied("only a KubeGems user can be named, by Impersonate-User alone; its own groups are sent", _IMPERSONATE)
    return user


def request_headers(raw: Iterable[tuple[bytes, bytes]], *, user_named: bool = False) -> tuple[Header, ...]:
    """What of a client's headers travels to the cluster.

    Args:
        raw: as they came.
        user_named: an `Impersonate-User` was found good by `impersonated_user` and heeded; even so it does not travel.

    Raises:
        Invalid: a header is malformed or repeated, or both length and transfer encoding are given.
        PermissionDenied: an `Impersonate-*` header came, or is named in `Connection`.
    """
    given = [(name.lower(), value) for name, value in raw]
    seen: set[bytes] = set()
    for name, value in given:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Invalid.one("headers", "a header is malformed")
        if name in seen and name.decode() not in _MAY_REPEAT:
            raise Invalid.one("headers", f"{name.decode()} is given more than once")
        seen.add(name)
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise Invalid.one("headers", "content-length and transfer-encoding exclude each other")
    named = {token.strip().lower() for name, value in given if name == b"connection" for token in value.split(b",")}
    heeded = {b"impersonate-user"} if user_named else set()
    if any(name.startswith(b"impersonate-") for name in (seen - heeded) | named):
        raise PermissionDenied("Impersonate-* headers are not taken: the hub says who you are", _IMPERSONATE)
    return tuple((name.decode(), value) for name, value in given if name not in named and _may_be_sent(name.decode()))


def _may_be_sent(name: str) -> bool:
    """No name with an underscore: a proxy before the API server may read `Impersonate_User` as it reads `Impersonate-User`."""
    return "_" not in name and name not in HOP_BY_HOP and name not in _NEVER_SENT and not name.startswith(_NEVER_SENT_PREFIXES)


def may_be_sent(name: str, value: bytes) -> bool:
    """Whether a header may go to the API server; the agent asks again what the hub has asked."""
    raw = name.encode("latin-1", "replace")
    return name == name.lower() and bool(_TOKEN.fullmatch(raw)) and bool(_VALUE.fullmatch(value)) and _may_be_sent(name)


def reply_headers(raw: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """What of the API server's headers travels to the client."""
    given = [(name.lower(), value) for name, value in raw if _TOKEN.fullmatch(name) and _VALUE.fullmatch(value)]
    named = {token.strip().lower() for name, value in given if name == b"connection" for token in value.split(b",")}
    kept = [(name.decode(), value) for name, value in given if name not in named]
    return tuple((name, value) for name, value in kept if name not in HOP_BY_HOP and name not in _NEVER_RETURNED)
