"""Environments: namespace, Pod Security, quota, limits, isolation and rights, step by step, and their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from libs.faults import Invalid, NotFound, PermissionDenied
from libs.kube.resources import ENVIRONMENTS, LIMIT_RANGES, NAMESPACES, NETWORK_POLICIES, RESOURCE_QUOTAS, ROLE_BINDINGS
from libs.reconcile import DONE, Again, Condition, Result
from services.controller import domain, steps
from services.controller.domain import FINALIZER, Environment, Object
from services.controller.tools import Tools

_STUCK = Again(timedelta(seconds=30))  # refused by the server: nothing will tell when that changes
_LEAVING = Again(timedelta(seconds=5))  # a namespace goes at its own pace
_STEPS = ("QuotaReady", "LimitRangeReady", "NetworkPolicyReady", "RightsReady")


class EnvironmentReconciler:
    """Makes one environment as wanted. The key is its name, which is its namespace's too."""

    def __init__(self, tools: Tools) -> None:
        self._t = tools

    async def reconcile(self, key: str) -> Result:
        """One run."""
        found = self._t.world.get(ENVIRONMENTS, key)
        if found is None:
            return DONE
        wanted = domain.environment(found)
        with self._t.traces.span(ENVIRONMENTS, found):
            if wanted.deleting:
                return await self._end(found, wanted)
            if problem := domain.misnamed(found, "namespace"):
                await self._t.reporter.report(ENVIRONMENTS, found, [Condition("NamespaceReady", "False", "NameMismatch", problem)])
                return DONE
            if FINALIZER not in (found["metadata"].get("finalizers") or ()):
                found = await self._finalizers(found, [*(found["metadata"].get("finalizers") or ()), FINALIZER])
            return await self._make(found, wanted)

    async def _make(self, found: Object, wanted: Environment) -> Result:
        namespace, first = await steps.namespace(self._t, found, wanted)
        if namespace is None:
            waiting = [Condition(name, "Unknown", "NamespaceNotReady") for name in ("PodSecurityReady", *_STEPS)]
            await self._report(found, [first, *waiting], {})
            await self._warn(found, first)
            return _STUCK
        quota: Object = {}

        async def quota_step() -> Condition:
            made, condition = await steps.quota(self._t, found, wanted)
            quota.update((made or {}).get("status") or {})
            return condition

        conditions = [
            first,
            *steps.server_conditions(self._t.server),
            await self._step("QuotaReady", quota_step),
            await self._step("LimitRangeReady", lambda: steps.limit_range(self._t, found, wanted)),
            await self._step("NetworkPolicyReady", lambda: steps.network_policy(self._t, found, wanted)),
            await self._step("RightsReady", lambda: steps.rights(self._t, found, wanted)),
        ]
        facts = {"namespace": wanted.namespace, "namespaceUid": namespace["metadata"]["uid"]}
        facts |= {key: quota[key] for key in ("used", "hard") if quota.get(key)}
        await self._report(found, conditions, facts)
        refused = [c for c in conditions if c.reason in (Invalid.reason, PermissionDenied.reason)]
        for condition in refused:
            await self._warn(found, condition)
        return _STUCK if refused else DONE

    async def _step(self, name: str, step: Callable[[], Awaitable[Condition]]) -> Condition:
        """A step that the server refuses becomes its condition, and the others go on; whatever may pass is tried again soon."""
        try:
            return await step()
        except (Invalid, PermissionDenied) as fault:
            return Condition(name, "False", fault.reason, fault.message)

    async def _end(self, found: Object, wanted: Environment) -> Result:
        """What a deletion takes away: all, our own, or without the hub's tombstone nothing."""
        if FINALIZER not in (found["metadata"].get("finalizers") or ()):
            return DONE
        namespace = await self._namespace(wanted.namespace)
        mine = namespace is not None and domain.claim(wanted, namespace, self._t.namespace).taken
        if namespace is not None and mine and wanted.tombstoned:
            if not wanted.keep_namespace:
                return await self._end_namespace(found, namespace)
            await self._leave(found, wanted, namespace)
        remaining = [name for name in found["metadata"]["finalizers"] if name != FINALIZER]
        try:
            await self._finalizers(found, remaining)
        except NotFound:
            return DONE
        self._t.traces.forget(found["metadata"]["uid"])
        return DONE

    async def _namespace(self, name: str) -> Object | None:
        """Asked of the server: one made a moment ago may not be in the watch yet, and would be left behind."""
        try:
            return await self._t.client.get(NAMESPACES, name)
        except NotFound:
            return None

    async def _end_namespace(self, found: Object, namespace: Object) -> Result:
        metadata = namespace["metadata"]
        if "deletionTimestamp" not in metadata:
            await self._t.client.delete(NAMESPACES, metadata["name"], uid=metadata["uid"])
            await self._t.recorder.record(ENVIRONMENTS, found, "NamespaceDeleted", f"Deleted Namespace {metadata['name']}")
        held = Condition("NamespaceReady", "False", "Terminating", steps.what_holds(namespace))
        await self._report(found, [held], {"namespace": metadata["name"], "namespaceUid": metadata["uid"]})
        return _LEAVING

    async def _leave(self, found: Object, wanted: Environment, namespace: Object) -> None:
        """Takes away our own and leaves the namespace. Labels go last: they say that the rest is ours, should a run be cut short."""
        for resource in (ROLE_BINDINGS, RESOURCE_QUOTAS, LIMIT_RANGES, NETWORK_POLICIES):
            await self._t.keeper.remove_all(resource, found, wanted.namespace)
        labels = namespace["metadata"].get("labels") or {}
        ours = {**wanted.common_labels, domain.POD_SECURITY: wanted.pod_security}
        patch = {
            "labels": {name: None for name, value in ours.items() if labels.get(name) == value},
            "annotations": {domain.OWNER_UID: None, domain.OWNER_NAME: None},
        }
        await self._t.client.patch(NAMESPACES, wanted.namespace, {"metadata": patch})
        await self._t.recorder.record(ENVIRONMENTS, found, "NamespaceLeft", f"Left Namespace {wanted.namespace} as it is")

    async def _finalizers(self, found: Object, finalizers: list[str]) -> Object:
        metadata = found["metadata"]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        return await self._t.client.patch(ENVIRONMENTS, metadata["name"], patch)

    async def _report(self, found: Object, conditions: list[Condition], facts: Object) -> None:
        await self._t.reporter.report(ENVIRONMENTS, found, conditions, facts)

    async def _warn(self, found: Object, condition: Condition) -> None:
        known = (found.get("status") or {}).get("conditions") or ()
        if not any((c["type"], c["reason"], c["message"]) == (condition.type, condition.reason, condition.message) for c in known):
            await self._t.recorder.record(ENVIRONMENTS, found, condition.reason, condition.message, kind="Warning")
