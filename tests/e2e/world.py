"""The tenants, users and environments that the e2e tests work with: `initech` with `ivy` (`platform.dev`), `globex` with `eve`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.eventually import eventually
from tests.kit.kubectl import Kubectl
from tests.kit.rest import User, nobody

PASSWORD = "correct horse battery"
QUOTA = {"limits.cpu": "20", "limits.memory": "40Gi", "requests.storage": "100Gi"}
ENVIRONMENT_QUOTA = {"limits.cpu": "4", "limits.memory": "8Gi", "requests.storage": "10Gi"}
DEV = "tenants/initech/projects/shop/environments/dev"
NAMESPACE = "initech-shop-dev"


@dataclass(frozen=True, slots=True)
class World:
    """The platform with what was made in it."""

    nobody: User
    admin: User
    dev: User
    eve: User
    cluster: Kubectl
    home: Path

    async def kubectl(self, user: User) -> Kubectl:
        """kubectl with the kubeconfig that the API gives a user."""
        answer = await user.call("GET", "/clusters/local:kubeconfig")
        path = self.home / f"{abs(hash(user.token))}.kubeconfig"
        path.touch(0o600)
        path.write_text(str(answer.ok()))
        return Kubectl(path, self.home, NAMESPACE)

    async def ready(self, name: str = DEV, within: float = 30.0) -> Any:
        """The environment, once it is READY."""

        async def check() -> Any:
            shown = await self.admin.get(f"/{name}")
            assert shown["state"] == "READY", shown
            return shown

        return await eventually(check, within=within)


@asynccontextmanager
async def world(endpoints: dict[str, Any], home: Path) -> AsyncIterator[World]:
    """Makes the world on a fresh platform."""
    async with nobody(endpoints["rest"], Path(endpoints["ca"])) as anyone:
        admin = await anyone.sign_in("admin", Path(endpoints["admin_password_file"]).read_text().strip())
        await _cluster_online(admin)
        for user in ("ivy", "eve"):
            await admin.post("/users", {"userId": user, "user": {"displayName": user}, "initialPassword": PASSWORD})
        for tenant, user in (("initech", "ivy"), ("globex", "eve")):
            await make_tenant(admin, tenant)
            await admin.put(f"/tenants/{tenant}/projects/shop/environments/dev/members/{user}", {"role": "OPERATOR"})
        dev, eve = await anyone.sign_in("ivy", PASSWORD), await anyone.sign_in("eve", PASSWORD)
        made = World(anyone, admin, dev, eve, Kubectl(Path(endpoints["kubeconfig"]), home), home)
        await made.ready()
        await made.ready("tenants/globex/projects/shop/environments/dev")
        yield made


async def make_tenant(admin: User, tenant: str) -> None:
    """A tenant with a quota on `local`, a project `shop` and its environment `dev`."""
    await admin.post("/tenants", {"tenantId": tenant, "tenant": {"displayName": tenant.title()}})
    await admin.put(f"/tenants/{tenant}/quotas/local", {"hard": QUOTA})
    await admin.post(f"/tenants/{tenant}/projects", {"projectId": "shop", "project": {}})
    await make_environment(admin, f"tenants/{tenant}/projects/shop", "dev")


async def make_environment(admin: User, project: str, name: str, **more: Any) -> Any:
    """An isolated environment on `local`."""
    environment = {"cluster": "clusters/local", "quota": ENVIRONMENT_QUOTA, "isolation": {"environment": True}} | more
    return await admin.post(f"/{project}/environments", {"environmentId": name, "environment": environment})


async def _cluster_online(admin: User) -> None:
    async def check() -> bool:
        shown = await admin.get("/clusters/local")
        assert shown["state"] == "ONLINE", shown
        return True

    await eventually(check, within=60)
