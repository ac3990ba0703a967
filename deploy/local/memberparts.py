"""A member cluster of the stack: control plane, simulated nodes, and KubeGems' agent and controller in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from deploy.local import build, health, kwok, services
from deploy.local.control import ControlPlane
from deploy.local.hub import Hub, SignInRefused
from deploy.local.hubparts import HubParts
from deploy.local.kwok import Kwok
from deploy.local.layout import Layout
from deploy.local.member import Member
from deploy.local.options import Options
from deploy.local.part import Part
from deploy.local.ports import Ports, Scoped, Taking
from deploy.local.site import FIRST, Site
from deploy.local.supervise import Supervisor
from libs.crypt import ca


class MemberParts:
    """Makes one member cluster's parts.

    Args:
        layout: the stack's folders.
        options: an existing cluster may stand in for the first one.
        ports: gives each listener its port.
        say: tells people one line.
        name: of the cluster.
    """

    def __init__(self, layout: Layout, options: Options, ports: Ports, say: Callable[[str], None], name: str = FIRST) -> None:
        self.name = name
        self.site = Site.of(layout, name)
        self._layout = layout
        self._given = options.kubeconfig if name == FIRST else None
        self._durable = options.durable
        self._ports: Taking = ports if name == FIRST else Scoped(ports, name)
        self._hub_port = ports.take
        self._say = say
        self.member: Member | None = None
        self.kubeconfig = self._given or self.site.admin_kubeconfig

    @property
    def facts(self) -> dict[str, str]:
        """Its kubeconfigs, once it has joined."""
        found = {"kubeconfig": str(self.kubeconfig)}
        return found | ({"hub_kubeconfig": str(self.site.hub_kubeconfig)} if self.site.hub_kubeconfig.exists() else {})

    async def start_control_plane(self, supervisor: Supervisor) -> None:
        """Builds what is missing, starts it, and applies the join manifest."""
        self.site.create()
        if self._given is None:
            await self._own(supervisor)
        self.member = Member(self.kubeconfig, self.site.cluster)
        await self.member.install()

    async def _own(self, supervisor: Supervisor) -> None:
        site = self.site
        plane = ControlPlane(site.cluster, site.logs, self._ports, durable=self._durable)
        hidden = (self._layout.root, Path.home(), Path("/tmp"))  # noqa: S108 -- what typed commands must not see
        nodes = Kwok(site.root / "kwok", site.logs / "kwok.log", plane, self._ports.take("kwok"), hidden=hidden)
        plane.binary = await build.binary(build.CONTROL_PLANE, self._say)
        await plane.prepare()
        etcd, apiserver, rest = plane.parts()
        await supervisor.start(self._named(etcd))
        await supervisor.start(self._named(apiserver))
        nodes.binary = await build.binary(build.NODES, self._say)
        await supervisor.start(*map(self._named, (*rest, nodes.part())))
        if not nodes.exec_works:
            self._say("this machine allows no namespaces, so `kubectl exec` into simulated pods is off")

    async def join(self, hub: HubParts, supervisor: Supervisor, env: Mapping[str, str]) -> None:
        """Joins the cluster unless it has, and starts agent and controller; the hub must serve."""
        assert self.member is not None
        token_file = await self._token(hub)
        kubeconfigs = {name: await self.member.account_kubeconfig(f"gems-{name}") for name in ("agent", "controller")}
        await supervisor.start(*(self._service(name, path, hub, token_file, env) for name, path in kubeconfigs.items()))

    async def renew_tokens(self) -> None:
        """Writes fresh kubeconfigs for agent and controller."""
        if self.member:
            for name in ("agent", "controller"):
                await self.member.account_kubeconfig(f"gems-{name}")

    async def _token(self, hub: HubParts) -> Path | None:
        """A file with a join token, or None when the agent has joined before."""
        joined = _joined(self.site.agent)
        try:
            async with Hub(hub.rest, hub.certificates.ca, self._layout.admin_password) as session:
                found = await session.cluster(self.name)
                ca.write_private(self.site.hub_kubeconfig, await session.kubeconfig(self.name))
                if joined and joined == found.get("uid"):
                    return None
                ca.write_private(self.site.join_token, await session.join_token(self.name) + "\n")
                return self.site.join_token
        except SignInRefused:
            if not joined:
                raise
            self._say("the admin's password was changed, so no kubeconfig through the hub is written (`make admin-password` resets it)")
            return None

    def _service(self, name: str, kubeconfig: Path, hub: HubParts, token_file: Path | None, env: Mapping[str, str]) -> Part:
        port, metrics = self._ports.take(name), self._ports.take(f"{name}-metrics")
        facts: dict[str, object] = {
            "state_dir": self.site.agent,
            "enrolment_address": f"127.0.0.1:{self._hub_port('enrolment')}",
            "tunnel_address": hub.tunnels,
            "nats_address": hub.nats_url.rsplit("//", 1)[-1],
            "ca_hash": hub.certificates.authority.fingerprint,
            "kubeconfig_file": kubeconfig,
            "grpc_port": port,
            "metrics_port": metrics,
            "grpc_address": f"127.0.0.1:{port}",
            "metrics_address": f"127.0.0.1:{metrics}",
        }
        if self._given is None:
            facts["pod_cidrs"] = kwok.POD_CIDR  # simulated nodes publish none
        if token_file:
            facts["join_token_file"] = token_file
        log = self.site.logs / f"{name}.log"
        return self._named(services.part(name, facts, log, lambda: health.until_serving(port, name, None), env))

    def _named(self, part: Part) -> Part:
        return replace(part, name=self.site.part(part.name))


def _joined(state: Path) -> str:
    """Uid of the cluster that the agent's state folder is joined as; empty when it is not."""
    known = state / "cluster.json"
    if not (state / "agent.pem").exists() or not known.exists():
        return ""
    return str(json.loads(known.read_text()).get("cluster_uid", ""))
