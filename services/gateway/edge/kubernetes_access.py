"""What `/k8s` asks of identity and fleet."""

from __future__ import annotations

from libs.faults import PermissionDenied
from libs.pg import Database
from libs.rpc.call import Caller
from libs.tunnel.kubernetes import Target
from services.gateway.identity import kubernetes_limits
from services.gateway.identity.app import Identity
from services.gateway.identity.principals import Principal

_GET = "fleet.clusters.get"
_IMPERSONATE = "fleet.clusters.impersonate"


class KubernetesAccess:
    """Implements the `Access` of the Kubernetes edge."""

    def __init__(self, identity: Identity, database: Database) -> None:
        self._identity, self._database = identity, database

    async def cluster_uid(self, name: str) -> str | None:
        """The uid of a cluster; None when there is none."""
        async with self._database.transaction(readonly=True) as tx:
            uid = await tx.value("SELECT uid FROM fleet.clusters WHERE name = $1", name)
        return None if uid is None else str(uid)

    async def authenticate(self, token: str, cluster_uid: str) -> Caller:
        """The user of an access or kubeconfig token; raises NotSignedIn."""
        return await self._identity.authenticator.kubernetes(token, cluster_uid)

    async def still(self, caller: Caller) -> Caller:
        """The caller as it stands now; raises NotSignedIn when its session, API key or user has ended."""
        return await self._identity.authenticator.still(caller)

    def read_at(self) -> float:
        """When (monotonic) that was read which answers come from."""
        return self._identity.directory.read_at

    def permit(self, caller: Caller, target: Target, environment: str, address: str) -> None:
        """Raises KeyForbids when the caller came by an API key that does not give this; notes the key's use."""
        self._identity.authenticator.used(caller, address)
        kubernetes_limits.check(caller, target, environment)

    def visible(self, caller: Caller, name: str) -> bool:
        """Whether the caller may know of the cluster."""
        return caller.allows(_GET, f"clusters/{name}")

    async def principal(self, caller: Caller, cluster_uid: str) -> Principal:
        """As whom the caller acts there."""
        return await self._identity.principals.of_caller(caller, cluster_uid)

    async def impersonate(self, caller: Caller, cluster: str, cluster_uid: str, username: str) -> Principal:
        """Another user with that user's own groups; PermissionDenied, NotFound."""
        if not caller.allows(_IMPERSONATE, f"clusters/{cluster}"):
            raise PermissionDenied("Impersonate-* headers are not taken: the hub says who you are", {"permission": _IMPERSONATE})
        return await self._identity.principals.principal(username, cluster_uid)

    async def environment(self, cluster_uid: str, namespace: str) -> str:
        """The environment that a namespace belongs to; empty for none."""
        places = self._identity.directory.places.all
        return next((p.name for p in places if p.cluster_uid == cluster_uid and p.namespace == namespace), "")
