"""The first user."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kubegems.identity.v1 import user_service_pb2
from libs.faults import Unauthenticated
from services.gateway.identity import bootstrap, reset
from services.gateway.identity.tests.conftest import ADMIN_PASSWORD, House
from tests.kit.eventually import eventually


def _file(folder: Path, password: str, mode: int = 0o600) -> Path:
    path = folder / "password"
    path.write_text(password + "\n")
    path.chmod(mode)
    return path


async def test_the_admin_is_made_once(house: House, tmp_path: Path) -> None:
    """A second start, with another password in the file, changes nothing."""
    again = await bootstrap.bootstrap_admin(house.database, _file(tmp_path, "another password"), passwords=house.identity.passwords)
    assert not again
    with pytest.raises(Unauthenticated):
        await house.sign_in("admin", "another password")
    assert (await house.sign_in("admin", ADMIN_PASSWORD)).access_token


async def test_replicas_that_start_at_once_make_one_admin(house: House, tmp_path: Path) -> None:
    """On an empty platform one of them makes it and the others see it."""
    await house.sql("DELETE FROM identity.users")
    await house.sql("DELETE FROM identity.burnt_names")
    path = _file(tmp_path, ADMIN_PASSWORD)
    made = await asyncio.gather(*(bootstrap.bootstrap_admin(house.database, path, passwords=house.identity.passwords) for _ in range(3)))
    assert sorted(made) == [False, False, True]
    assert (await house.sign_in("admin", ADMIN_PASSWORD)).access_token


async def test_a_reset_lets_a_locked_out_admin_in_again(house: House, tmp_path: Path) -> None:
    """New password, enabled, admin role, no delay left; sessions of before end; the act is in the audit log."""
    old = await house.admin()
    await house.sql("UPDATE identity.users SET state = 'DISABLED', platform_role = 'USER' WHERE username = 'admin'")
    await bootstrap.reset_admin(
        house.database, _file(tmp_path, "brand new password"), passwords=house.identity.passwords, auditor=house.auditor
    )
    assert (await house.sign_in("admin", "brand new password")).access_token

    async def ended() -> bool:
        try:
            await house.call("UserService/GetUser", user_service_pb2.GetUserRequest(name="users/me"), old)
        except Unauthenticated:
            return True
        return False

    await eventually(ended, within=1)
    async with house.database.transaction() as tx:
        assert await tx.value("SELECT count(*) FROM audit.events WHERE method LIKE 'identity/%Admin'") >= 1


async def test_the_command_resets_while_the_gateway_runs(house: House, tmp_path: Path) -> None:
    """`python -m services.gateway.identity.reset` with two files, and nothing secret on its command line."""
    (tmp_path / "dsn").write_text(house.database._dsn)
    path = _file(tmp_path, "set by the command")
    await asyncio.to_thread(reset.main, ["--database-url-file", str(tmp_path / "dsn"), "--password-file", str(path)])
    assert (await house.sign_in("admin", "set by the command")).access_token


async def test_a_bad_password_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Too short, readable by others: an error that names the file and not the password."""
    with pytest.raises(ValueError, match="at least 10") as caught:
        bootstrap.read_password(_file(tmp_path, "hunter2"))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="chmod 600"):
        bootstrap.read_password(_file(tmp_path, "long enough password", 0o644))
