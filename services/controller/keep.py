"""Keeper: makes single objects as wanted, and takes away what is ours and no longer wanted."""

from __future__ import annotations

from collections.abc import Iterable

from libs.faults import AlreadyExists, NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import ENVIRONMENTS
from services.controller import drift
from services.controller.domain import CONTROLLER, MANAGED_BY, Object
from services.controller.events import Recorder
from services.controller.world import World


class Keeper:
    """Looks first, then acts: a second run writes nothing. What it does is told as Events about the environment."""

    def __init__(self, client: KubeClient, world: World, recorder: Recorder) -> None:
        self._client = client
        self._world = world
        self._recorder = recorder

    async def keep(self, resource: Resource, about: Object, wants: Iterable[Object], namespace: str) -> list[Object]:
        """Makes the objects of a kind in a namespace as wanted; ours that are not among them go. Returns how they stand."""
        wants = list(wants)
        await self.remove(resource, about, namespace, but={want["metadata"]["name"] for want in wants})
        return [await self.one(resource, about, want) for want in wants]

    async def remove(self, resource: Resource, about: Object, namespace: str, *, but: Iterable[str] = ()) -> None:
        """Deletes what we made of a kind in a namespace, except the named."""
        for found in self._world.made_in(resource, namespace):
            metadata = found["metadata"]
            if metadata["name"] not in but and (metadata.get("labels") or {}).get(MANAGED_BY) == CONTROLLER:
                await self._delete(resource, found)
                await self._tell(about, "Removed", resource, found)

    async def remove_all(self, resource: Resource, about: Object, namespace: str) -> None:
        """Deletes all that we made of a kind in a namespace; asked of the server, since nothing comes after to find what was missed."""
        made = [found async for found in self._client.list(resource, namespace, label_selector=f"{MANAGED_BY}={CONTROLLER}")]
        for found in made:
            await self._delete(resource, found)
            await self._tell(about, "Removed", resource, found)

    async def one(self, resource: Resource, about: Object, want: Object) -> Object:
        """Makes one object as wanted; returns how it stands."""
        metadata = want["metadata"]
        have = self._world.get(resource, metadata["name"], metadata.get("namespace", ""))
        if have is None:
            try:
                made = await self._client.create(resource, want, metadata.get("namespace"))
            except AlreadyExists:  # without our labels, or not seen yet
                have = await self._client.get(resource, metadata["name"], metadata.get("namespace"))
            else:
                await self._tell(about, "Created", resource, made)
                return made
        if not drift.drifted(want, have):
            return have
        return await self._mend(resource, about, want, have)

    async def _mend(self, resource: Resource, about: Object, want: Object, have: Object) -> Object:
        if drift.role_changed(want, have):
            await self._delete(resource, have)
            made = await self._client.create(resource, want, want["metadata"].get("namespace"))
            await self._tell(about, "Recreated", resource, made)
            return made
        made = await self._client.replace(resource, drift.overlaid(want, have))
        await self._tell(about, "Corrected", resource, made)
        return made

    async def _delete(self, resource: Resource, found: Object) -> None:
        metadata = found["metadata"]
        try:
            await self._client.delete(resource, metadata["name"], metadata.get("namespace"), uid=metadata["uid"])
        except NotFound:
            return

    async def _tell(self, about: Object, reason: str, resource: Resource, found: Object) -> None:
        await self._recorder.record(ENVIRONMENTS, about, reason, f"{reason} {resource.kind} {found['metadata']['name']}")
