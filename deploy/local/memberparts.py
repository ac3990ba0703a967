"""The member cluster `local`: control plane, simulated nodes, and KubeGems' agent and controller in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from deploy.local.ports import Ports
from deploy.local.supervise import Supervisor
from libs.crypt import ca

NAME = "local"


class MemberParts:
    """Makes the member cluster's parts for one stack.

    Args:
        layout: its folders.
        options: an existing cluster may stand in.
        ports: gives each listener its port.
        say: tells people one line.
    """

    def __init__(self, layout: Layout, options: Options, ports: Ports, say: Callable[[str], None]) -> None:
        self._layout = layout
        self._options = options
        self._ports = ports
        self._say = say
        self.member: Member | None = None
        self.kubeconfig = options.kubeconfig or layout.cluster / "admin.kubeconfig"
        self.hub_kubeconfig = layout.root / "hub.kubeconfig"

    async def start_control_plane(self, supervisor: Supervisor) -> None:
        """Builds what is missing, starts it, and applies the join manifest."""
        if self._options.kubeconfig is None:
            plane = ControlPlane(self._layout.cluster, self._layout.logs, self._ports, durable=self._options.durable)
            hidden = (self._layout.root, Path.home(), Path("/tmp"))  # noqa: S108 -- what typed commands must not see
            nodes = Kwok(self._layout.root / "kwok", self._layout.logs / "kwok.log", plane, self._ports.take("kwok"), hidden=hidden)
            plane.binary = await build.binary(build.CONTROL_PLANE, self._say)
            await plane.prepare()
            etcd, apiserver, rest = plane.parts()
            await supervisor.start(etcd)
            await supervisor.start(apiserver)
            nodes.binary = await build.binary(build.NODES, self._say)
            await supervisor.start(*rest, nodes.part())
            if not nodes.exec_works:
                self._say("this machine allows no namespaces, so `kubectl exec` into simulated pods is off")
        self.member = Member(self.kubeconfig, self._layout.cluster)
        await self.member.install()

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
        joined = _joined(self._layout.root / "agent")
        try:
            async with Hub(hub.rest, hub.certificates.ca, self._layout.admin_password) as session:
                found = await session.cluster(NAME)
                ca.write_private(self.hub_kubeconfig, await session.kubeconfig(NAME))
                if joined and joined == found.get("uid"):
                    return None
                file = self._layout.secrets / "join.token"
                ca.write_private(file, await session.join_token(NAME) + "\n")
                return file
        except SignInRefused:
            if not joined:
                raise
            self._say("the admin's password was changed, so no kubeconfig through the hub is written (`make admin-password` resets it)")
            return None

    def _service(self, name: str, kubeconfig: Path, hub: HubParts, token_file: Path | None, env: Mapping[str, str]) -> Part:
        port, take = self._ports.take(name), self._ports.take
        facts: dict[str, object] = {
            "state_dir": self._layout.root / "agent",
            "enrolment_address": f"127.0.0.1:{take('enrolment')}",
            "tunnel_address": f"127.0.0.1:{take('tunnel')}",
            "nats_address": hub.nats_url.rsplit("//", 1)[-1],
            "ca_hash": hub.certificates.authority.fingerprint,
            "kubeconfig_file": kubeconfig,
            "grpc_port": port,
            "metrics_port": take(f"{name}-metrics"),
            "grpc_address": f"127.0.0.1:{port}",
            "metrics_address": f"127.0.0.1:{take(f'{name}-metrics')}",
        }
        if self._options.kubeconfig is None:
            facts["pod_cidrs"] = kwok.POD_CIDR  # simulated nodes publish none
        if token_file:
            facts["join_token_file"] = token_file
        log = self._layout.logs / f"{name}.log"
        return services.part(name, facts, log, lambda: health.until_serving(port, name, None), env)


def _joined(state: Path) -> str:
    """Uid of the cluster that the agent's state folder is joined as; empty when it is not."""
    known = state / "cluster.json"
    if not (state / "agent.pem").exists() or not known.exists():
        return ""
    return str(json.loads(known.read_text()).get("cluster_uid", ""))
