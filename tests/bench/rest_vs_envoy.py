"""Our REST against Envoy's transcoder in front of our own grpc.aio server: the same pipeline, the same handlers, the same answers.

Rounds are interleaved and the figures are medians of the pairs' ratios. CPU is that of all processes of a side: ours is one,
the other is Envoy and its backend. Both sides speak clear text, or both TLS. Envoy runs one worker. Needs `/proc`.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import asyncpg
import uvloop
from google.protobuf import json_format

from libs.clock import SystemClock, new_id
from libs.crypt import signing
from libs.crypt.ca import SPIFFE, Authority
from libs.rest.encode import to_json
from services.gateway.identity.keys import Keyring
from services.gateway.identity.tokens import Tokens
from tests.bench.envoy import answers, figures, load, protos, proxy
from tests.bench.envoy.cases import BY_NAME, CASES, Case
from tests.bench.envoy.figures import Pairs
from tests.bench.envoy.server import Keys, Setting
from tests.bench.envoy.sides import Side, collecting, server
from tests.kit.data import postgres_server

ROUNDS = 5
_SECONDS = 120  # a case may take
_ENCODER, _BATCHING = "encoder_vs_json_format", "sse_batching"


@dataclass(frozen=True, slots=True)
class Options:
    """How it is measured: interleaved rounds after one that warms up; where a profile of our side goes."""

    rounds: int = ROUNDS
    profile: str = ""


class Bench:
    """All that the cases share: keys, a token, descriptors; a database when one is asked for."""

    def __init__(self, folder: Path, stack: AsyncExitStack, options: Options) -> None:
        self.folder, self._stack, self._options = folder, stack, options
        self.descriptors = protos.compile_into(folder)
        key = _prepare(folder)
        issuer = Tokens(cast("Keyring", Keys(key)), SystemClock())
        self.token = issuer.access("dev", new_id(), new_id(), datetime.now(UTC) + timedelta(hours=1)).token
        self._dsn = ""

    async def measure(self, case: Case) -> Pairs:
        """Pairs of rounds: ours and Envoy's."""
        setting = Setting(str(self.folder), "rest", bare=case.bare, tls=case.tls)
        if case.database:
            setting = replace(setting, database=await self._database())
        async with AsyncExitStack() as stack:
            if case.traced:
                port, spans = await stack.enter_async_context(collecting(self.folder))
                setting = replace(setting, collector=f"http://127.0.0.1:{port}")
            ours = await self._side(stack, replace(setting, profile=self._options.profile), envoy=False)
            other = await self._side(stack, replace(setting, side="grpc"), envoy=True)
            if case.database:
                await self._fill()
            await asyncio.to_thread(self._same, case, ours, other)
            found = await self._rounds(case, ours, other)
            assert not case.traced or await spans(), "no span has come"
            return found

    async def unbatched(self, case: Case) -> Pairs:
        """Pairs of rounds: our stream batched and not."""
        setting = Setting(str(self.folder), "rest")
        async with AsyncExitStack() as stack:
            batched = await self._side(stack, setting, envoy=False)
            single = await self._side(stack, replace(setting, batched=False), envoy=False)
            return await self._rounds(replace(case, other=""), batched, single)

    async def _rounds(self, case: Case, one: Side, two: Side) -> Pairs:
        tls = ssl.create_default_context(cafile=str(self.folder / "ca.crt")) if case.tls else None
        asked, asked_two = self.requests(case, case.path), self.requests(case, case.other or case.path)
        found = [(await one.round(case, asked, tls), await two.round(case, asked_two, tls)) for _ in range(self._options.rounds + 1)]
        return found[1:]  # the first warms up

    async def _side(self, stack: AsyncExitStack, setting: Setting, *, envoy: bool) -> Side:
        port, process = await stack.enter_async_context(server(setting))
        if not envoy:
            return Side(port, process, None)
        front = await stack.enter_async_context(
            proxy.running(self.folder, backend=port, descriptors=self.descriptors, services=protos.NAMES, tls=setting.tls)
        )
        return Side(front.port, process, front)

    def requests(self, case: Case, path: str) -> list[bytes]:
        """What the connections send, in turn."""
        paths = [path.format(lane=lane) for lane in range(case.lanes if case.database else 1)]
        if case.write:
            return [load.patch(f"{p}?update_mask=description", self.token, b'{"description":"a team"}') for p in paths]
        return [load.get(p, self.token, case.accept) for p in paths]

    def _same(self, case: Case, ours: Side, other: Side) -> None:
        """Makes sure that both sides answer the same."""
        if case.write:
            return
        mine, theirs = (self._said(case, side.port, path) for side, path in ((ours, case.path), (other, case.other or case.path)))
        assert mine == theirs, f"{case.name}: the sides answer differently"
        assert case.units == 1 or len(mine) == case.units

    def _said(self, case: Case, port: int, path: str) -> Any:
        """The JSON of an answer, of a stream that of its events."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        made = (
            http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
            if case.tls
            else http.client.HTTPConnection("localhost", port, timeout=30)
        )
        made.request("GET", path.format(lane=0), headers={"Authorization": f"Bearer {self.token}", "Accept": case.accept})
        reply = made.getresponse()
        body = reply.read()
        made.close()
        assert reply.status == 200, f"{case.name}: {reply.status} {body[:300]!r}"
        return json.loads(body) if case.units == 1 else [json.loads(line[6:]) for line in body.splitlines() if line]

    async def _database(self) -> str:
        if not self._dsn:
            found = await self._stack.enter_async_context(postgres_server(self.folder))
            self._dsn = found.dsn
        return self._dsn

    async def _fill(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        sql = "INSERT INTO tenancy.tenants (uid, name, display_name) VALUES ($1, $2, $2) ON CONFLICT DO NOTHING"
        await connection.executemany(sql, [(new_id(), f"t{i}") for i in range(16)])
        await connection.close()


def _prepare(folder: Path) -> signing.SigningKey:
    authority, _ = Authority.create("bench", now=datetime.now(UTC))
    (folder / "ca.crt").write_text(authority.certificate)
    uri = f"{SPIFFE}/hub/gateway"
    pair = authority.issue("gateway", now=datetime.now(UTC), lifetime=timedelta(days=1), dns=("localhost",), ips=("127.0.0.1",), uri=uri)
    pair.write(folder, "gateway")
    key = signing.SigningKey.generate("k")
    (folder / "key").write_bytes(key.private)
    return key


def encoder(rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU of our encoder against protobuf's own json_format, on the list's 500 resources; both say the same."""
    message = answers.environments()
    assert json.loads(to_json(message)) == json_format.MessageToDict(message)

    def spent(work: Callable[[], object]) -> float:
        before = time.process_time()
        work()
        return (time.process_time() - before) * 1000

    def pair() -> tuple[float, float]:
        return spent(lambda: json_format.MessageToJson(message, indent=None)), spent(lambda: to_json(message))

    pairs = [pair() for _ in range(rounds + 1)][1:]
    theirs, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    told = f"500 environments as JSON: json_format {theirs:.1f} ms, ours {ours:.1f} ms"
    return figures.figure(_ENCODER, statistics.median(a / b for a, b in pairs), 2.0, "higher", what=told, samples=len(pairs))


async def _bar(bench: Bench, name: str, options: Options, *, table: bool) -> Iterator[str]:
    """The lines of one bar."""
    if name == _ENCODER:
        return iter([json.dumps(encoder(options.rounds))])
    if name == _BATCHING:
        return iter([json.dumps(figures.batching(await bench.unbatched(BY_NAME["sse_batched"])), ensure_ascii=False)])
    found = await bench.measure(BY_NAME[name])
    if table:
        return iter([figures.row(BY_NAME[name], found)])
    return (json.dumps(line, ensure_ascii=False) for line in figures.lines(BY_NAME[name], found))


async def main(names: Sequence[str], options: Options, *, table: bool) -> int:
    """Measures and prints; 1 when a bar could not be measured, after all others."""
    failed = 0
    if table:
        print(figures.HEADING)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            bench = Bench(Path(folder), stack, options)
            for number, name in enumerate(names, 1):
                began = time.monotonic()
                try:
                    async with asyncio.timeout(_SECONDS):
                        for line in await _bar(bench, name, options, table=table):
                            print(line, flush=True)
                except Exception as error:  # noqa: BLE001 -- one bar less, and it is told
                    failed = 1
                    print(f"rest_vs_envoy: {name} failed: {error!r}", file=sys.stderr, flush=True)
                took = time.monotonic() - began
                print(f"rest_vs_envoy: {number}/{len(names)} {name} took {took:.0f} s", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    known = [_ENCODER, *(case.name for case in CASES), _BATCHING]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bars", nargs="*", metavar="BAR", help=f"all when none is named: {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds, after one that warms up")
    parser.add_argument("--table", action="store_true", help="rows of a Markdown table instead of JSON lines")
    parser.add_argument("--profile", default="", metavar="FILE", help="a profile of our side; name one bar")
    given = parser.parse_args()
    if unknown := [name for name in given.bars if name not in known]:
        parser.error(f"no such bar: {', '.join(unknown)}")
    sys.exit(uvloop.run(main(given.bars or known, Options(given.rounds, given.profile), table=given.table)))
