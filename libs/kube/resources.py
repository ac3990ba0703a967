"""Resource: a kind of object and where it lives in the API."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

GEMS_GROUP = "gems.kubegems.io"


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind.

    Attributes:
        group: API group; empty for core.
        version: API version, such as `v1`.
        plural: name in paths, such as `pods`.
        kind: name in objects, such as `Pod`.
        namespaced: whether its objects live in namespaces.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What objects carry as `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> str:
        """`{resource}.{version}.{group}`, such as `deployments.v1.apps` or `pods.v1.`."""
        return f"{self.plural}.{self.version}.{self.group}"

    def path(self, name: str = "", namespace: str | None = None, subresource: str = "") -> str:
        """URL path of the collection, of an object or of its subresource; a namespaced kind without a namespace means all."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if namespace and not self.namespaced:
            raise ValueError(f"{self.kind} lives in no namespace")
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name} needs a namespace")
        parts = [root, *(["namespaces", _part(namespace)] if namespace else []), self.plural]
        parts += [_part(part) for part in (name, subresource) if part]
        return "/".join(parts)


def _part(text: str) -> str:
    if text in (".", ".."):
        raise ValueError(f"{text!r} is not a name")
    return quote(text, safe="")


def _core(plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource("", "v1", plural, kind, namespaced)


def _gems(plural: str, kind: str) -> Resource:
    return Resource(GEMS_GROUP, "v1beta1", plural, kind, namespaced=False)


NAMESPACES = _core("namespaces", "Namespace", namespaced=False)
NODES = _core("nodes", "Node", namespaced=False)
EVENTS = _core("events", "Event")
PODS = _core("pods", "Pod")
SERVICES = _core("services", "Service")
SECRETS = _core("secrets", "Secret")
CONFIG_MAPS = _core("configmaps", "ConfigMap")
SERVICE_ACCOUNTS = _core("serviceaccounts", "ServiceAccount")
PERSISTENT_VOLUME_CLAIMS = _core("persistentvolumeclaims", "PersistentVolumeClaim")
RESOURCE_QUOTAS = _core("resourcequotas", "ResourceQuota")
LIMIT_RANGES = _core("limitranges", "LimitRange")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
JOBS = Resource("batch", "v1", "jobs", "Job")
INGRESSES = Resource("networking.k8s.io", "v1", "ingresses", "Ingress")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
SUBJECT_ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
TENANTS = _gems("tenants", "Tenant")
TENANT_RESOURCE_QUOTAS = _gems("tenantresourcequotas", "TenantResourceQuota")
TENANT_NETWORK_POLICIES = _gems("tenantnetworkpolicies", "TenantNetworkPolicy")
ENVIRONMENTS = _gems("environments", "Environment")

OURS = (TENANTS, TENANT_RESOURCE_QUOTAS, TENANT_NETWORK_POLICIES, ENVIRONMENTS)
BY_KIND = {resource.kind: resource for resource in OURS}
