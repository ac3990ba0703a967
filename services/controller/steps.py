"""The steps that make an environment; each answers with the condition it brings about."""

from __future__ import annotations

from libs.faults import AlreadyExists
from libs.kube.resources import (
    CLUSTER_ROLES,
    ENVIRONMENTS,
    LIMIT_RANGES,
    NAMESPACES,
    NETWORK_POLICIES,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
    TENANT_NETWORK_POLICIES,
)
from libs.reconcile import Condition
from services.controller import domain, drift, isolation, wanted
from services.controller.domain import Environment, Object
from services.controller.impersonated import groups_in
from services.controller.server import ServerFacts
from services.controller.tools import Tools
from services.controller.world import IMPERSONATED

_POD_SECURITY = (1, 23)
_HOLDING = ("NamespaceContentRemaining", "NamespaceFinalizersRemaining", "NamespaceDeletionContentFailure")


async def namespace(tools: Tools, about: Object, env: Environment) -> tuple[Object | None, Condition]:
    """The namespace with its labels; None while the environment may not have it or it is on its way out."""
    want = wanted.namespace(env)
    have = tools.world.get(NAMESPACES, env.namespace)
    claim = domain.claim(env, have, tools.namespace)
    if claim.reason:
        return None, Condition("NamespaceReady", "False", claim.reason, claim.message)
    if have is None:
        try:
            made = await tools.client.create(NAMESPACES, want)
        except AlreadyExists:  # made a moment ago by someone: judge it like any other
            have = await tools.client.get(NAMESPACES, env.namespace)
            claim = domain.claim(env, have, tools.namespace)
            if claim.reason:
                return None, Condition("NamespaceReady", "False", claim.reason, claim.message)
        else:
            await tools.recorder.record(ENVIRONMENTS, about, "Created", f"Created Namespace {env.namespace}")
            return made, Condition("NamespaceReady", "True", "Created")
    if "deletionTimestamp" in have["metadata"]:
        message = f"namespace {env.namespace} is being deleted and will be made again: {what_holds(have)}"
        return None, Condition("NamespaceReady", "False", "Terminating", message)
    if drift.drifted(want, have):
        have = await tools.client.patch(NAMESPACES, env.namespace, {"metadata": {**want["metadata"], "uid": have["metadata"]["uid"]}})
        reason, verb = ("Corrected", "Corrected labels of") if claim.taken else ("Adopted", "Took over")
        await tools.recorder.record(ENVIRONMENTS, about, reason, f"{verb} Namespace {env.namespace}")
    return have, Condition("NamespaceReady", "True", "AsWanted")


async def quota(tools: Tools, about: Object, env: Environment) -> tuple[Object | None, Condition]:
    """The ResourceQuota; ready once the cluster enforces what is wanted."""
    want = wanted.resource_quota(env)
    made = await tools.keeper.keep(RESOURCE_QUOTAS, about, [want] if want else [], env.namespace)
    if not want:
        return None, Condition("QuotaReady", "True", "NoQuota")
    status = made[0].get("status") or {}
    if not drift.same_quantities(status.get("hard") or {}, want["spec"]["hard"]):
        return made[0], Condition("QuotaReady", "Unknown", "Pending", "the cluster has not counted the new quota yet")
    return made[0], Condition("QuotaReady", "True", "AsWanted")


async def limit_range(tools: Tools, about: Object, env: Environment) -> Condition:
    """The LimitRange."""
    want = wanted.limit_range(env)
    await tools.keeper.keep(LIMIT_RANGES, about, [want] if want else [], env.namespace)
    return Condition("LimitRangeReady", "True", "AsWanted" if want else "NoLimits")


async def network_policy(tools: Tools, about: Object, env: Environment) -> Condition:
    """The NetworkPolicy that the tenant's switches ask for. Without the tenant's object what stands stays: absence says nothing."""
    policy = tools.world.get(TENANT_NETWORK_POLICIES, env.tenant)
    if policy is None:
        return Condition("NetworkPolicyReady", "False", "TenantNetworkPolicyMissing", f"there is no TenantNetworkPolicy {env.tenant} yet")
    cidrs = tools.world.pod_cidrs
    want = wanted.network_policy(env, isolation.policy_spec(isolation.switches(env, policy), cidrs))
    await tools.keeper.keep(NETWORK_POLICIES, about, [want] if want else [], env.namespace)
    if not want:
        return Condition("NetworkPolicyReady", "True", "Open")
    if not cidrs:
        message = "no node publishes its pods' addresses, so traffic from outside the cluster cannot be told apart and is shut out too"
        return Condition("NetworkPolicyReady", "True", "OutsideUnknown", message)
    return Condition("NetworkPolicyReady", "True", "Isolated")


async def rights(tools: Tools, about: Object, env: Environment) -> Condition:
    """RoleBindings of the groups, and the agent's leave to act with these groups."""
    await tools.keeper.keep(ROLE_BINDINGS, about, wanted.role_bindings(env), env.namespace)
    role = tools.world.get(CLUSTER_ROLES, IMPERSONATED)
    if role is None:
        message = f"ClusterRole {IMPERSONATED} is missing; apply the join manifest"
        return Condition("RightsReady", "False", "ClusterRoleMissing", message)
    groups = {group for groups in domain.groups_of(env).values() for group in groups}
    if not groups <= groups_in(role):
        return Condition("RightsReady", "Unknown", "Pending", "the agent may not act with the environment's groups yet")
    return Condition("RightsReady", "True", "AsWanted")


def server_conditions(server: ServerFacts) -> list[Condition]:
    """What an old server cannot do: said, but not held against the environment, which nothing can mend."""
    found = [Condition("PodSecurityReady", "True", "Labelled", counts=False)]
    if server.version < _POD_SECURITY:
        found = [Condition(
            "PodSecurityReady", "False", "NotSupported",
            f"Kubernetes {server.text} does not enforce Pod Security labels; 1.23 and newer do", counts=False,
        )]  # fmt: skip
    if not server.refuses_external_ips:
        message = f"Services may set externalIPs: the join manifest's admission policy (Kubernetes 1.30) is not here (server {server.text})"
        found.append(Condition("ExternalIPsRefused", "False", "NoAdmissionPolicy", message, counts=False))
    return found


def what_holds(found: Object) -> str:
    """What keeps a namespace from going, in the server's words."""
    conditions = (found.get("status") or {}).get("conditions") or ()
    told = [c["message"] for c in conditions if c["type"] in _HOLDING and c["status"] == "True"]
    return "; ".join(told) or "its contents are being removed"
