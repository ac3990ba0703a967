"""Hashing: right, bounded, and the same for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from services.gateway.identity.passwords import PasswordPoolFull, Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    """One worker, one place to wait, at the real cost."""
    found = Passwords(workers=1, waiting=1)
    yield found
    found.close()


async def test_a_hash_fits_its_password_only(passwords: Passwords) -> None:
    """argon2id with a salt of its own each time; the password is not in it."""
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert first != second
    assert first.startswith("$argon2id$")
    assert "correct" not in first
    assert await passwords.verify(first, "correct horse")
    assert not await passwords.verify(first, "correct horse ")
    assert not await passwords.verify("not a hash", "correct horse")


async def test_nobodys_password_is_never_right_and_costs_a_hash(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stored hash the pool hashes all the same, with the same parameters."""
    seen: list[str] = []
    verify = passwords._verify

    def watched(password_hash: str, password: str) -> bool:
        seen.append(password_hash)
        return verify(password_hash, password)

    monkeypatch.setattr(passwords, "_verify", watched)
    assert not await passwords.verify(None, "anything")
    stored = await passwords.hash("x")
    assert seen[0].split("$")[1:4] == stored.split("$")[1:4]


async def test_what_the_pool_cannot_take_is_refused_at_once(passwords: Passwords) -> None:
    """One runs, one waits, the third gets Exhausted; when the work has ended there is room again."""
    gate, running = threading.Event(), threading.Event()

    def work() -> bool:
        running.set()
        return gate.wait(20)

    taken = [asyncio.create_task(passwords._run(work), name=f"hash {n}") for n in range(2)]
    await asyncio.to_thread(running.wait, 20)
    with pytest.raises(PasswordPoolFull) as caught:
        await passwords.hash("too much")
    assert caught.value.retry_after
    gate.set()
    assert await asyncio.gather(*taken) == [True, True]
    await asyncio.sleep(0)
    assert await passwords.hash("room again")


async def test_a_caller_who_leaves_does_not_free_the_place_of_running_work(passwords: Passwords) -> None:
    """Cancelling is no way around the bound."""
    gate, running = threading.Event(), threading.Event()

    def work() -> bool:
        running.set()
        return gate.wait(20)

    task = asyncio.create_task(passwords._run(work), name="leaves")
    await asyncio.to_thread(running.wait, 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    waits = asyncio.create_task(passwords.hash("waits"), name="waits")
    await asyncio.sleep(0)
    with pytest.raises(PasswordPoolFull):
        await passwords.hash("too much")
    gate.set()
    assert await waits


async def test_old_parameters_are_noticed(passwords: Passwords) -> None:
    """A hash made more cheaply than today is outdated; one of today is not."""
    cheap = Passwords(workers=1, memory_kib=64, passes=1)
    try:
        assert passwords.outdated(await cheap.hash("x"))
    finally:
        cheap.close()
    assert not passwords.outdated(await passwords.hash("x"))
