"""Interest: kinds beyond the base set that someone at the hub watches."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import log
from libs.faults import Fault, NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import SECRETS
from services.agent.desired.follower import Link
from services.agent.observed.kinds import BASE
from services.agent.observed.observation import Observation

_log = log.get(__name__)
FETCH = wire.DESCRIPTOR.services_by_name["DesiredStateService"].methods_by_name["FetchInterest"]
_SECONDS = 15.0
_MOST = 64  # kinds; each costs a watch and a copy
_PERIOD = 60.0  # as long as the hub keeps what a replica that died wanted
_RETRY = 10.0


class Interest:
    """Starts and stops kinds as the hub's interest changes; RBAC of `gems:observer` decides what can be seen."""

    def __init__(self, link: Link, client: KubeClient, observation: Observation) -> None:
        self._link = link
        self._client = client
        self._observation = observation
        self._wake = asyncio.Event()

    def poke(self, _traceparent: str = "") -> None:
        """Asks the hub again: a hint came, or the tunnel is up."""
        self._wake.set()

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            self._wake.clear()
            pause = _PERIOD
            try:
                await self.follow()
            except Fault as fault:
                _log.info("interest.not_fetched", reason=fault.reason)
                pause = _RETRY
            try:
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):  # noqa: S311 -- jitter
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def follow(self) -> None:
        """Asks once, and observes what is wanted."""
        reply = await self._link.call(FETCH, wire.FetchInterestRequest(), timeout=_SECONDS)
        wanted: set[Resource] = set()
        for key in list(dict.fromkeys(reply.resources))[:_MOST]:  # the most wanted first
            kind = await self._kind(key)
            if kind is not None and kind not in BASE and kind.plural != SECRETS.plural:
                wanted.add(kind)
        extra = self._observation.kinds - set(BASE)
        for kind in extra - wanted:
            self._observation.stop(kind)
        for kind in wanted - extra:
            self._observation.start(kind)

    async def _kind(self, key: str) -> Resource | None:
        """What the API server says of `{resource}.{version}.{group}`, the version perhaps empty; None when it does not serve it."""
        known = next((kind for kind in (*BASE, *self._observation.kinds) if kind.key == key), None)
        plural, _, rest = key.partition(".")
        version, _, group = rest.partition(".")
        if known is not None or not plural:
            return known
        if not version:
            return await self._preferred(plural, group)
        return await self._served(plural, version, group)

    async def _preferred(self, plural: str, group: str) -> Resource | None:
        """The kind in the version that the API server prefers."""
        known = next((kind for kind in (*BASE, *self._observation.kinds) if (kind.plural, kind.group) == (plural, group)), None)
        if known is not None:
            return known
        if not group:
            return await self._served(plural, "v1", "")
        try:
            found = await self._client.get_path(f"/apis/{group}")
        except (NotFound, ValueError):
            return None
        preferred = str((found.get("preferredVersion") or {}).get("version") or "")
        versions = [str(v.get("version")) for v in found.get("versions") or []]
        for version in dict.fromkeys(filter(None, [preferred, *versions])):
            kind = await self._served(plural, version, group)
            if kind is not None:
                return kind
        return None

    async def _served(self, plural: str, version: str, group: str) -> Resource | None:
        probe = Resource(group, version, "", "")
        try:
            listed = await self._client.get_path(probe.path().rstrip("/"))
        except (NotFound, ValueError):
            return None
        found: list[dict[str, Any]] = [r for r in listed.get("resources") or [] if r["name"] == plural and "watch" in r["verbs"]]
        return Resource(group, version, plural, found[0]["kind"], bool(found[0]["namespaced"])) if found else None
