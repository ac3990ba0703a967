"""`admin-password`: a new password for the platform admin; `nats-config`: what a NATS of one's own must be told."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.hubparts import HubParts
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.ports import DEFAULTS, Ports
from deploy.local.process import Command, base_env, run
from deploy.local.services import ROOT
from libs.bus import server
from libs.crypt import ca


async def reset(layout: Layout) -> None:
    """Sets a new password and prints it once; starts PostgreSQL for it when nothing runs."""
    layout.create()
    async with contextlib.AsyncExitStack() as stack:
        if layout.running() is None:
            layout.lock()
            stack.callback(layout.unlock)
            hub = HubParts(layout, Options.read(), Ports(layout.ports))
            await hub.prepare()
            stack.callback(hub.close)
            for part in hub.stores():
                if part.name == "postgresql":
                    await stack.enter_async_context(parts.running(part))
        fresh = layout.root / "admin.password.new"
        ca.write_private(fresh, secrets.token_urlsafe(15) + "\n")
        argv = (sys.executable, "-m", "services.gateway.identity.reset", "--password-file", str(fresh))
        env = base_env() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
        log = layout.logs / "admin-password.log"
        await run(Command((*argv, "--database-url-file", str(layout.secrets / "database.url")), log, env=env), within=60)
        fresh.replace(layout.admin_password)
    print(f"the new password of `admin` is {layout.admin_password.read_text().strip()} (also in {layout.admin_password})")


def nats_configuration(layout: Layout) -> str:
    """The configuration of a nats-server for `KUBEGEMS_NATS_URL`; makes the keys and certificates that it names."""
    layout.create()
    certificates = Certificates(layout.certificates)
    certificates.renew()
    url = Options.read().nats_url or f"tls://127.0.0.1:{DEFAULTS['nats']}"
    tls = (certificates.certificate("nats"), certificates.key("nats"), certificates.ca)
    keys = server.Keys.ensure(layout.secrets / "nats")
    return server.render(server.ServerConfig(port=int(url.rsplit(":", 1)[1]), store=layout.root / "nats/store", tls=tls, keys=keys))
