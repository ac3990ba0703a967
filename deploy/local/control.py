"""A real Kubernetes control plane on the loopback: etcd, API server, controller manager and scheduler from one binary."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from datetime import timedelta
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives import serialization

from deploy.local import kubeconfig
from deploy.local.part import Part, until_open
from deploy.local.ports import Taking
from deploy.local.process import Command
from libs.clock import SystemClock
from libs.crypt import ca
from libs.crypt.ca import Authority

_LIFETIME = timedelta(days=365)  # renewed at every start
_USERS = {  # name in a kubeconfig: user, groups
    "admin": ("kubegems-local-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kwok": ("kubegems:kwok", ""),
}


class ControlPlane:
    """One control plane.

    Args:
        folder: its keys, kubeconfigs and etcd's data.
        logs: folder of its log files.
        ports: gives `apiserver`, `etcd`, `etcd-peer`.
        durable: False lets etcd skip fsync; for tests.
    """

    def __init__(self, folder: Path, logs: Path, ports: Taking, *, durable: bool = True) -> None:
        self.folder = folder
        self._logs = logs
        self._durable = durable
        self._apiserver, self._etcd, self._peer = (ports.take(name) for name in ("apiserver", "etcd", "etcd-peer"))
        self.binary = Path()  # set once it is built

    @property
    def server(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self._apiserver}"

    @property
    def authority(self) -> Path:
        """The certificate of the cluster's own CA."""
        return self.folder / "ca.crt"

    def kubeconfig(self, name: str = "admin") -> Path:
        """The kubeconfig of `admin`, `controller-manager`, `scheduler` or `kwok`."""
        return self.folder / f"{name}.kubeconfig"

    async def prepare(self) -> None:
        """Makes keys, certificates, tokens and kubeconfigs."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.folder / "ca.key").exists():
            _, pair = Authority.create("KubeGems local cluster CA", now=SystemClock().now())
            pair.write(self.folder, "ca")
        if not (self.folder / "service-accounts.key").exists():
            ca.write_private(self.folder / "service-accounts.key", ca.new_key())
        (self.folder / "service-accounts.pub").write_text(_public(self.folder / "service-accounts.key"))
        authority = Authority.load(self.authority, self.folder / "ca.key")
        for name, dns in (("apiserver", ("kubernetes", "kubernetes.default.svc")), ("etcd", ()), ("kubelet", ())):
            issued = authority.issue(
                name, now=SystemClock().now(), lifetime=_LIFETIME, dns=("localhost", *dns), ips=("127.0.0.1", "10.0.0.1")
            )
            issued.write(self.folder, name)
        self._write_tokens()

    def _write_tokens(self) -> None:
        lines = []
        for name, (user, groups) in _USERS.items():
            token = secrets.token_urlsafe(32)
            lines.append(f'{token},{user},{user},"{groups}"' if groups else f"{token},{user},{user}")
            kubeconfig.write(self.kubeconfig(name), server=self.server, authority=self.authority, token=token)
        ca.write_private(self.folder / "tokens.csv", "\n".join(lines) + "\n")

    def parts(self) -> tuple[Part, Part, tuple[Part, ...]]:
        """etcd, the API server, and what starts beside one another after them; prepare first."""
        return (
            Part("etcd", self._etcd_command, lambda: until_open(self._etcd)),
            Part("kube-apiserver", self._apiserver_command, self._apiserver_ready, within=120),
            (
                Part("kube-controller-manager", self._manager_command, self._manager_ready, within=120),
                Part("kube-scheduler", self._scheduler_command, _settled),
            ),
        )

    def _command(self, name: str, *flags: str) -> Command:
        return Command((str(self.binary), name, *flags), self._logs / f"{name}.log", patience=15)

    def _etcd_command(self) -> Command:
        client, peer = f"https://127.0.0.1:{self._etcd}", f"https://127.0.0.1:{self._peer}"
        pair = (f"={self.folder}/etcd.crt", f"={self.folder}/etcd.key", f"={self.authority}")
        flags = [
            *("--name=local", f"--data-dir={self.folder}/etcd", "--log-level=warn", "--auto-compaction-retention=1h"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
            *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=local={peer}"),
            *(f"--cert-file{pair[0]}", f"--key-file{pair[1]}", f"--trusted-ca-file{pair[2]}", "--client-cert-auth"),
            *(f"--peer-cert-file{pair[0]}", f"--peer-key-file{pair[1]}", f"--peer-trusted-ca-file{pair[2]}", "--peer-client-cert-auth"),
        ]
        return self._command("etcd", *flags, *([] if self._durable else ["--unsafe-no-fsync"]))

    def _apiserver_command(self) -> Command:
        folder = self.folder
        return self._command(
            "kube-apiserver",
            *(f"--etcd-servers=https://127.0.0.1:{self._etcd}", f"--etcd-cafile={self.authority}"),
            *(f"--etcd-certfile={folder}/etcd.crt", f"--etcd-keyfile={folder}/etcd.key"),
            *("--bind-address=127.0.0.1", f"--secure-port={self._apiserver}", "--advertise-address=192.0.2.10"),
            *("--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/16", "--allow-privileged"),
            *(f"--tls-cert-file={folder}/apiserver.crt", f"--tls-private-key-file={folder}/apiserver.key", f"--cert-dir={folder}"),
            *(f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC", "--anonymous-auth=false"),
            *(
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-signing-key-file={folder}/service-accounts.key",
            ),
            f"--service-account-key-file={folder}/service-accounts.pub",
            *(f"--kubelet-certificate-authority={self.authority}", "--kubelet-preferred-address-types=InternalIP"),
            *(f"--kubelet-client-certificate={folder}/kubelet.crt", f"--kubelet-client-key={folder}/kubelet.key"),
        )

    def _manager_command(self) -> Command:
        return self._command(
            "kube-controller-manager",
            *(f"--kubeconfig={self.kubeconfig('controller-manager')}", f"--root-ca-file={self.authority}"),
            *(f"--service-account-private-key-file={self.folder}/service-accounts.key", "--use-service-account-credentials"),
            *("--leader-elect=false", "--secure-port=0", "--kube-api-qps=100", "--kube-api-burst=200"),
        )

    def _scheduler_command(self) -> Command:
        return self._command("kube-scheduler", f"--kubeconfig={self.kubeconfig('scheduler')}", "--leader-elect=false", "--secure-port=0")

    async def _apiserver_ready(self) -> None:
        await self._until("/readyz")

    async def _manager_ready(self) -> None:
        await self._until("/api/v1/namespaces/default/serviceaccounts/default")

    async def _until(self, path: str) -> None:
        """Waits until the admin gets a path."""
        context = ssl.create_default_context(cafile=self.authority)
        token = kubeconfig.token(self.kubeconfig())
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}, timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                try:
                    async with session.get(self.server + path, ssl=context) as reply:
                        if reply.status == 200:  # noqa: PLR2004 -- OK
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.1)


def _public(key_file: Path) -> str:
    """The public half of a key; the API server reads no EC key of PKCS 8 for it."""
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


async def _settled() -> None:
    """The scheduler has no port of its own to ask: running for a moment is all there is to see."""
    await asyncio.sleep(0.5)
