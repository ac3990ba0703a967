"""`make run GATEWAYS=2`: what each gateway is told, and what the others are told of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.errors import LocalError
from deploy.local.hubparts import HubParts
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.ports import Ports


def test_two_gateways_differ_in_their_addresses_alone(tmp_path: Path) -> None:
    """Same database, keys and NATS; each has its own ports, and both are told of to agents, msgbus and the worker."""
    ports = Ports(documented=False)
    parts = HubParts(Layout(tmp_path), Options(gateways=2, documented_ports=False), ports)
    first, second = parts.gateways({})
    assert (first.name, second.name) == ("gateway", "gateway-2")
    told = [dict(part.command().env) for part in (first, second)]
    assert first.command().log != second.command().log
    different = {key.removeprefix("KUBEGEMS_GATEWAY_") for key in told[0] | told[1] if told[0].get(key) != told[1].get(key)}
    assert different == {f"{name}_ADDRESS" for name in ("REST", "GRPC", "INTERNAL", "ENROLMENT", "TUNNEL", "METRICS")}
    both = [",".join(env[f"KUBEGEMS_GATEWAY_{name}_ADDRESS"] for env in told) for name in ("TUNNEL", "INTERNAL")]
    assert {env["KUBEGEMS_GATEWAY_PUBLIC_TUNNEL_ADDRESS"] for env in told} == {both[0]}
    for name in ("msgbus", "worker"):
        assert parts.inner(name, {}).command().env[f"KUBEGEMS_{name.upper()}_GATEWAY_ADDRESS"] == both[1]


def test_the_number_of_gateways_is_read_or_refused() -> None:
    """One without a word; what is no number is told by its name."""
    assert Options.read({}).gateways == 1
    assert Options.read({"GATEWAYS": "2"}).gateways == 2
    for wrong in ("0", "two", "-1"):
        with pytest.raises(LocalError, match=f"GATEWAYS={wrong}"):
            Options.read({"GATEWAYS": wrong})
