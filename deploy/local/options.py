"""What the caller wants of the local stack, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local import ports
from deploy.local.errors import LocalError

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Options:
    """The wishes.

    Attributes:
        jaeger: build and start a Jaeger, and export to it.
        clusters: how many member clusters to run: `local`, `local-2`, ….
        gateways: how many gateways to run: `gateway`, `gateway-2`, ….
        database_url: an existing PostgreSQL.
        nats_url: an existing NATS, configured as the documentation tells.
        kubeconfig: an existing cluster's admin; it becomes `local`.
        ports: ports that must be these (`KUBEGEMS_LOCAL_PORTS=rest=9443,…`; `any` takes free ones for all).
        documented_ports: prefer the documented ports; tests do not.
        durable: False trades safety at a power cut for speed; for tests.
    """

    jaeger: bool = False
    clusters: int = 1
    gateways: int = 1
    database_url: str = field(default="", repr=False)
    nats_url: str = ""
    kubeconfig: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    documented_ports: bool = True
    durable: bool = True

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> Options:
        """The options of `make run`; raises LocalError."""
        kubeconfig = env.get("KUBEGEMS_LOCAL_KUBECONFIG")
        if kubeconfig and not Path(kubeconfig).exists():
            raise LocalError(f"KUBEGEMS_LOCAL_KUBECONFIG: there is no file {kubeconfig}")
        wanted = env.get("KUBEGEMS_LOCAL_PORTS", "")
        return cls(
            jaeger=_yes(env, "JAEGER", unset=False),
            clusters=_many(env, "CLUSTERS") if _yes(env, "KUBEGEMS_LOCAL_CLUSTER", unset=True) else 0,
            gateways=_many(env, "GATEWAYS"),
            database_url=env.get("KUBEGEMS_DATABASE_URL", ""),
            nats_url=_url(env, "KUBEGEMS_NATS_URL"),
            kubeconfig=Path(kubeconfig).absolute() if kubeconfig else None,
            ports={} if wanted == "any" else ports.parse(wanted),
            documented_ports=wanted != "any",
        )


def _yes(env: Mapping[str, str], name: str, *, unset: bool) -> bool:
    text = env.get(name, "")
    if text.lower() not in _YES | _NO | {""}:
        raise LocalError(f"{name}={text}: say 1 or 0, true or false, yes or no, on or off")
    return text.lower() in _YES if text else unset


def _url(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, "")
    try:
        found = urlsplit(text)
        complete = found.scheme == "tls" and found.hostname and found.port
    except ValueError:  # a port that is no number
        complete = False
    if text and not complete:
        raise LocalError(f"{name}={text}: write tls://host:port")
    return text


def _many(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise LocalError(f"{name}={text}: say how many to run, 1 or more")
    return int(text)
