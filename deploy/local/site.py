"""Where each member cluster of a stack keeps what: the first is `local`, further ones `local-2`, `local-3` and so on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.local.layout import Layout

FIRST = "local"


@dataclass(frozen=True, slots=True)
class Site:
    """The folders of one member cluster.

    Attributes:
        name: of the cluster in the hub.
        root: what agent, nodes and control plane keep.
        logs: their log files.
        join_token: the file that the join token is handed over in.
    """

    name: str
    root: Path
    logs: Path
    join_token: Path

    @classmethod
    def of(cls, layout: Layout, name: str) -> Site:
        """The site of a cluster, by its name."""
        if name == FIRST:
            return cls(name, layout.root, layout.logs, layout.secrets / "join.token")
        root = layout.root / "clusters" / name
        return cls(name, root, layout.logs / name, root / "join.token")

    @property
    def cluster(self) -> Path:
        """Keys, kubeconfigs and etcd's data."""
        return self.root / "cluster"

    @property
    def agent(self) -> Path:
        """The agent's state."""
        return self.root / "agent"

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig of the cluster's own admin."""
        return self.cluster / "admin.kubeconfig"

    @property
    def hub_kubeconfig(self) -> Path:
        """The platform admin's kubeconfig, through the hub."""
        return self.root / "hub.kubeconfig"

    def create(self) -> None:
        """Makes the folders; only their owner can read them."""
        for folder in (self.root, self.logs, self.cluster):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def part(self, name: str) -> str:
        """What a part of this cluster is called: `agent`, `local-2/agent`."""
        return name if self.name == FIRST else f"{self.name}/{name}"


def names(count: int) -> list[str]:
    """The names of a stack's member clusters."""
    return [FIRST if number == 1 else f"{FIRST}-{number}" for number in range(1, count + 1)]
