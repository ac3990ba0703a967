"""What should stand in an environment's namespace, as plain objects. Pure."""

from __future__ import annotations

from typing import Any

from services.controller.domain import OWNER_NAME, OWNER_UID, POD_SECURITY, Environment, Object, groups_of

_RBAC = "rbac.authorization.k8s.io"
_NO_QUOTA = ("limits.storage",)  # kept in some tenants' quotas; a ResourceQuota knows no such resource


def namespace(wanted: Environment) -> Object:
    """The namespace; only these labels and annotations are ours, others stay."""
    return {
        "metadata": {
            "name": wanted.namespace,
            "labels": {**wanted.common_labels, POD_SECURITY: wanted.pod_security},
            "annotations": {OWNER_UID: wanted.uid, OWNER_NAME: wanted.full_name},
        }
    }


def resource_quota(wanted: Environment) -> Object | None:
    """The ResourceQuota; None when nothing is limited."""
    hard = {key: value for key, value in wanted.quota.items() if key not in _NO_QUOTA}
    return _made(wanted, wanted.quota_name, spec={"hard": hard}) if hard else None


def limit_range(wanted: Environment) -> Object | None:
    """The LimitRange; None when no container gets defaults."""
    return _made(wanted, wanted.limits_name, spec={"limits": [dict(item) for item in wanted.limits]}) if wanted.limits else None


def role_bindings(wanted: Environment) -> list[Object]:
    """Bindings from the groups of memberships to what they may do here; a membership change needs no write."""
    return [
        _made(
            wanted, role,
            roleRef={"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            subjects=[{"apiGroup": _RBAC, "kind": "Group", "name": group} for group in groups],
        )
        for role, groups in groups_of(wanted).items()
    ]  # fmt: skip


def network_policy(wanted: Environment, spec: Object | None) -> Object | None:
    """The NetworkPolicy with a derived spec (see `isolation`); None when the environment is open."""
    return _made(wanted, "default", spec=spec) if spec else None


def _made(wanted: Environment, name: str, **content: Any) -> Object:
    return {"metadata": {"name": name, "namespace": wanted.namespace, "labels": wanted.made_labels}, **content}
