"""The local policy: what the cluster's owner has the agent refuse, whatever the hub allows.

It lies in ConfigMap `gems-agent-policy` of the agent's own namespace, key `policy.yaml`, and can only be changed in the
cluster itself: the agent refuses to write that ConfigMap for anyone. A policy that cannot be understood denies
everything of people, since it was meant to deny something.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from libs.faults import PermissionDenied, Unavailable
from libs.kube import Principal
from libs.tunnel.kubernetes import Target

NAME = "gems-agent-policy"
KEY = "policy.yaml"
FIELDS = ("users", "groups", "verbs", "namespaces")
_MOST_RULES = 200
_OF_KUBELETS = ("exec", "attach", "portforward", "log")  # what `nodes/proxy` gives in every pod of a node
_CLUSTER_WIDE = frozenset({
    "nodes", "namespaces", "persistentvolumes", "componentstatuses", "storageclasses", "csidrivers", "csinodes", "volumeattachments",
    "clusterroles", "clusterrolebindings", "customresourcedefinitions", "apiservices", "priorityclasses", "runtimeclasses",
    "ingressclasses", "gatewayclasses", "certificatesigningrequests", "flowschemas", "prioritylevelconfigurations",
    "mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies",
    "validatingadmissionpolicybindings", "tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews",
    "selfsubjectrulesreviews", "selfsubjectreviews", "tenants", "tenantresourcequotas", "tenantnetworkpolicies", "environments",
})  # fmt: skip


class DeniedHere(PermissionDenied):
    """The cluster's owner denies it."""

    reason = "LOCAL_POLICY"


class PolicyUnknown(Unavailable):
    """The policy has not been read yet."""

    reason = "LOCAL_POLICY_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Rule:
    """Denies what matches all fields; an empty one matches anything."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()

    def matches(self, who: Principal, target: Target) -> bool:
        """Whether a request falls under it."""
        names = (who.user, who.user.removeprefix("gems:user:"))
        return (
            _any(self.users, names)
            and _any(self.groups, who.groups)
            and _any(self.verbs, (target.verb, target.action, target.subresource, *(_OF_KUBELETS if _kubelet(target) else ())))
            and (not self.namespaces or _everywhere(target) or _any(self.namespaces, (target.namespace,)))
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What is denied; `problem` says why it cannot be understood, which denies people everything."""

    deny: tuple[Rule, ...] = ()
    problem: str = ""


def parse(data: dict[str, Any]) -> Policy:
    """The policy in a ConfigMap's data."""
    try:
        return Policy(tuple(_rules(yaml.safe_load(data[KEY]))))
    except KeyError:
        return Policy(problem=f"ConfigMap {NAME} has no key {KEY}")
    except yaml.YAMLError:
        return Policy(problem=f"{KEY} of ConfigMap {NAME} is no YAML")
    except ValueError as error:
        return Policy(problem=f"{KEY} of ConfigMap {NAME}: {error}")


@dataclass(slots=True)
class LocalPolicy:
    """The policy in force.

    Attributes:
        namespace: the agent's own.
        current: None until it was read once.
        listeners: called after each change.
    """

    namespace: str
    current: Policy | None = None
    listeners: set[Callable[[], None]] = field(default_factory=set)

    def put(self, policy: Policy) -> None:
        """Takes a policy into force."""
        if policy != self.current:
            self.current = policy
            for listener in list(self.listeners):
                listener()

    def check(self, who: Principal, target: Target) -> None:
        """Raises DeniedHere for what the owner denies, PolicyUnknown before that is known; unattended work of the hub may go on."""
        if _own(target, self.namespace):
            raise DeniedHere(f"ConfigMap {NAME} belongs to the cluster's owner and cannot be changed through the hub")
        if not who.user.startswith("gems:user:"):
            return
        if self.current is None:
            raise PolicyUnknown("the agent has not read its cluster's policy yet")
        if self.current.problem:
            raise DeniedHere(f"the policy of the cluster's owner cannot be understood: {self.current.problem}")
        for number, rule in enumerate(self.current.deny, 1):
            if rule.matches(who, target):
                raise DeniedHere(f"the cluster's owner denies this: rule {number} of ConfigMap {NAME}", {"rule": str(number)})


def _rules(content: Any) -> Iterable[Rule]:
    if content is None:
        return
    if not isinstance(content, dict) or set(content) - {"deny"}:
        raise ValueError("it must hold `deny` and nothing else")
    rules = content.get("deny") or []
    if not isinstance(rules, list) or len(rules) > _MOST_RULES:
        raise ValueError(f"deny must be a list of at most {_MOST_RULES} rules")
    for number, rule in enumerate(rules, 1):
        if not isinstance(rule, dict) or not rule or set(rule) - set(FIELDS):
            raise ValueError(f"rule {number} must hold some of {', '.join(FIELDS)} and nothing else")
        if not all(isinstance(v, list) and v and all(isinstance(x, str) and x for x in v) for v in rule.values()):
            raise ValueError(f"each field of rule {number} must be a list of texts that is not empty")
        yield Rule(**{name: tuple(values) for name, values in rule.items()})


def _any(patterns: tuple[str, ...], values: Iterable[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns for value in values if value)


def _everywhere(target: Target) -> bool:
    """Whether a request reaches into all namespaces: no namespace is named, and the kind is not known to have none."""
    known = target.resource in _CLUSTER_WIDE and (not target.group or target.group.endswith((".k8s.io", ".kubegems.io")))
    return bool(target.resource) and not target.namespace and (not known or _kubelet(target))


def _kubelet(target: Target) -> bool:
    return (target.group, target.resource, target.subresource) == ("", "nodes", "proxy")


def _own(target: Target, namespace: str) -> bool:
    """Whether a request could change the policy itself."""
    if target.reads or target.namespace != namespace or target.group:
        return False
    if target.resource == "namespaces":
        return target.verb == "delete"
    return target.resource == "configmaps" and target.name in ("", NAME)  # without a name: made, its name is in the body, or all deleted
