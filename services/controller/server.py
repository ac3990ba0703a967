"""What the API server can do, as far as environments depend on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.faults import NotFound, PermissionDenied
from libs.kube import KubeClient, Resource

_ADMISSION = Resource("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False)
_EXTERNAL_IPS = "services-without-external-ips.gems.kubegems.io"


@dataclass(slots=True)
class ServerFacts:
    """Facts about one API server; refreshed when this process begins to lead, and now and then after.

    Attributes:
        version: major and minor.
        refuses_external_ips: whether the join manifest's admission policy stands there.
    """

    version: tuple[int, int] = (0, 0)
    refuses_external_ips: bool = False

    async def refresh(self, client: KubeClient) -> None:
        """Asks the server."""
        found = await client.get_path("/version")
        self.version = (_number(found.get("major")), _number(found.get("minor")))
        try:
            await client.get(_ADMISSION, _EXTERNAL_IPS)
        except (NotFound, PermissionDenied):
            self.refuses_external_ips = False
        else:
            self.refuses_external_ips = True

    @property
    def text(self) -> str:
        """The version, for people."""
        return f"{self.version[0]}.{self.version[1]}"


def _number(text: object) -> int:
    """The number that `30+` starts with; 0 when there is none."""
    match = re.match(r"\d+", str(text))
    return int(match.group()) if match else 0
