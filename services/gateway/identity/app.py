"""Puts identity together."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from libs import log
from libs.clock import Clock
from libs.crypt.box import Box
from libs.faults import Fault
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.run import Life
from services.gateway.identity import api_keys_store, store
from services.gateway.identity.access_api import AccessService
from services.gateway.identity.api import SessionService, UserService
from services.gateway.identity.api_keys_api import ApiKeyService
from services.gateway.identity.authenticator import Authenticator
from services.gateway.identity.directory import Directory
from services.gateway.identity.impersonation import Principals
from services.gateway.identity.key_check import KeyCheck
from services.gateway.identity.keys import CHANNEL, Keyring, Purpose
from services.gateway.identity.passwords import Passwords
from services.gateway.identity.service_accounts_api import ServiceAccountService
from services.gateway.identity.sign_in import SignIn
from services.gateway.identity.tokens import Tokens

SCHEMA = "identity"
_PURGE = 3600.0  # seconds
_log = log.get("services.gateway.identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What other parts of the gateway use of identity.

    Attributes:
        users: serves UserService.
        sessions: serves SessionService.
        access: serves AccessService to hub services.
        authenticator: `authenticate` for the pipeline, `kubernetes` for `/k8s`, `kubeconfig_token` for kubeconfigs.
        principals: as whom users act in clusters.
        directory: sessions and rights of now.
        access_keys: keys of users' tokens; `keys.jwks(access_keys)` is what `/.well-known/jwks.json` shows.
        caller_keys: keys of caller contexts; `caller_keys.signing` signs them.
        grant_keys: keys of tunnel grants.
        passwords: hashes passwords.
        api_keys: serves ApiKeyService.
        service_accounts: serves ServiceAccountService.
        key_check: believes API keys.
    """

    users: UserService
    sessions: SessionService
    access: AccessService
    authenticator: Authenticator
    principals: Principals
    directory: Directory
    access_keys: Keyring
    caller_keys: Keyring
    grant_keys: Keyring
    passwords: Passwords
    api_keys: ApiKeyService
    service_accounts: ServiceAccountService
    key_check: KeyCheck


async def prepare(database: Database) -> None:
    """Brings schema `identity` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")


async def start(life: Life, *, database: Database, box: Box, pages: Pages, clock: Clock, passwords: Passwords | None = None) -> Identity:
    """Starts identity; the schemas `identity`, `tenancy` and `fleet` must be up to date.

    Args:
        life: owns the tasks.
        database: the gateway's.
        box: seals private keys.
        pages: page tokens.
        clock: the time.
        passwords: the pool, if not the usual one.
    """
    passwords = passwords or Passwords()
    life.stack.callback(passwords.close)
    keyrings = {purpose: Keyring(database, box, clock, purpose) for purpose in Purpose}
    for purpose, keyring in keyrings.items():
        await keyring.refresh()
        await database.listen(CHANNEL, keyring.changed)
        life.spawn(f"identity keys {purpose.value}", keyring.run())
    directory = Directory(database, clock)
    await directory.start()
    life.spawn("identity directory", directory.run())
    life.spawn("identity purge", _purge(database, clock))
    key_check = KeyCheck(database, clock)
    life.spawn("identity api key uses", key_check.run())
    life.stack.push_async_callback(key_check.flush)
    tokens = Tokens(keyrings[Purpose.ACCESS], clock)
    sign_in = SignIn(database, passwords, clock)
    return Identity(
        users=UserService(sign_in=sign_in, passwords=passwords, pages=pages, clock=clock),
        sessions=SessionService(database=database, sign_in=sign_in, passwords=passwords, tokens=tokens, pages=pages, clock=clock),
        access=AccessService(directory, keyrings[Purpose.CALLER]),
        authenticator=Authenticator(tokens, directory, key_check),
        principals=Principals(directory),
        directory=directory,
        access_keys=keyrings[Purpose.ACCESS],
        caller_keys=keyrings[Purpose.CALLER],
        grant_keys=keyrings[Purpose.GRANT],
        passwords=passwords,
        api_keys=ApiKeyService(directory=directory, pages=pages, clock=clock),
        service_accounts=ServiceAccountService(pages=pages, clock=clock),
        key_check=key_check,
    )


async def _purge(database: Database, clock: Clock) -> None:
    """Removes what nobody asks for any more, hourly; replicas do it at different times."""
    while True:
        await asyncio.sleep(_PURGE * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
        try:
            async with database.transaction() as tx:
                await store.purge(tx, clock.now())
                await api_keys_store.purge(tx, clock.now())
        except Fault as fault:
            _log.warning("identity.not_purged", error=str(fault))
