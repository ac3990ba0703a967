"""What is asked of both sides, and what is promised of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.envoy import answers

EVENTS = 20_000
BATCH = 250  # events of a write, as our own streams have
_SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of both sides.

    Attributes:
        path: of our side.
        other: of Envoy's side, where that is another one.
        times: requests of one connection in a round.
        lanes: connections.
        units: things in an answer that rates count: 1, or events.
        traced: spans are exported, to a collector that costs neither side anything.
        gates: figure → goal; `rps` is ours by Envoy's, `cpu` the same.
    """

    name: str
    what: str
    path: str
    times: int
    lanes: int = 16
    other: str = ""
    accept: str = "application/json"
    bare: bool = False
    tls: bool = False
    traced: bool = False
    database: bool = False
    write: bool = False
    units: int = 1
    gates: tuple[tuple[str, float], ...] = ()


_GET = f"/api/v1/{answers.TENANT}"
_WHOLE = (("rps", 1.5), ("cpu", 0.5))
CASES = [
    Case("small_get_bare", "small GET, transcoder alone", _GET, 250, bare=True, gates=(("rps", 2.2), ("cpu", 0.35))),
    Case("small_get", "small GET, whole pipeline", _GET, 200, gates=_WHOLE),
    Case("small_get_traced", "small GET, whole pipeline, spans exported", _GET, 200, traced=True, gates=_WHOLE),
    Case("small_get_tls", "small GET, whole pipeline, TLS", _GET, 200, tls=True, gates=_WHOLE),
    Case("list_500", "list of 500 environments", f"{_GET}/projects/shop/environments", 12, lanes=4, gates=(("cpu", 1.0),)),
    Case("blob", "2 MB HttpBody", "/api/v1/blobs/one", 60, lanes=4, gates=(("cpu", 0.4),)),
    Case(
        "sse_batched", "SSE; Envoy gets the same batches ready-made", f"/api/v1/changes?count={EVENTS}", 2, lanes=2,
        other=f"/api/v1/changeBatches?count={EVENTS}&batch={BATCH}", accept=_SSE, units=EVENTS, gates=(("rps", 1.0), ("cpu", 1.0)),
    ),
    Case("sse", "SSE; Envoy transcodes each event", f"/api/v1/changes?count={EVENTS // 4}", 2, lanes=2, accept=_SSE, units=EVENTS // 4),
    Case("database_get", "GET from PostgreSQL", "/api/v1/tenants/t{lane}", 50, database=True),
    Case("database_write", "PATCH into PostgreSQL, with its audit record", "/api/v1/tenants/t{lane}", 25, database=True, write=True),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
