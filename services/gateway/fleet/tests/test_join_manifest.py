"""The manifest that comes with a join token, from a hub that names an image of agent and controller."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml

from kubegems.fleet.v1 import join_token_service_pb2
from libs.rpc import Call
from services.gateway.fleet.joining import Joining, workloads
from services.gateway.tenancy.tests.house import House, refused

_IMAGE = "hub/kubegems:1"
_CREATE = "JoinTokenService/CreateJoinToken"


@pytest.fixture
def imaged(house: House) -> House:
    """The same house, whose hub names an image."""
    return house.with_image(_IMAGE)


async def _created(house: House, cluster: str, **more: Any) -> Any:
    return await house.call(_CREATE, join_token_service_pb2.CreateJoinTokenRequest(parent=f"clusters/{cluster}", **more))


def _objects(text: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


def _variables(objects: dict[tuple[str, str], Any]) -> dict[str, str]:
    (container,) = objects["Deployment", "gems-agent"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == _IMAGE
    return {one["name"].removeprefix("KUBEGEMS_AGENT_"): one["value"] for one in container["env"]}


async def test_the_manifest_runs_the_agent_where_the_hub_is(imaged: House) -> None:
    """The answer's own token and CA hash, the hub's enrolment address; egress to just the ports it is told to use."""
    cluster, _ = await imaged.cluster(online=False)
    made = await _created(imaged, cluster)
    objects = _objects(made.manifest)
    assert base64.b64decode(objects["Secret", "gems-agent-join"]["data"]["token"]).decode() == made.token
    variables = _variables(objects)
    assert (variables["CA_HASH"], variables["ENROLMENT_ADDRESS"]) == (made.ca_hash, "hub:8446")
    assert not {"EDGE_URL", "ONE_PORT"} & set(variables)
    (rule,) = objects["NetworkPolicy", "gems-agent"]["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [8446, 8447, 8470]


async def test_in_one_port_mode_it_names_the_edge_alone(imaged: House) -> None:
    """Address and port; the options go together."""
    cluster, _ = await imaged.cluster(online=False)
    objects = _objects((await _created(imaged, cluster, one_port=True, without_cluster_admin=True)).manifest)
    variables = _variables(objects)
    assert (variables["EDGE_URL"], variables["ONE_PORT"]) == ("https://hub:8443", "true")
    assert "ENROLMENT_ADDRESS" not in variables
    (rule,) = objects["NetworkPolicy", "gems-agent"]["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [8443]
    assert ("ClusterRoleBinding", "gems:platform:admin") not in objects


async def test_without_an_image_nothing_runs_and_no_token_is_in_it(house: House) -> None:
    """The agent is then a process, as the command tells."""
    cluster, _ = await house.cluster(online=False)
    made = await _created(house, cluster)
    assert not {kind for kind, _ in _objects(made.manifest)} & {"Deployment", "NetworkPolicy", "Secret"}
    assert made.token.split(".")[1] not in made.manifest


async def test_the_manifest_is_shown_once(imaged: House) -> None:
    """A repeat by idempotency key is told so; neither answers kept, audit, outbox nor tokens hold the secret, plain or encoded."""
    cluster, _ = await imaged.cluster(online=False)
    request = join_token_service_pb2.CreateJoinTokenRequest(parent=f"clusters/{cluster}")

    def call() -> Call:
        return Call(imaged.methods[_CREATE], credential="admin", transport="rest", metadata={"idempotency-key": f"join-{cluster}"})

    made = await imaged.pipeline.unary(call(), request)
    with refused("FAILED_PRECONDITION", "was not kept"):
        await imaged.pipeline.unary(call(), request)
    kept = await imaged.sql("SELECT answer FROM audit.requests WHERE request_id = $1", f"join-{cluster}")
    assert [row["answer"] for row in kept] == [None]
    secrets = (made.token.split(".")[1], base64.b64encode(made.token.encode()).decode())
    for table in ("fleet.join_tokens", "audit.events", "fleet.outbox"):
        rows = await imaged.sql(f"SELECT t::text AS row FROM {table} t")
        assert not any(secret in row["row"] for row in rows for secret in secrets), table


@pytest.mark.parametrize(
    ("edge", "tunnel", "one_port", "ports"),
    [
        ("https://hub", "hub:8447", True, (443,)),
        ("https://[2001:db8::1]:8443", "hub:8447", True, (8443,)),
        ("https://hub:8443", "hub-1:9447, [2001:db8::1]:8447", False, (8446, 8447, 8470, 9447)),
    ],
)
def test_ports_are_read_from_addresses(edge: str, tunnel: str, one_port: bool, ports: tuple[int, ...]) -> None:
    """Of each gateway, also beside an IPv6 address; an edge without one has that of HTTPS."""
    hub = Joining("hub:8446", tunnel, "nats:8470", edge, "", agent_image=_IMAGE)
    found = workloads(hub, "id.secret", "a" * 64, one_port=one_port)
    assert found is not None
    assert found.hub_ports == ports
