"""What a cluster's admin does so that it can join: apply the manifest, hand out the accounts' kubeconfigs."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from deploy.local import kubeconfig
from deploy.local.kubectl import Kubectl
from libs.crypt import ca
from libs.kube import manifest

_TOKEN_HOURS = 24 * 30  # renewed at every start, and daily while it runs


class Member:
    """A cluster that joins.

    Args:
        admin: its admin's kubeconfig.
        folder: where the accounts' kubeconfigs are kept.
    """

    def __init__(self, admin: Path, folder: Path) -> None:
        self.kubectl = Kubectl(admin)
        self._admin = admin
        self._folder = folder

    async def install(self) -> None:
        """Applies CRDs, roles, accounts and bindings, unless this very manifest was applied to this very cluster."""
        text = manifest.render()
        uid = await self.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
        done = hashlib.sha256(f"{uid}\0{text}".encode()).hexdigest()
        mark = self._folder / "manifest.sha256"
        if mark.exists() and mark.read_text() == done:
            return
        await self.kubectl.apply(text)
        await self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s", within=35)
        ca.write_private(mark, done)

    async def account_kubeconfig(self, name: str) -> Path:
        """A fresh kubeconfig of a ServiceAccount in the agent's namespace."""
        token = await self.kubectl("create", "token", name, "-n", manifest.NAMESPACE, f"--duration={_TOKEN_HOURS}h")
        path = self._folder / f"{name}.kubeconfig"
        await asyncio.to_thread(kubeconfig.rewrite, self._admin, path, token=token.strip(), namespace=manifest.NAMESPACE)
        return path
