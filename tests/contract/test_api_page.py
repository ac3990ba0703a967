"""docs/api.md and docs/errors.md say what the code does."""

from __future__ import annotations

import re

from libs.rest import door, headers, http, paths, streams
from libs.rest.connection import Guard
from libs.rest.wellknown import MAX_DEPTH
from libs.rpc import deprecation, pipeline, server, sizes
from services.gateway.edge import limits
from tests.contract import errors_page

PAGE = (errors_page.ROOT / "docs/api.md").read_text()


def test_the_page_of_reasons_is_generated() -> None:
    """As the code has them now: `python -m tests.contract.errors_page > docs/errors.md`."""
    assert (errors_page.ROOT / "docs/errors.md").read_text() == "\n".join(errors_page.lines()) + "\n"


def test_the_scan_finds_reasons_of_all_kinds() -> None:
    """The control: a class of a lib, one of a service, one of HTTP's own, and one with a status of its own."""
    found = "\n".join(errors_page.lines())
    for row in ("| `NOT_FOUND` | `NOT_FOUND` | 404 |", "| `QUOTA_EXCEEDED` | `FAILED_PRECONDITION` | 400 |",
                "| `NOT_ACCEPTABLE` | `INVALID_ARGUMENT` | 406 |", "| `REQUEST_TOO_LARGE` | `RESOURCE_EXHAUSTED` | 413 |"):  # fmt: skip
        assert row in found, row


def test_every_reason_is_explained() -> None:
    """None without a meaning, none with a dot missing."""
    for line in errors_page.lines()[-10:]:
        assert re.fullmatch(r"\| `[A-Z_]+` \| `[A-Z_]+` \| \d{3} \| .+[.`] \|", line), line


def test_the_table_of_statuses_is_that_of_the_code() -> None:
    """`python -m tests.contract.errors_page statuses` prints it."""
    assert "\n".join(errors_page.statuses()) in PAGE


def test_the_bounds_are_those_of_the_code() -> None:
    """Numbers that stand in the page's tables."""
    kib = 1024
    per_second = [f"{rate.per_second:.0f}" for rate in limits.RATES.values()]
    said = [
        f"| request line, one header | {http._MAX_LINE // kib} KiB |",
        f"| headers | {http._MAX_HEADERS} |",
        f"| body | {sizes.PUBLIC_BYTES // kib // kib} MiB,",
        f"| nesting of JSON | {MAX_DEPTH} levels |",
        f"| query parameters | {paths._MAX_PARAMETERS} |",
        f"| TLS handshake, headers | {Guard().head_seconds:.0f} s each |",
        f"| body, or a pause in one that is streamed | {http.BODY_SECONDS:.0f} s |",
        f"| {Guard().per_address:,} | 429 |",
        f"| {limits.PER_ADDRESS.per_second:.0f}/s, {limits.PER_ADDRESS.burst:,.0f} at once |",
        f"| {', '.join(per_second)} a second |",
        f"| open streams of one caller (`streams_per_caller`) | {limits.STREAMS_PER_CALLER} |",
        f"costs its address as much as {'ten' if limits.FAILURE_COST == 10 else limits.FAILURE_COST} calls",
        f"else {pipeline.UNARY_SECONDS:.0f} s,",
        f"up to {headers._MAX_KEY} printable characters",
        f"Silence is filled every {streams.KEEP_ALIVE_SECONDS:.0f} s",
        f"from {sizes.COMPRESSED_FROM // kib} KiB on",
        "at least a year apart" if deprecation.LEAST.days == 365 else "?",
    ]
    options = dict(server._OPTIONS)
    said += [
        f"the server pings after {options['grpc.keepalive_time_ms'] // 1000} s",
        f"a client may ping every {options['grpc.http2.min_ping_interval_without_data_ms'] // 1000} s",
        f"closed after {options['grpc.max_connection_idle_ms'] // 60_000} min",
        f"{options['grpc.server_handshake_timeout_ms'] // 1000} s for the handshake",
    ]
    assert door.HANDSHAKE_SECONDS == Guard().head_seconds == 10
    missing = [words for words in said if words not in PAGE]
    assert not missing
