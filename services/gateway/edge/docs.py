"""`/openapi.json` and `/docs`: the API's document, and a page to browse it that asks nobody else for anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from libs import log
from libs.rest import Fixed, HttpServer
from libs.rest.openapi import About, document
from libs.rpc import Method

DOCUMENT, PAGE = "/openapi.json", "/docs"
_PAGES = Path(__file__).parent / "pages"
_HTML, _JAVASCRIPT = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
_VIEWER = {"swagger-ui-bundle.js": _JAVASCRIPT, "swagger-ui.css": "text/css; charset=utf-8", "favicon-32x32.png": "image/png"}
# Own scripts and styles alone. React sets styles by the DOM, which a policy does not hinder; the viewer's icons are `data:`.
_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_DESCRIPTION = """\
The API of KubeGems over HTTP. The same calls are served over gRPC, with the same rules and errors.

- Bodies are proto3 JSON: names in lowerCamelCase (proto names are taken too), 64-bit integers as strings, default values left
  out of answers. An unknown field or parameter is an error that names it, `null` stands for a default, and no text holds a NUL.
- What is `readOnly` is the server's to set: it may be sent back and is ignored; a name in a body must be that of the path.
- `updateMask` names the fields to change; an `etag`, or `If-Match`, changes only what was read.
- `Idempotency-Key` makes a repeated POST harmless for 24 h.
- Streams come as `text/event-stream` or `application/x-ndjson`, by `Accept`.
- A thing that the caller may not see is `NOT_FOUND`. Every error has the same body; `reason` in it is for programs.
- `grpc-timeout` (such as `5S`) bounds a call.
"""
_TOKENS = "An access token (`POST /api/v1/sessions`, 10 minutes, renewed by `POST /api/v1/sessions:refresh`) or an API key."
_PLACEHOLDERS = {
    "tenant": "acme", "project": "shop", "environment": "dev", "cluster": "local", "quota": "local", "member": "dev", "user": "dev",
    "username": "dev", "serviceAccount": "ci", "service_account": "ci", "apiKey": "deploy", "api_key": "deploy",
    "target": "tenants/acme", "scope": "tenants/acme", "filter": "state=FAILED",
}  # fmt: skip


def about() -> About:
    """What the document says of itself."""
    return About(title="KubeGems", version="v1", description=_DESCRIPTION, tokens=_TOKENS, placeholders=_PLACEHOLDERS)


def mount(server: HttpServer, methods: Iterable[Method], viewer: Path | None) -> None:
    """Adds both to a server.

    Args:
        server: not yet started.
        methods: all; internal ones are left out of the document.
        viewer: folder of a built swagger-ui-dist; without it the page says how to get one.
    """
    server.add_fixed(DOCUMENT, Fixed("application/json", orjson.dumps(document(methods, about()))))
    files = _files(viewer)
    if not files:
        server.add_fixed(PAGE, Fixed(_HTML, (_PAGES / "absent.html").read_bytes(), _POLICY))
        return
    server.add_fixed(PAGE, Fixed(_HTML, (_PAGES / "docs.html").read_bytes(), _POLICY))
    server.add_fixed(f"{PAGE}/start.js", Fixed(_JAVASCRIPT, (_PAGES / "start.js").read_bytes(), _POLICY))
    for name, body in files.items():
        server.add_fixed(f"{PAGE}/{name}", Fixed(_VIEWER[name], body, _POLICY))


def _files(viewer: Path | None) -> dict[str, bytes]:
    """The viewer's files, read once; none when one is missing."""
    if viewer is None:
        return {}
    try:
        return {name: (viewer / name).read_bytes() for name in _VIEWER}
    except OSError as error:
        log.get("gateway").warning("docs.no_viewer", folder=str(viewer), problem=type(error).__name__)
        return {}
