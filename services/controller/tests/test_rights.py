"""What each role of the join manifest may do and, more important, may not: asked of a real API server."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.faults import PermissionDenied
from libs.kube import KubeClient, manifest
from libs.kube.resources import CLUSTER_ROLES, NAMESPACES, ROLE_BINDINGS, SERVICES, SUBJECT_ACCESS_REVIEWS
from services.controller import domain, impersonated, wanted
from services.controller.tests import objects

pytestmark = pytest.mark.cluster

Who = dict[str, Any]
AGENT: Who = {"user": "system:serviceaccount:kubegems-system:gems-agent"}
CONTROLLER: Who = {"user": "system:serviceaccount:kubegems-system:gems-controller"}
INVENTORY: Who = {"user": "gems:service:inventory"}
DESIRED: Who = {"user": "gems:service:desired-state"}


def member(group: str) -> Who:
    return {"user": "gems:user:someone", "groups": [group, "system:authenticated"]}


async def may(kube: KubeClient, who: Who, what: str, namespace: str = "") -> bool:
    """Asks for `verb resource[.group][/subresource][=name]`."""
    verb, _, rest = what.partition(" ")
    rest, _, name = rest.partition("=")
    resource, _, subresource = rest.partition("/")
    resource, _, group = resource.partition(".")
    attributes = {"verb": verb, "resource": resource, "group": group, "subresource": subresource, "name": name, "namespace": namespace}
    found = await kube.create(SUBJECT_ACCESS_REVIEWS, {"spec": {**who, "resourceAttributes": attributes}})
    return bool(found["status"]["allowed"])


async def expect(kube: KubeClient, who: Who, namespace: str, *, yes: str, no: str) -> None:
    """Asks for each line of both tables; tells all wrong answers at once."""
    wrong = []
    for answer, table in ((True, yes), (False, no)):
        for what in filter(None, (line.strip() for line in table.splitlines())):
            if await may(kube, who, what, namespace) is not answer:
                wrong.append(f"{what}: should be {answer}")
    assert not wrong, wrong


@pytest.fixture(scope="module")
async def place(kube: KubeClient, eventually: Any) -> AsyncIterator[str]:
    """A namespace with the role bindings that the controller makes, of tenant `rights`."""
    name = f"rights-{secrets.token_hex(4)}"
    found = objects.environment(name)
    found["spec"] |= {"tenant": "rights"}
    env = domain.environment(found)
    await kube.create(NAMESPACES, wanted.namespace(env))
    for binding in wanted.role_bindings(env):
        await kube.create(ROLE_BINDINGS, binding, name)
    operator = member("gems:environment:rights/shop/dev:operator")

    async def gathered() -> bool:
        """The controller manager has put the roles together from their parts."""
        return await may(kube, operator, "get pods/log", name) and await may(kube, operator, "create pods", name)

    await eventually(gathered, within=20)
    yield name
    await kube.delete(NAMESPACES, name)


OPERATOR_MAY = """
    get pods
    list pods
    watch pods
    create pods
    delete pods
    deletecollection pods
    get pods/log
    get pods/exec
    create pods/exec
    create pods/attach
    get pods/portforward
    create pods/portforward
    create pods/eviction
    patch pods/ephemeralcontainers
    get secrets
    list secrets
    create secrets
    delete secrets
    create configmaps
    create services
    create persistentvolumeclaims
    create deployments.apps
    patch deployments.apps/scale
    delete statefulsets.apps
    create daemonsets.apps
    create jobs.batch
    create cronjobs.batch
    create ingresses.networking.k8s.io
    update horizontalpodautoscalers.autoscaling
    create poddisruptionbudgets.policy
    get resourcequotas
    list limitranges
    get networkpolicies.networking.k8s.io
    list endpointslices.discovery.k8s.io
    list events
    get namespaces
"""
NEVER_IN_A_NAMESPACE = """
    create roles.rbac.authorization.k8s.io
    create rolebindings.rbac.authorization.k8s.io
    update rolebindings.rbac.authorization.k8s.io
    delete rolebindings.rbac.authorization.k8s.io
    create resourcequotas
    update resourcequotas
    delete resourcequotas
    patch limitranges
    delete limitranges
    create networkpolicies.networking.k8s.io
    update networkpolicies.networking.k8s.io
    delete networkpolicies.networking.k8s.io
    create endpoints
    update endpoints
    create endpointslices.discovery.k8s.io
    patch endpointslices.discovery.k8s.io
    get pods/proxy
    create pods/proxy
    get services/proxy
    create services/proxy
    create serviceaccounts/token
    update pods/status
    update services/status
    create pods/binding
    update namespaces
    patch namespaces
    delete namespaces
    update namespaces/finalize
    impersonate serviceaccounts
"""
NEVER_IN_THE_CLUSTER = """
    list nodes
    get nodes/proxy
    create nodes/proxy
    list namespaces
    create namespaces
    list secrets
    list persistentvolumes
    create clusterrolebindings.rbac.authorization.k8s.io
    bind clusterroles.rbac.authorization.k8s.io
    escalate clusterroles.rbac.authorization.k8s.io
    get environments.gems.kubegems.io
    patch environments.gems.kubegems.io
    impersonate users
    impersonate groups=system:masters
    approve signers.certificates.k8s.io
    create certificatesigningrequests.certificates.k8s.io
    create tokenreviews.authentication.k8s.io
"""
READER_MAY = """
    get pods
    watch pods
    get pods/log
    list configmaps
    list services
    list deployments.apps
    get deployments.apps/scale
    list jobs.batch
    list ingresses.networking.k8s.io
    list events
    get namespaces
"""
READER_NEVER = """
    get secrets
    list secrets
    watch secrets
    get pods/exec
    create pods/exec
    create pods/attach
    get pods/portforward
    create pods/portforward
    create pods
    patch pods
    delete pods
    create pods/eviction
    patch pods/ephemeralcontainers
    patch deployments.apps
    patch deployments.apps/scale
    create configmaps
    create services
    create events
"""


@pytest.mark.parametrize(
    "group",
    [
        "gems:tenant:rights:admin",
        "gems:project:rights/shop:admin",
        "gems:project:rights/shop:ops",
        "gems:environment:rights/shop/dev:operator",
    ],
)
async def test_operators(kube: KubeClient, place: str, group: str) -> None:
    """Workloads, secrets and exec in the namespace; nothing that guards it, nothing beyond it."""
    await expect(kube, member(group), place, yes=OPERATOR_MAY, no=NEVER_IN_A_NAMESPACE)
    await expect(kube, member(group), "", yes="", no=NEVER_IN_THE_CLUSTER)
    await expect(kube, member(group), "default", yes="", no=OPERATOR_MAY)


@pytest.mark.parametrize(
    "group", ["gems:project:rights/shop:dev", "gems:project:rights/shop:test", "gems:environment:rights/shop/dev:reader"]
)
async def test_readers(kube: KubeClient, place: str, group: str) -> None:
    """Look and read logs; no secret, no exec, no write."""
    await expect(kube, member(group), place, yes=READER_MAY, no=READER_NEVER + NEVER_IN_A_NAMESPACE)
    await expect(kube, member(group), "", yes="", no=NEVER_IN_THE_CLUSTER)


@pytest.mark.parametrize(
    "group",
    [
        "gems:tenant:rights:member",
        "gems:tenant:other:admin",
        "gems:project:other/shop:ops",
        "gems:environment:rights/shop/test:operator",
        "x",
    ],
)
async def test_others(kube: KubeClient, place: str, group: str) -> None:
    """Another tenant, project or environment, or mere membership, means nothing here."""
    await expect(kube, member(group), place, yes="", no=OPERATOR_MAY + NEVER_IN_A_NAMESPACE)


async def test_platform_auditors(kube: KubeClient, place: str) -> None:
    """Everything but secrets, in the whole cluster; nothing is written, nobody is exec'd into."""
    who = member("gems:platform:auditor")
    cluster_wide = """
        list namespaces
        list nodes
        list persistentvolumes
        list clusterroles.rbac.authorization.k8s.io
        list rolebindings.rbac.authorization.k8s.io
        list environments.gems.kubegems.io
        list validatingadmissionpolicies.admissionregistration.k8s.io
    """
    await expect(kube, who, "", yes=READER_MAY + cluster_wide, no=READER_NEVER + "get nodes/proxy\npatch environments.gems.kubegems.io")
    await expect(kube, who, place, yes=READER_MAY, no=READER_NEVER + NEVER_IN_A_NAMESPACE)


async def test_platform_admins(kube: KubeClient, place: str) -> None:
    """Cluster admins, unless the manifest was rendered without."""
    await expect(kube, member("gems:platform:admin"), place, yes=OPERATOR_MAY + NEVER_IN_A_NAMESPACE, no="")
    await expect(kube, member("gems:platform:admin"), "", yes=NEVER_IN_THE_CLUSTER, no="")


async def test_inventory(kube: KubeClient) -> None:
    """Counts nodes and pods; no secrets, no configuration, no writes."""
    yes = "list nodes\nlist pods\nlist namespaces\nlist resourcequotas\nlist storageclasses.storage.k8s.io"
    no = "list secrets\nlist configmaps\nget pods/log\ncreate pods\npatch nodes\nlist rolebindings.rbac.authorization.k8s.io\nwatch pods"
    await expect(kube, INVENTORY, "", yes=yes, no=no)


async def test_desired_state(kube: KubeClient) -> None:
    """Our four kinds, and not their status; nothing else at all."""
    kinds = ("environments", "tenants", "tenantresourcequotas", "tenantnetworkpolicies")
    yes = "\n".join(f"{verb} {kind}.gems.kubegems.io" for kind in kinds for verb in ("get", "list", "watch", "create", "patch", "delete"))
    no = "\n".join(f"patch {kind}.gems.kubegems.io/status" for kind in kinds)
    no += "\nlist namespaces\ncreate namespaces\nlist secrets\nlist pods\ncreate rolebindings.rbac.authorization.k8s.io"
    no += "\nlist customresourcedefinitions.apiextensions.k8s.io\ndeletecollection environments.gems.kubegems.io"
    await expect(kube, DESIRED, "", yes=yes, no=no)


async def test_the_agent_in_the_cluster(kube: KubeClient) -> None:
    """Watches everything but secrets; writes nothing as itself, our own kinds included."""
    yes = """
        list pods
        watch pods
        watch deployments.apps
        watch namespaces
        watch nodes
        watch events
        watch environments.gems.kubegems.io
        watch rolebindings.rbac.authorization.k8s.io
        watch customresourcedefinitions.apiextensions.k8s.io
    """
    no = """
        get secrets
        list secrets
        watch secrets
        get pods/log
        create pods/exec
        get pods/exec
        create pods/portforward
        create pods
        patch deployments.apps
        create namespaces
        patch environments.gems.kubegems.io
        create environments.gems.kubegems.io
        create configmaps
        create rolebindings.rbac.authorization.k8s.io
        patch clusterroles.rbac.authorization.k8s.io=gems:impersonated
        escalate clusterroles.rbac.authorization.k8s.io=gems:impersonated
        get nodes/proxy
        create serviceaccounts/token
    """
    await expect(kube, AGENT, "", yes=yes, no=no)


async def test_the_agent_in_its_own_namespace(kube: KubeClient) -> None:
    """Its key, state and lease, by name; no other secret, and no token of the controller."""
    yes = """
        get secrets=gems-agent
        update secrets=gems-agent
        create secrets
        get configmaps=gems-agent
        update leases.coordination.k8s.io=gems-agent
        create leases.coordination.k8s.io
    """
    no = """
        list secrets
        get secrets=other
        get secrets=gems-agent-join
        update leases.coordination.k8s.io=gems-controller
        create serviceaccounts/token=gems-controller
        create pods
    """
    await expect(kube, AGENT, "kubegems-system", yes=yes, no=no)


async def test_whom_the_agent_may_act_for(kube: KubeClient) -> None:
    """Users, uids and two extras freely; groups only by name; never a system group, never a service account."""
    yes = """
        impersonate users=gems:user:dev
        impersonate uids.authentication.k8s.io=some-uid
        impersonate userextras.authentication.k8s.io/gems.kubegems.io/session=x
        impersonate groups=gems:platform:admin
        impersonate groups=gems:platform:auditor
    """
    no = """
        impersonate groups
        impersonate groups=system:masters
        impersonate groups=system:nodes
        impersonate groups=gems:tenant:nobody:admin
        impersonate serviceaccounts
        impersonate serviceaccounts=gems-controller
        impersonate userextras.authentication.k8s.io/scopes=x
    """
    await expect(kube, AGENT, "", yes=yes, no=no)


async def test_the_controller(kube: KubeClient) -> None:
    """What it makes, two roles to bind and one to write; no secrets, no workloads, nobody to act for."""
    yes = """
        create namespaces
        delete namespaces
        create resourcequotas
        update limitranges
        delete networkpolicies.networking.k8s.io
        create rolebindings.rbac.authorization.k8s.io
        bind clusterroles.rbac.authorization.k8s.io=gems:operator
        bind clusterroles.rbac.authorization.k8s.io=gems:reader
        escalate clusterroles.rbac.authorization.k8s.io=gems:impersonated
        patch clusterroles.rbac.authorization.k8s.io=gems:impersonated
        patch environments.gems.kubegems.io/status
        patch environments.gems.kubegems.io
        create events
    """
    no = """
        list secrets
        get secrets
        list pods
        create pods
        get pods/exec
        create environments.gems.kubegems.io
        delete environments.gems.kubegems.io
        bind clusterroles.rbac.authorization.k8s.io=cluster-admin
        bind clusterroles.rbac.authorization.k8s.io=gems:auditor
        bind clusterroles.rbac.authorization.k8s.io=gems:impersonated
        bind clusterroles.rbac.authorization.k8s.io
        escalate clusterroles.rbac.authorization.k8s.io=gems:operator
        escalate clusterroles.rbac.authorization.k8s.io
        patch clusterroles.rbac.authorization.k8s.io=gems:operator
        create clusterroles.rbac.authorization.k8s.io
        list clusterroles.rbac.authorization.k8s.io
        create clusterrolebindings.rbac.authorization.k8s.io
        create roles.rbac.authorization.k8s.io
        escalate roles.rbac.authorization.k8s.io
        impersonate users
        impersonate groups=gems:platform:admin
        patch customresourcedefinitions.apiextensions.k8s.io
        patch nodes
        create serviceaccounts/token
        deletecollection namespaces
    """
    await expect(kube, CONTROLLER, "", yes=yes, no=no)
    own = "\n".join(f"{verb} leases.coordination.k8s.io=gems-controller" for verb in ("get", "update", "create"))
    await expect(kube, CONTROLLER, "kubegems-system", yes=own, no="update leases.coordination.k8s.io=gems-agent\nget secrets=gems-agent")


async def test_a_binding_to_a_role_that_is_not_ours_is_refused_to_the_controller(account: KubeClient, place: str) -> None:
    """Not only in a review: the server refuses the write itself."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}
    with pytest.raises(PermissionDenied):
        await account.create(ROLE_BINDINGS, {"metadata": {"name": "x"}, "roleRef": role, "subjects": [subject]}, place)


async def test_services_in_environments_may_not_catch_foreign_addresses(kube: KubeClient, place: str, eventually: Any) -> None:
    """externalIPs are refused there, even to cluster admins, and only there; a plain Service passes."""
    spec = {"ports": [{"port": 80, "protocol": "TCP"}]}

    async def refused() -> bool:
        try:
            made = await kube.create(SERVICES, {"metadata": {"generateName": "e-"}, "spec": {**spec, "externalIPs": ["192.0.2.1"]}}, place)
        except PermissionDenied as fault:
            return "externalIPs" in fault.message
        await kube.delete(SERVICES, made["metadata"]["name"], place)
        return False

    await eventually(refused, within=10)
    await kube.create(SERVICES, {"metadata": {"name": "plain"}, "spec": spec}, place)
    with pytest.raises(PermissionDenied):
        await kube.patch(SERVICES, "plain", {"spec": {"externalIPs": ["192.0.2.1"]}}, place)
    made = await kube.create(SERVICES, {"metadata": {"generateName": "e-"}, "spec": {**spec, "externalIPs": ["192.0.2.1"]}}, "default")
    await kube.delete(SERVICES, made["metadata"]["name"], "default")


async def test_the_list_of_groups_is_never_empty(kube: KubeClient) -> None:
    """An empty resourceNames would mean every group."""
    for name in ("gems:impersonated", "gems:part:impersonated-base"):
        role = await kube.get(CLUSTER_ROLES, name)
        assert all(rule.get("resourceNames") for rule in role.get("rules") or () if "groups" in rule["resources"])


async def test_applying_the_manifest_again_takes_no_group_away(kube: KubeClient, cluster: Any) -> None:
    """An upgrade must not refuse users at work until the controller has mended the list."""
    group = f"gems:tenant:again-{secrets.token_hex(4)}:admin"
    role = await kube.get(CLUSTER_ROLES, "gems:impersonated")
    await kube.replace(CLUSTER_ROLES, {**role, "rules": impersonated.rules({group, *impersonated.groups_in(role)})})
    await cluster.apply(manifest.render())
    assert group in impersonated.groups_in(await kube.get(CLUSTER_ROLES, "gems:impersonated"))
