"""Owners of API keys by resource name: users, and service accounts of tenants and projects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.pg import Record, Tx, etag
from libs.rpc.authorisation import missing
from libs.rpc.call import Caller
from services.gateway.identity.domain import UserState

_COLUMNS = "uid, username, display_name, state, kind, owner_tenant, owner_project, account, version, created, updated"
_ACCOUNT = "kind = 'SERVICE_ACCOUNT' AND owner_tenant = $1 AND owner_project = $2 AND account = $3"


@dataclass(frozen=True, slots=True)
class Owner:
    """A user or a service account; `tenant`, `project` and `account` are empty for a user."""

    uid: UUID
    username: str
    display_name: str
    active: bool
    tenant: str
    project: str
    account: str
    version: int
    created: datetime
    updated: datetime

    @property
    def name(self) -> str:
        """Resource name."""
        return f"{place(self.tenant, self.project)}/serviceAccounts/{self.account}" if self.account else f"users/{self.username}"

    @property
    def etag(self) -> str:
        """Of its row."""
        return etag(self.version)

    def is_caller(self, caller: Caller) -> bool:
        """Whether it is the caller itself."""
        return caller.uid == str(self.uid)


def place(tenant: str, project: str) -> str:
    """The tenant or project that owns an account."""
    return f"tenants/{tenant}/projects/{project}" if project else f"tenants/{tenant}"


def username(tenant: str, project: str, account: str) -> str:
    """The user name of an account. Labels have no dots and people's names do not start with `sa.`, so it is nobody else's."""
    return ".".join(part for part in ("sa", tenant, project, account) if part)


async def get(tx: Tx, name: str, *, lock: bool = False) -> Owner:
    """The owner of a resource name; NotFound. A service account is not found under `users/`."""
    parts = name.split("/")[1::2]
    if name.startswith("users/"):
        where = "kind = 'PERSON' AND username = $1"
    else:
        where = _ACCOUNT
        parts = [parts[0], *([""] if len(parts) == 2 else []), *parts[1:]]  # noqa: PLR2004 -- tenant and account, no project
    row = await tx.row(f"SELECT {_COLUMNS} FROM identity.users WHERE {where}{' FOR NO KEY UPDATE' if lock else ''}", *parts)
    if row is None:
        raise missing(name)
    return owner(row)


def owner(row: Record) -> Owner:
    """From a row."""
    return Owner(
        uid=row["uid"],
        username=row["username"],
        display_name=row["display_name"],
        active=UserState(row["state"]) is UserState.ACTIVE,
        tenant=row["owner_tenant"],
        project=row["owner_project"],
        account=row["account"],
        version=row["version"],
        created=row["created"],
        updated=row["updated"],
    )
