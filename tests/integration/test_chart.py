"""The Helm chart: rendered by a real helm it is the join manifest, object by object; an API server takes both."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.errors import LocalError
from libs.kube import manifest
from libs.kube.manifest import Workloads
from services.agent.config import Config as AgentConfig
from services.controller.config import Config as ControllerConfig
from tests.kit.cluster import Cluster
from tests.kit.helm import helm

pytestmark = pytest.mark.cluster
CHARTS = Path(__file__).parents[2] / "deploy/charts"
HASH = "a" * 64
GOOD = {"image": "kubegems:1", "hub": {"caHash": HASH, "enrolmentAddress": "hub:8446"}}
PORTS = (8446, 8447, 8470)
TOKEN = "id.secret"
PODS = Workloads(image="kubegems:1", token=TOKEN, ca_hash=HASH, enrolment_address="hub:8446", hub_ports=PORTS)
EDGE = "https://hub:9443"
ONE_PORT = Workloads(image="kubegems:1", token=TOKEN, ca_hash=HASH, edge_url=EDGE, hub_ports=(9443,))
JOIN_SECRET = ("Secret", "gems-agent-join")
_KEEP = "helm.sh/resource-policy"
Key = tuple[str, str]


async def rendered(tmp_path: Path, values: Any, *options: str) -> tuple[int, str]:
    """Exit code and output of `helm template`."""
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    command = (await helm(), "template", "kubegems", str(CHARTS / "kubegems-agent"), "--namespace", "kubegems-system", *options)
    process = await asyncio.create_subprocess_exec(
        *command, "--values", str(tmp_path / "values.yaml"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def objects(tmp_path: Path, values: Any) -> dict[Key, Any]:
    """What it renders, by kind and name."""
    code, text = await rendered(tmp_path, values)
    assert code == 0, text
    return _by_name(found for found in yaml.safe_load_all(text) if found)


def _by_name(found: Any) -> dict[Key, Any]:
    listed = list(found)
    table = {(one["kind"], one["metadata"]["name"]): one for one in listed}
    assert len(table) == len(listed)
    return table


@pytest.mark.parametrize(
    ("cluster_admin", "hub", "pods"),
    [
        (True, GOOD["hub"], PODS),
        (False, GOOD["hub"], PODS),
        (True, {"caHash": HASH, "onePort": True, "edgeUrl": EDGE}, ONE_PORT),
    ],
)
async def test_it_is_the_join_manifest(tmp_path: Path, cluster_admin: bool, hub: Any, pods: Workloads) -> None:
    """Every object of the manifest as it stands but the token's Secret, and nothing else; only CRDs are told to stay."""
    chart = await objects(tmp_path, GOOD | {"hub": hub, "createNamespace": True, "clusterAdmin": cluster_admin})
    wanted = _by_name(manifest.documents(workloads=pods, without_cluster_admin=not cluster_admin))
    assert set(wanted) - set(chart) == {JOIN_SECRET}
    assert set(wanted) - {JOIN_SECRET} == set(chart)
    for key, found in chart.items():
        if key[0] == "CustomResourceDefinition":
            assert found["metadata"]["annotations"].pop(_KEEP) == "keep"
            if not found["metadata"]["annotations"]:
                del found["metadata"]["annotations"]
        assert found == wanted[key], key
    assert ("ClusterRoleBinding", "gems:platform:admin") in wanted or not cluster_admin


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({"hub": {"enrolmentAddress": "[2001:db8::1]:9446"}}, [8447, 8470, 9446]),
        ({"hub": {"enrolmentAddress": "hub:8446", "ports": [8446, 9447]}}, [8446, 9447]),
        ({"hub": {"enrolmentAddress": "hub:8446", "edgeUrl": "https://hub"}}, [443, 8446, 8447, 8470]),
        ({"hub": {"onePort": True, "edgeUrl": "https://hub-1:9443,https://[2001:db8::1]:8443"}}, [8443, 9443]),
        ({"hub": {"onePort": True, "edgeUrl": EDGE}, "networkPolicy": {"agentPorts": [3128]}}, [3128, 9443]),
    ],
)
async def test_the_agent_may_connect_to_the_hub_and_nothing_else(tmp_path: Path, values: Any, ports: list[int]) -> None:
    """The ports of the addresses that it is given are let out without being told again; others are not."""
    chart = await objects(tmp_path, GOOD | values | {"hub": {"caHash": HASH} | values["hub"]})
    (rule,) = chart["NetworkPolicy", "gems-agent"]["spec"]["egress"]
    assert sorted(port["port"] for port in rule["ports"]) == ports
    assert all(port["protocol"] == "TCP" for port in rule["ports"])


async def test_options_leave_out_what_they_say(tmp_path: Path) -> None:
    """Namespace, CRDs, admission policy and network policy can be left to others."""
    off = await objects(tmp_path, GOOD | {"crds": False, "admissionPolicy": False, "networkPolicy": {"enabled": False}})
    kinds = {kind for kind, _ in off}
    assert not kinds & {"Namespace", "CustomResourceDefinition", "ValidatingAdmissionPolicy", "NetworkPolicy"}
    assert {"ClusterRole", "Deployment", "ServiceAccount"} <= kinds


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"hub": GOOD["hub"]}, "image"),
        (GOOD | {"hub": {"caHash": "short", "enrolmentAddress": "h:1"}}, "caHash"),
        (GOOD | {"hub": {"caHash": HASH}}, "enrolmentAddress"),
        (GOOD | {"hub": {"caHash": HASH, "onePort": True}}, "edgeUrl"),
        (GOOD | {"clusterAdmn": True}, "clusterAdmn"),
        (GOOD | {"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),  # to Kubernetes no ports are all ports
    ],
)
async def test_wrong_values_are_refused_by_name(tmp_path: Path, values: Any, told: str) -> None:
    """What is missing, misspelt or of the wrong form stops helm."""
    code, text = await rendered(tmp_path, values)
    assert (code != 0, told in text) == (True, True), text


async def test_each_variable_is_a_setting(tmp_path: Path) -> None:
    """Agent and controller know every variable that the workloads set; one-port mode names the edge and nothing else."""
    one_port = GOOD | {"hub": {"caHash": HASH, "onePort": True, "edgeUrl": "https://hub:8443"}}
    for values in (GOOD, one_port):
        chart = await objects(tmp_path, values)
        for name, config in (("agent", AgentConfig), ("controller", ControllerConfig)):
            (container,) = chart["Deployment", f"gems-{name}"]["spec"]["template"]["spec"]["containers"]
            for variable in container["env"]:
                assert variable["name"].removeprefix(f"KUBEGEMS_{name.upper()}_").lower() in config.__dataclass_fields__, variable
            names = {variable["name"] for variable in container["env"]}
            if name == "agent":
                assert ("KUBEGEMS_AGENT_ENROLMENT_ADDRESS" in names) is (values is GOOD)
                assert ("KUBEGEMS_AGENT_ONE_PORT" in names) is (values is one_port)


def test_what_is_generated_is_fresh() -> None:
    """`python deploy/charts/generate.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("generate", CHARTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("access", "crds", "workloads"):
        assert (CHARTS / f"kubegems-agent/templates/{name}.yaml").read_text() == getattr(module, name)(), f"{name}.yaml is stale"


async def test_an_api_server_takes_manifest_and_chart(cluster: Cluster, tmp_path: Path) -> None:
    """Server-side dry run of both, without and with workloads; the chart's and the manifest's pods pass restricted Pod Security.

    As the documentation has it, without --force-conflicts, although another manager has applied the manifest: every default
    of a field that is owned as a whole is written out.
    """
    dry = ("apply", "--server-side", "--dry-run=server", "-f", "-")
    _, chart = await rendered(tmp_path, GOOD | {"createNamespace": True})
    texts = (manifest.render(), manifest.render(workloads=PODS), manifest.render(workloads=ONE_PORT), chart)
    for text in texts:
        said = await cluster.kubectl(*dry, stdin=text, within=60)
        assert said.count("serverside-applied") == len([one for one in yaml.safe_load_all(text) if one])
    for text in texts[1:]:
        found = _by_name(one for one in yaml.safe_load_all(text) if one)
        for name in ("gems-agent", "gems-controller"):
            await _restricted(cluster, name, found["Deployment", name]["spec"]["template"]["spec"])


async def _restricted(cluster: Cluster, name: str, spec: Any) -> None:
    """A pod of this spec may be made in the agent's namespace, one with less may not."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "kubegems-system"}, "spec": spec}
    await cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    del spec["securityContext"]["runAsNonRoot"]
    spec["securityContext"].pop("seccompProfile")
    with pytest.raises(LocalError, match="violates PodSecurity"):
        await cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
