"""The doctor of a cluster's grants: silent on a sound cluster, and each planted grant is found and named."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from deploy.join.doctor import Doctor, Report
from tests.kit.cluster import Cluster

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CONTROLLER = '{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:serviceaccount:kubegems-system:gems-controller"}'
AGENT = "{kind: ServiceAccount, name: gems-agent, namespace: kubegems-system}"


def binding(name: str, role: str, subject: str, *, namespace: str = "", kind: str = "ClusterRole") -> str:
    """A binding as a manifest."""
    where = f", namespace: {namespace}" if namespace else ""
    scope = "RoleBinding" if namespace else "ClusterRoleBinding"
    return (
        f'apiVersion: rbac.authorization.k8s.io/v1\nkind: {scope}\nmetadata: {{name: "{name}"{where}}}\n'
        f'roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: "{role}"}}\nsubjects: [{subject}]\n'
    )


def group(name: str) -> str:
    """A group as a subject."""
    return f'{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "{name}"}}'


def role(name: str, rules: str, labels: str = "{}") -> str:
    """A ClusterRole as a manifest."""
    return f'apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: "{name}", labels: {labels}}}\nrules: {rules}\n'


IMPERSONATE = '[{apiGroups: [""], resources: [users, groups], verbs: [impersonate]}]'
SECRETS = '[{apiGroups: [""], resources: [secrets], verbs: [get]}]'
OBSERVER = '{"gems.kubegems.io/aggregate-to-observer": "true"}'
PLANTED = {
    "the agent as cluster admin": (
        binding("planted", "cluster-admin", AGENT),
        "gives gems-agent ClusterRole cluster-admin; may do everything",
    ),
    "by its user name": (
        binding("planted", "view", CONTROLLER),
        "gives gems-controller ClusterRole view",
    ),
    "by all service accounts": (binding("planted", "edit", group("system:serviceaccounts")), "gives agent and controller (by group"),
    "by its namespace's": (
        binding("planted", "edit", group("system:serviceaccounts:kubegems-system"), namespace="default"),
        "default/planted gives",
    ),
    "by everyone": (binding("planted", "view", group("system:authenticated")), "gives everyone"),
    "cluster admin for a group of ours": (
        binding("planted", "cluster-admin", group("gems:tenant:acme:admin")),
        "gives group gems:tenant:acme:admin",
    ),
    "act as anyone": (
        role("planted", IMPERSONATE) + "---\n" + binding("planted", "planted", AGENT),
        "gives gems-agent ClusterRole planted; may act as anyone",
    ),
    "secrets by a label": (role("planted", SECRETS, OBSERVER), "adds to what the agent watches; may read secrets"),
    "another role in an environment": (
        binding("planted", "edit", group("gems:environment:a/b/c:reader"), namespace="default"),
        "gives group gems:environment",
    ),
}


async def examined(cluster: Cluster, *, without_cluster_admin: bool = False) -> Report:
    """What the doctor finds."""
    return await Doctor(cluster.kubectl, without_cluster_admin=without_cluster_admin).examine()


async def test_a_sound_cluster_has_nothing_to_tell(cluster: Cluster) -> None:
    """The manifest, and what the controller makes in an environment; the opt-in is a note, or a finding when it was not wanted."""
    await cluster.apply(binding("people", "gems:operator", group("gems:environment:a/b/c:operator"), namespace="default"))
    try:
        report = await examined(cluster)
        assert report.findings == []
        assert "platform admins are cluster admins here" in report.notes[0]
        (unwanted,) = (await examined(cluster, without_cluster_admin=True)).findings
        assert unwanted.startswith("ClusterRoleBinding gems:platform:admin gives group gems:platform:admin ClusterRole cluster-admin")
        assert report.constrained is not None
    finally:
        await cluster.kubectl("delete", "rolebinding", "people", "--namespace", "default")


@pytest.mark.parametrize("what", PLANTED)
async def test_a_planted_grant_is_found(cluster: Cluster, what: str) -> None:
    """It is named with whom it reaches and what it lets them do; taken away, nothing is found."""
    text, told = PLANTED[what]
    await cluster.kubectl("apply", "-f", "-", stdin=text)
    try:
        (found,) = (await examined(cluster)).findings
        assert told in found
    finally:
        await cluster.kubectl("delete", "-f", "-", stdin=text)
    assert (await examined(cluster)).findings == []


async def test_a_subject_added_to_a_binding_of_kubernetes_is_found(cluster: Cluster) -> None:
    """The default binding of `cluster-admin` may be widened by hand, and is told like any other."""
    subject = '{"kind":"Group","name":"system:serviceaccounts","apiGroup":"rbac.authorization.k8s.io"}'
    patch = ("patch", "clusterrolebinding", "cluster-admin", "--type=json", "-p")
    await cluster.kubectl(*patch, f'[{{"op":"add","path":"/subjects/-","value":{subject}}}]')
    try:
        (found,) = (await examined(cluster)).findings
        assert found.startswith("ClusterRoleBinding cluster-admin gives agent and controller (by group")
    finally:
        await cluster.kubectl(*patch, '[{"op":"remove","path":"/subjects/1"}]')
    assert (await examined(cluster)).findings == []


async def test_a_rule_added_to_a_role_of_ours_is_found(cluster: Cluster) -> None:
    """Directly, also in the one role whose rules are the controller's: there anything but groups of environments."""
    secrets = '{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}'
    anyone = '{"apiGroups":[""],"resources":["groups"],"verbs":["impersonate"]}'
    for name, patch, told in (
        ("gems:part:impersonated-base", f'[{{"op":"add","path":"/rules/-","value":{secrets}}}]', "get secrets"),
        ("gems:impersonated", f'[{{"op":"add","path":"/rules","value":[{anyone}]}}]', "more than groups"),
    ):
        before = await cluster.kubectl("get", "clusterrole", name, "-o", "json")
        await cluster.kubectl("patch", "clusterrole", name, "--type=json", "-p", patch)
        try:
            (found,) = (await examined(cluster)).findings
            assert (name in found, told in found) == (True, True), found
        finally:
            await cluster.kubectl("replace", "--force", "-f", "-", stdin=before)
    assert (await examined(cluster)).findings == []


async def test_the_command_says_it(cluster: Cluster) -> None:
    """Exit code 0 on a sound cluster, 1 with a finding, and a line when the cluster cannot be read."""

    async def run(kubeconfig: Path) -> tuple[int, str]:
        command = (sys.executable, "-m", "deploy.join.doctor", "--kubeconfig", str(kubeconfig))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        output, _ = await asyncio.wait_for(process.communicate(), 90)
        return process.returncode or 0, output.decode()

    code, said = await run(cluster.kubeconfig)
    assert (code, "nothing is wrong" in said, "constrained impersonation: " in said) == (0, True, True), said
    text = PLANTED["the agent as cluster admin"][0]
    await cluster.kubectl("apply", "-f", "-", stdin=text)
    try:
        code, said = await run(cluster.kubeconfig)
        assert (code, "1 grants to look at" in said) == (1, True), said
    finally:
        await cluster.kubectl("delete", "-f", "-", stdin=text)
    reader = await cluster.service_account_kubeconfig("gems-controller")
    code, said = await run(reader)
    assert code == 2, said
