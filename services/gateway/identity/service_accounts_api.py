"""ServiceAccountService: programs that a tenant or a project owns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty

from kubegems.identity.v1 import service_account_pb2
from kubegems.identity.v1 import service_account_service_pb2 as pb
from libs import pg
from libs.clock import Clock, new_id
from libs.faults import Invalid
from libs.pg import Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.identity import domain, escalation, owners, wire
from services.gateway.identity import service_accounts_store as store
from services.gateway.identity.owners import Owner
from services.gateway.identity.rights import Membership
from services.gateway.identity.role_table import Role
from services.gateway.tenancy import environments_store, parents, projects_store, tenants_store
from services.gateway.tenancy.domain import names

_CHANGEABLE = ("display_name", "roles", "disabled")
_Grant = service_account_pb2.RoleGrant
_LEVELS = ("tenant", "project", "environment")


class ServiceAccountService:
    """Serves `kubegems.identity.v1.ServiceAccountService`."""

    def __init__(self, *, pages: Pages, clock: Clock) -> None:
        self._pages = pages
        self._clock = clock

    async def CreateServiceAccount(self, request: pb.CreateServiceAccountRequest, call: Call) -> service_account_pb2.ServiceAccount:
        """Makes an account; NotFound for the owner, Escalation, AlreadyExists."""
        tenant, project = (*names.parts(request.parent), "")[:2]
        given, now, account = request.service_account, self._clock.now(), request.service_account_id
        made = Owner(
            uid=new_id(), username=owners.username(tenant, project, account), tenant=tenant, project=project, account=account,
            display_name=domain.text("service_account.display_name", given.display_name), active=not given.disabled, version=1,
            created=now, updated=now,
        )  # fmt: skip
        tx = await pg.tx(call)
        await _owning(tx, tenant, project)
        await store.insert(tx, made)
        await _give(tx, made, given.roles, call)
        call.resources += [made.name, f"users/{made.username}"]
        return await _shown(tx, made)

    async def GetServiceAccount(self, request: pb.GetServiceAccountRequest, call: Call) -> service_account_pb2.ServiceAccount:
        """One account; NotFound."""
        tx = await pg.tx(call)
        return await _shown(tx, await owners.get(tx, request.name))

    async def ListServiceAccounts(self, request: pb.ListServiceAccountsRequest, call: Call) -> pb.ListServiceAccountsResponse:
        """The accounts that a tenant or project owns itself; NotFound for it."""
        tenant, project = (*names.parts(request.parent), "")[:2]
        tx = await pg.tx(call)
        await _there(tx, [tenant, project] if project else [tenant])
        where = lists.Where()
        where.add("u.kind = 'SERVICE_ACCOUNT' AND u.owner_tenant = {} AND u.owner_project = {}", tenant, project)
        found = await lists.read(tx, self._pages, call, request, source=store.SOURCE, where=where)
        accounts = [owners.owner(row) for row in found.rows]
        held = await store.memberships(tx, [a.uid for a in accounts])
        shown = [_message(a, held[a.uid]) for a in accounts]
        return pb.ListServiceAccountsResponse(service_accounts=shown, next_page_token=found.token)

    async def UpdateServiceAccount(self, request: pb.UpdateServiceAccountRequest, call: Call) -> service_account_pb2.ServiceAccount:
        """Changes display name, roles, or whether it is disabled; NotFound, Stale, Escalation."""
        given, changes = request.service_account, _changes(request)
        tx = await pg.tx(call)
        tenant, project = (*names.parts(given.name)[:-1], "")[:2]
        await _owning(tx, tenant, project)
        old = await owners.get(tx, given.name, lock=True)
        pg.check_etag(given.etag, old.version)
        new = replace(
            old,
            display_name=domain.text("service_account.display_name", given.display_name) if "display_name" in changes else old.display_name,
            active=not given.disabled if "disabled" in changes else old.active,
        )
        await store.update(tx, new, self._clock.now())
        if "roles" in changes:
            await _give(tx, new, given.roles, call)
        if new.active and not old.active:  # letting it in again gives what it holds
            escalation.refuse(call.caller, _own(new, (await store.memberships(tx, [new.uid]))[new.uid]), new.username)
        return await _shown(tx, await owners.get(tx, given.name))

    async def DeleteServiceAccount(self, request: pb.DeleteServiceAccountRequest, call: Call) -> Empty:
        """Removes an account with its keys and roles; NotFound."""
        tx = await pg.tx(call)
        await store.delete(tx, (await owners.get(tx, request.name, lock=True)).uid)
        return Empty()


async def _owning(tx: Tx, tenant: str, project: str) -> None:
    """Locks the tenant's members and makes sure that the owner is there and stays; NotFound, BeingDeleted, TenantSuspended."""
    await tenants_store.get(tx, tenant, lock="FOR UPDATE")
    if project:
        await parents.project(tx, tenant, project)
    else:
        await parents.tenant(tx, tenant)


async def _give(tx: Tx, account: Owner, grants: Iterable[service_account_pb2.RoleGrant], call: Call) -> None:
    """Gives roles, and no more than the caller holds: Invalid, NotFound for a place, Escalation."""
    given = [_membership(account, grant, index) for index, grant in enumerate(grants)]
    if len({m.scope for m in given}) != len(given):
        raise Invalid.one("service_account.roles", "name each scope once")
    escalation.refuse(call.caller, given, account.username)
    for membership in given:
        parts = names.parts(membership.scope)
        await _there(tx, parts)
    await store.replace_roles(tx, account.uid, account.tenant, given)


def _membership(account: Owner, grant: service_account_pb2.RoleGrant, index: int) -> Membership:
    path, owner = f"service_account.roles[{index}]", owners.place(account.tenant, account.project)
    if grant.scope != owner and not grant.scope.startswith(owner + "/"):
        raise Invalid.one(f"{path}.scope", f"{grant.scope!r} is not {owner} or below it")
    parts = names.parts(grant.scope)
    level = _LEVELS[len(parts) - 1]
    try:
        role = Role((level, _Grant.Role.Name(grant.role)))
    except ValueError as error:
        raise Invalid.one(f"{path}.role", f"{_Grant.Role.Name(grant.role)} is no role of {level}s") from error
    tenant, project, environment = (*parts, "", "")[:3]
    return Membership(role, tenant, project, environment)


async def _there(tx: Tx, parts: Sequence[str]) -> None:
    """Raises NotFound unless a tenant, project or environment is there."""
    match parts:
        case [tenant]:
            await tenants_store.get(tx, tenant)
        case [tenant, project]:
            await projects_store.get(tx, tenant, project, lock="FOR SHARE")
        case [tenant, project, environment]:
            await environments_store.get(tx, tenant, project, environment, lock=True)


def _changes(request: pb.UpdateServiceAccountRequest) -> Collection[str]:
    """Fields to change: those of the mask, or all that are set."""
    paths = list(request.update_mask.paths)
    unknown = [path for path in paths if path not in _CHANGEABLE]
    if unknown:
        raise Invalid.one("update_mask", f"`{unknown[0]}` cannot be changed; {', '.join(_CHANGEABLE)} can")
    return paths or [name for name in _CHANGEABLE if getattr(request.service_account, name)]


def _own(account: Owner, memberships: Iterable[Membership]) -> list[Membership]:
    """Those that were given; a project's account is a member of the tenant by that fact."""
    return [m for m in memberships if not (account.project and m.role is Role.TENANT_MEMBER)]


async def _shown(tx: Tx, account: Owner) -> service_account_pb2.ServiceAccount:
    return _message(account, (await store.memberships(tx, [account.uid]))[account.uid])


def _message(account: Owner, memberships: Iterable[Membership]) -> service_account_pb2.ServiceAccount:
    """An account as the API shows it."""
    return service_account_pb2.ServiceAccount(
        name=account.name,
        uid=str(account.uid),
        username=account.username,
        display_name=account.display_name,
        roles=[_Grant(scope=m.scope, role=_Grant.Role.Value(m.role.value[1])) for m in _own(account, memberships)],
        disabled=not account.active,
        etag=account.etag,
        create_time=wire.timestamp(account.created),
        update_time=wire.timestamp(account.updated),
    )
