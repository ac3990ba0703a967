"""What reconcilers work with."""

from __future__ import annotations

from dataclasses import dataclass

from libs.kube import KubeClient
from services.controller.events import Recorder
from services.controller.keep import Keeper
from services.controller.server import ServerFacts
from services.controller.status import Reporter
from services.controller.tracing import Traces
from services.controller.world import World


@dataclass(frozen=True, slots=True)
class Tools:
    """Built once, in app.py.

    Attributes:
        client: writes, as the controller itself.
        world: what is seen.
        keeper: makes single objects as wanted.
        reporter: writes statuses.
        recorder: writes Events.
        traces: spans of runs.
        server: what the API server can do.
        namespace: the controller's own, which can never be an environment's.
    """

    client: KubeClient
    world: World
    keeper: Keeper
    reporter: Reporter
    recorder: Recorder
    traces: Traces
    server: ServerFacts
    namespace: str
