"""Election: one of several processes works, the one that holds a Lease (coordination.k8s.io)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from libs import log
from libs.clock import Clock
from libs.faults import AlreadyExists, Fault, NotFound
from libs.kube import Conflict, KubeClient
from libs.kube.resources import LEASES
from libs.reconcile import metrics

_log = log.get(__name__)
_GIVE_UP = 2 / 3  # of the duration: a leader that could not renew stops before another may start


class Election:
    """Runs work while this process holds the lease.

    Whether another's lease has run out is judged by how long we have seen it unchanged, never by comparing clocks. A
    leader that cannot renew cancels its work at two thirds of the duration; one that stops gives the lease back, so that
    the next need not wait.

    Args:
        client: reaches the API server that keeps the lease.
        namespace: of the lease.
        name: of the lease.
        identity: of this process; no two may share one.
        clock: for the times people read in the lease.
        duration: seconds a lease is good for after each renewal, whole.
        retry: seconds between tries, about.
    """

    def __init__(
        self, client: KubeClient, *, namespace: str, name: str, identity: str, clock: Clock, duration: int = 6, retry: float = 1.0
    ) -> None:
        self.identity = identity
        self.leading = False
        self._client = client
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._duration = duration
        self._retry = retry
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._renewed_at = 0.0

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Waits to lead, works, and waits again when the lease is lost; until cancelled or the work ends by itself."""
        while True:
            while not await self._tried():
                await self._pause()
            _log.info("lease.won", lease=self._name, identity=self.identity)
            try:
                if await self._led(work):
                    return
            finally:
                self._leads(leading=False)
                await self._release()
            _log.warning("lease.lost", lease=self._name, identity=self.identity)

    async def _led(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Works until the lease is lost (False) or the work ended (True)."""
        self._leads(leading=True)
        working = asyncio.ensure_future(work())
        renewing = asyncio.create_task(self._renew(), name=f"lease {self._name}")
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)

    async def _renew(self) -> None:
        """Renews until it is too late to be sure."""
        while True:
            await self._pause()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._renewed_at + self._duration * _GIVE_UP):
                    while not await self._tried():
                        if not self.leading:
                            return
                        await self._pause()
                continue
            return

    async def _tried(self) -> bool:
        """One try to take or renew the lease."""
        began = asyncio.get_running_loop().time()
        try:
            held = await self._take(began)
        except (Conflict, AlreadyExists):
            held = False  # another was faster; the next read says who
        except Fault as fault:
            _log.warning("lease.unreachable", lease=self._name, reason=fault.reason, problem=fault.message)
            held = False
        if held:
            self._renewed_at = began
        return held

    async def _take(self, began: float) -> bool:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace, timeout=self._duration / 2)
        except NotFound:
            body = {"metadata": {"name": self._name}, "spec": self._spec({})}
            await self._client.create(LEASES, body, self._namespace, timeout=self._duration / 2)
            return True
        spec = lease.get("spec") or {}
        if self._held_by_another(spec, began):
            self._leads(leading=False)
            return False
        await self._client.replace(LEASES, {**lease, "spec": self._spec(spec)}, timeout=self._duration / 2)
        return True

    def _held_by_another(self, spec: dict[str, Any], now: float) -> bool:
        holder = spec.get("holderIdentity")
        if not holder or holder == self.identity:
            return False
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now < self._seen_at + float(spec.get("leaseDurationSeconds") or self._duration)

    def _spec(self, before: dict[str, Any], holder: str | None = None) -> dict[str, Any]:
        now = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        ours = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity if holder is None else holder,
            "leaseDurationSeconds": self._duration,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if ours else 1),
        }

    async def _release(self) -> None:
        """Gives the lease back if it is ours; what fails here is healed by waiting."""
        with suppress(Fault, TimeoutError):
            async with asyncio.timeout(self._retry):
                lease = await self._client.get(LEASES, self._name, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                    await self._client.replace(LEASES, {**lease, "spec": self._spec(lease["spec"], holder="")})

    def _leads(self, *, leading: bool) -> None:
        self.leading = leading
        metrics.LEADING.labels(self._name).set(int(leading))

    async def _pause(self) -> None:
        await asyncio.sleep(self._retry * random.uniform(0.7, 1.0))  # noqa: S311 -- jitter
