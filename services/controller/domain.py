"""What the controller knows about environments: names, labels, groups, and whose a namespace is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

GROUP = "gems.kubegems.io"
TENANT = f"{GROUP}/tenant"
PROJECT = f"{GROUP}/project"
ENVIRONMENT = f"{GROUP}/environment"
PLUGINS = f"{GROUP}/plugins"
UID = f"{GROUP}/uid"
TOMBSTONE = f"{GROUP}/tombstone"
GENERATION = f"{GROUP}/generation"
TRACEPARENT = f"{GROUP}/traceparent"
OWNER_UID = f"{GROUP}/environment-uid"  # on a namespace: uid of the environment it belongs to
OWNER_NAME = f"{GROUP}/environment-name"  # on a namespace: tenant/project/environment it was made for
MANAGED_BY = "app.kubernetes.io/managed-by"
POD_SECURITY = "pod-security.kubernetes.io/enforce"
CONTROLLER = "gems-controller"
FINALIZER = f"finalizer.{GROUP}/environment"
OPERATOR = "gems:operator"
READER = "gems:reader"

_PROJECT_ROLES = ("admin", "ops", "dev", "test")
_ENVIRONMENT_ROLES = ("operator", "reader")
_RESERVED_PREFIXES = ("kube-", "kubegems", "gems-")


@dataclass(frozen=True, slots=True)
class Environment:
    """An Environment object, read.

    Attributes:
        name: of the object.
        uid: of the row it was derived from; the object's own uid when no annotation says so.
        deleting: a deletion was asked for.
        tombstoned: the hub asked for it, so that what is in the cluster may go too.
        namespace_uid: uid of the namespace that the status last named; empty before.
    """

    name: str
    uid: str
    tenant: str
    project: str
    environment: str
    namespace: str
    adopt: bool
    keep_namespace: bool
    pod_security: str
    quota_name: str
    quota: Mapping[str, str]
    limits_name: str
    limits: tuple[Mapping[str, Any], ...]
    deleting: bool
    tombstoned: bool
    namespace_uid: str

    @property
    def full_name(self) -> str:
        """`tenant/project/environment`."""
        return f"{self.tenant}/{self.project}/{self.environment}"

    @property
    def common_labels(self) -> dict[str, str]:
        """The three labels that all of an environment carries."""
        return {TENANT: self.tenant, PROJECT: self.project, ENVIRONMENT: self.environment}

    @property
    def made_labels(self) -> dict[str, str]:
        """Labels of what the controller makes in the namespace."""
        return {**self.common_labels, MANAGED_BY: CONTROLLER}


def environment(found: Object) -> Environment:
    """Reads an Environment object."""
    metadata, spec = found["metadata"], found["spec"]
    annotations = metadata.get("annotations") or {}
    return Environment(
        name=metadata["name"],
        uid=annotations.get(UID) or metadata["uid"],
        tenant=spec["tenant"],
        project=spec["project"],
        environment=spec["environment"],
        namespace=spec["namespace"],
        adopt=bool(spec.get("adoptNamespace")),
        keep_namespace=spec.get("deletePolicy") == "delLabels",
        pod_security=spec.get("podSecurity") or "baseline",
        quota_name=spec.get("resourceQuotaName") or "default",
        quota={key: str(value) for key, value in (spec.get("resourceQuota") or {}).items()},
        limits_name=spec.get("limitRangeName") or "default",
        limits=tuple(spec.get("limitRange") or ()),
        deleting="deletionTimestamp" in metadata,
        tombstoned=_tombstoned(annotations),
        namespace_uid=(found.get("status") or {}).get("namespaceUid", ""),
    )


def _tombstoned(annotations: Mapping[str, str]) -> bool:
    """A tombstone counts only when it is not older than what was wanted last: an object wanted again has outlived it."""
    if not annotations.get(TOMBSTONE):
        return False
    try:
        return int(annotations[TOMBSTONE]) >= int(annotations.get(GENERATION) or 0)
    except ValueError:
        return False


def misnamed(found: Object, field: str) -> str:
    """Why an object may not be acted on: the CRDs' CEL rule once more, for servers that know no CEL. Empty when it may.

    Args:
        found: a custom resource of ours.
        field: field of its spec that must equal its name.
    """
    name, given = found["metadata"]["name"], found["spec"].get(field)
    return "" if given == name else f"spec.{field} is {given!r}, which must equal the object's name {name!r}"


def reserved(namespace: str, own: str) -> bool:
    """Whether a namespace can never be an environment's."""
    return namespace in ("default", own) or namespace.startswith(_RESERVED_PREFIXES)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether an environment may have a namespace: `reason` is empty when it may; `taken` when it has it already."""

    reason: str = ""
    message: str = ""
    taken: bool = False


def claim(wanted: Environment, namespace: Object | None, own: str) -> Claim:
    """Judges whose a namespace is; nothing may be changed in one that is refused."""
    name = wanted.namespace
    if reserved(name, own):
        return Claim("NamespaceReserved", f"namespace {name} is reserved and cannot be an environment's")
    if namespace is None:
        return Claim()
    metadata = namespace["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    owner, owner_name = annotations.get(OWNER_UID), annotations.get(OWNER_NAME)
    if owner and owner != wanted.uid:
        return Claim("NamespaceTaken", f"namespace {name} belongs to environment {owner_name or owner}")
    if owner_name and owner_name != wanted.full_name:
        return Claim("SpecImmutable", f"namespace {name} was made for {owner_name}; tenant, project and environment cannot change")
    if owner or metadata["uid"] == wanted.namespace_uid:
        return Claim(taken=True)
    return _claim_unmarked(wanted, labels)


def _claim_unmarked(wanted: Environment, labels: Mapping[str, str]) -> Claim:
    """The same for a namespace that no annotation gives to an environment."""
    if labels.get(TENANT) not in (None, wanted.tenant):
        return Claim("NamespaceTaken", f"namespace {wanted.namespace} belongs to tenant {labels[TENANT]}")
    if wanted.common_labels.items() <= labels.items():
        return Claim(taken=True)
    if wanted.adopt:
        return Claim()
    return Claim("NamespaceExists", f"namespace {wanted.namespace} exists already; taking it over needs spec.adoptNamespace")


def groups_of(wanted: Environment) -> dict[str, tuple[str, ...]]:
    """Groups by the ClusterRole they are bound to in the environment's namespace."""
    tenant, project, whole = wanted.tenant, f"{wanted.tenant}/{wanted.project}", wanted.full_name
    return {
        OPERATOR: (
            f"gems:environment:{whole}:operator", f"gems:project:{project}:admin",
            f"gems:project:{project}:ops", f"gems:tenant:{tenant}:admin",
        ),
        READER: (f"gems:environment:{whole}:reader", f"gems:project:{project}:dev", f"gems:project:{project}:test"),
    }  # fmt: skip


def impersonated_groups(tenants: Iterable[str], environments: Iterable[Environment]) -> set[str]:
    """Every group of memberships that the agent may act with in this cluster."""
    found = {f"gems:tenant:{tenant}:admin" for tenant in tenants}
    for one in environments:
        found.add(f"gems:tenant:{one.tenant}:admin")
        found |= {f"gems:project:{one.tenant}/{one.project}:{role}" for role in _PROJECT_ROLES}
        found |= {f"gems:environment:{one.full_name}:{role}" for role in _ENVIRONMENT_ROLES}
    return found
