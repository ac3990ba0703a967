"""kubectl-gems, as kubectl runs it: a process of its own, against a hub that hands out sessions."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

PLUGIN = Path(__file__).parents[2] / "deploy/kubectl/kubectl_gems.py"


@dataclass
class Hub:
    """Sessions: a refresh token is good once, and a second use ends the session, as with the real one."""

    folder: Path
    ca: Path
    url: str = ""
    lifetime: timedelta = timedelta(minutes=10)
    made: int = 0
    refreshed: int = 0
    ended: bool = False
    refresh: str = ""
    asked: list[str] = field(default_factory=list)

    async def create(self, request: web.Request) -> web.Response:
        """Signs in."""
        if (await request.json()) != {"username": "dev", "password": "the secret"}:
            return web.json_response({"error": {"message": "wrong user name or password"}}, status=401)
        self.ended = False
        return self._tokens()

    async def renew(self, request: web.Request) -> web.Response:
        """Refreshes, once per token."""
        await asyncio.sleep(0.05)
        if self.ended or (await request.json())["refreshToken"] != self.refresh:
            self.ended = True
            return web.json_response({"error": {"message": "the refresh token is not valid"}}, status=401)
        self.refreshed += 1
        return self._tokens()

    async def delete(self, request: web.Request) -> web.Response:
        """Signs out."""
        self.asked.append(request.headers["Authorization"])
        self.ended = True
        return web.json_response({})

    def _tokens(self) -> web.Response:
        self.made += 1
        self.refresh = f"refresh-{self.made}"
        expires = (datetime.now(UTC) + self.lifetime).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return web.json_response({"accessToken": f"access-{self.made}", "refreshToken": self.refresh, "expireTime": expires})

    async def run(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        """Runs the plugin."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(PLUGIN), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=os.environ | {"KUBEGEMS_HOME": str(self.folder / "home")} | env,
        )  # fmt: skip
        out, complaint = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode is not None
        return process.returncode, out.decode(), complaint.decode()

    async def login(self, password: str = "the secret") -> tuple[int, str, str]:  # noqa: S107 -- a test's
        """Signs in."""
        (self.folder / "password").write_text(password + "\n")
        options = ("--ca-file", str(self.ca), "--username", "dev", "--password-file", str(self.folder / "password"))
        return await self.run("login", self.url, *options)

    async def token(self) -> str:
        """What kubectl would send."""
        code, out, complaint = await self.run("token", self.url)
        assert code == 0, complaint
        credential: dict[str, Any] = json.loads(out)
        assert (credential["kind"], credential["apiVersion"]) == ("ExecCredential", "client.authentication.k8s.io/v1")
        return str(credential["status"]["token"])


@pytest.fixture
async def hub(tmp_path: Path, hub_certificates: Any) -> AsyncIterator[Hub]:
    """A hub over TLS."""
    found = Hub(tmp_path, hub_certificates.ca)
    app = web.Application()
    app.add_routes([
        web.post("/api/v1/sessions", found.create), web.post("/api/v1/sessions:refresh", found.renew),
        web.delete("/api/v1/users/me/sessions/current", found.delete),
    ])  # fmt: skip
    runner = web.AppRunner(app)
    await runner.setup()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(hub_certificates.certificate("gateway"), hub_certificates.key("gateway"))
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    found.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def test_a_token_is_kept_while_it_is_good_and_renewed_when_it_ends(hub: Hub) -> None:
    """Signed in once; nothing is asked while the token lives; then it is refreshed by itself."""
    assert (await hub.login())[0] == 0
    assert (await hub.token(), await hub.token(), hub.refreshed) == ("access-1", "access-1", 0)
    hub.lifetime = timedelta(seconds=1)
    assert (await hub.login())[0] == 0
    hub.lifetime = timedelta(minutes=10)
    assert (await hub.token(), await hub.token(), hub.refreshed) == ("access-3", "access-3", 1)


async def test_many_kubectls_at_once_use_a_refresh_token_once(hub: Hub) -> None:
    """A second use would end the session."""
    hub.lifetime = timedelta(seconds=1)
    await hub.login()
    hub.lifetime = timedelta(minutes=10)
    assert set(await asyncio.gather(*(hub.token() for _ in range(6)))) == {"access-2"}
    assert (hub.refreshed, hub.ended) == (1, False)


async def test_secrets_lie_in_files_of_their_owner_alone(hub: Hub) -> None:
    """Folder 0700, files 0600, no password anywhere."""
    await hub.login()
    home = hub.folder / "home"
    assert home.stat().st_mode & 0o077 == 0
    kept = [file for file in home.iterdir() if file.suffix == ".json"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in kept)
    assert all("the secret" not in file.read_text() for file in kept)


async def test_what_went_wrong_is_said_and_what_to_do(hub: Hub) -> None:
    """Wrong password, not signed in, an ended session, a hub that another CA vouches for, plain HTTP; exit code 1, no trace."""
    code, out, complaint = await hub.run("token", hub.url)
    assert (code, out, f"kubectl-gems login {hub.url}" in complaint) == (1, "", True)
    code, _, complaint = await hub.login("wrong")
    assert (code, "wrong user name or password" in complaint) == (1, True)
    hub.lifetime = timedelta(seconds=1)
    await hub.login()
    hub.ended = True
    code, _, complaint = await hub.run("token", hub.url)
    assert (code, "login" in complaint, "Traceback" in complaint) == (1, True, False)
    (hub.folder / "password").write_text("the secret")
    options = ("--username", "dev", "--password-file", str(hub.folder / "password"))
    stranger = hub.folder / "stranger"
    code, _, complaint = await hub.run("login", hub.url, *options, KUBEGEMS_HOME=str(stranger))
    assert (code, "CERTIFICATE_VERIFY_FAILED" in complaint, "--ca-file" in complaint) == (1, True, True)
    code, _, complaint = await hub.run("login", hub.url)  # nobody is there to be asked
    assert (code, "--password-file" in complaint, "Traceback" in complaint) == (1, True, False)
    code, _, complaint = await hub.run("token", hub.url.replace("https", "http"))
    assert (code, "https://" in complaint) == (1, True)


async def test_signing_out_ends_the_session_and_forgets_it(hub: Hub) -> None:
    """At the hub and here."""
    await hub.login()
    assert (await hub.run("logout", hub.url))[0] == 0
    assert (hub.ended, hub.asked) == (True, ["Bearer access-1"])
    assert (await hub.run("token", hub.url))[0] == 1
