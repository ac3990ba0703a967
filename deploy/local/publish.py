"""What others read while the stack runs: `endpoints.json`, `env`, `status.json`; all of it goes when it stops."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from deploy.local import site
from deploy.local.layout import Layout
from deploy.local.supervise import Supervisor
from libs.crypt import ca

_VARIABLES = {
    "rest": "KUBEGEMS_REST",
    "grpc": "KUBEGEMS_GRPC",
    "ca": "KUBEGEMS_CA",
    "kubeconfig": "KUBEGEMS_KUBECONFIG",
    "hub_kubeconfig": "KUBEGEMS_HUB_KUBECONFIG",
    "admin_password_file": "KUBEGEMS_ADMIN_PASSWORD_FILE",
    "jaeger": "KUBEGEMS_JAEGER",
}


class Publisher:
    """Writes the facts of one stack.

    Args:
        layout: where.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._started = time.time()
        self.facts: dict[str, str] = {}
        self.clusters: dict[str, dict[str, str]] = {}  # facts of each member cluster

    def publish(self, supervisor: Supervisor) -> None:
        """Writes all of it anew."""
        kept = supervisor.kept
        pids = {name: found.pid for name, found in kept.items() if found.pid}
        self._layout.write_json(self._layout.endpoints, self.facts | {"clusters": self.clusters, "pids": {"starter": os.getpid()} | pids})
        ca.write_private(self._layout.env, self._shell())
        parts: dict[str, Any] = {
            name: {"state": found.state, "pid": found.pid, "crashes": found.crashes, "log": str(found.part.command().log)}
            for name, found in kept.items()
        }
        self._layout.write_json(self._layout.status, {"pid": os.getpid(), "started": self._started, "parts": parts})

    def _shell(self) -> str:
        """Variables for a shell; curl trusts the hub through `CURL_CA_BUNDLE`, and the pinned kubectl comes first."""
        lines = [f"export {name}={shlex.quote(self.facts[fact])}" for fact, name in _VARIABLES.items() if fact in self.facts]
        for name, facts in self.clusters.items():
            if name != site.FIRST:
                suffix = name.upper().replace("-", "_")
                lines += [f"export {_VARIABLES[fact]}_{suffix}={shlex.quote(value)}" for fact, value in facts.items()]
        if "ca" in self.facts:
            lines.append(f"export CURL_CA_BUNDLE={shlex.quote(self.facts['ca'])}")
        lines.append(f"export PATH={shlex.quote(str(Path(sys.prefix) / 'bin'))}:$PATH")
        return "\n".join(lines) + "\n"
