"""Password hashing: argon2id, on a pool that has an end.

A hash costs some 20 MB and 30 ms by design, so whoever sends passwords could otherwise take the whole machine. At most
`workers` run and `waiting` wait; beyond that a caller gets Exhausted at once. Unknown users cost the same work.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from libs.faults import Exhausted

T = TypeVar("T")
_RETRY = timedelta(seconds=1)


class PasswordPoolFull(Exhausted):
    """More passwords are waiting to be checked than the pool takes."""

    reason = "SIGN_IN_BUSY"


class Passwords:
    """Hashes and verifies passwords off the event loop."""

    def __init__(self, *, workers: int = 2, waiting: int = 16, memory_kib: int = 19456, passes: int = 2) -> None:
        """Makes the pool.

        Args:
            workers: hashes at once; each keeps one core busy.
            waiting: callers that may wait for a worker.
            memory_kib: memory of one hash (OWASP's minimum for argon2id by default).
            passes: times over that memory.
        """
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="passwords")
        self._places = workers + waiting
        self._taken = 0
        self._nobody = self._hasher.hash(secrets.token_hex())  # what an unknown user's password is compared with

    async def hash(self, password: str) -> str:
        """The hash to keep, with its salt and parameters; raises PasswordPoolFull."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether a password is right; without a hash the same work, and never right. Raises PasswordPoolFull."""
        return await self._run(lambda: self._verify(password_hash or self._nobody, password)) and password_hash is not None

    def outdated(self, password_hash: str) -> bool:
        """Whether it was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Lets what runs end and takes nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._taken >= self._places:
            raise PasswordPoolFull("too many sign-ins at once; try again in a second", retry_after=_RETRY)
        self._taken += 1
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)
        # the place is free when the work has ended, not when its caller stopped waiting
        future.add_done_callback(lambda done: self._release(loop, done))
        return await asyncio.wrap_future(future)

    def _release(self, loop: asyncio.AbstractEventLoop, _done: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self._taken -= 1
