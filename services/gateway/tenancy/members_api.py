"""MemberService."""

from __future__ import annotations

from uuid import UUID

from google.protobuf import empty_pb2

from kubegems.tenancy.v1 import member_pb2, member_service_pb2
from libs import pg
from libs.faults import NotFound
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.identity import escalation
from services.gateway.identity.rights import Membership
from services.gateway.tenancy import (
    environments_store,
    events,
    members_store,
    messages,
    missing,
    parents,
    projects_store,
    tenants_store,
)
from services.gateway.tenancy.domain import names, roles


class MemberService:
    """Keeps the roles of users at tenants, projects and environments."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetMember(self, request: member_service_pb2.GetMemberRequest, call: Call) -> member_pb2.Member:
        """A user's role at one level; NotFound."""
        parts, user = _split(request.name)
        return messages.member(await _member(await pg.tx(call), request.name, parts, user))

    async def ListMembers(self, request: member_service_pb2.ListMembersRequest, call: Call) -> member_service_pb2.ListMembersResponse:
        """The members of one level; NotFound for the level."""
        parts = names.parts(request.parent)
        tx = await pg.tx(call)
        await _level(tx, parts)
        where = lists.Where()
        where.add("m.tenant = {} AND m.project = {} AND m.environment = {}", *members_store.at(parts))
        found = await lists.read(tx, self._pages, call, request, source=members_store.SOURCE, where=where)
        shown = [messages.member(row) for row in found.rows]
        return member_service_pb2.ListMembersResponse(members=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateMember(self, request: member_service_pb2.UpdateMemberRequest, call: Call) -> member_pb2.Member:
        """Sets a user's role at one level, and makes it a member of the tenant; NotFound, Invalid, LastAdmin."""
        parts, username = _split(request.member.name)
        role = member_pb2.Member.Role.Name(request.member.role).lower()
        roles.check(roles.level(parts), role)
        tenant, project, environment = members_store.at(parts)
        given = Membership.of(roles.level(parts), role, tenant, project, environment, suspended=False)
        escalation.refuse(call.caller, [given], username)  # a key that gives this right alone must not give all others by it
        tx = await pg.tx(call)
        await tenants_store.get(tx, parts[0], lock="FOR UPDATE")  # one change of a tenant's members at a time
        row = await _level(tx, parts, lock="FOR SHARE")
        parents.refuse_deleting(row, names.scope(*parts))
        user = await members_store.person_uid(tx, username)
        if user is None:
            raise NotFound(
                f"users/{username} does not exist", {"resource_type": "kubegems.identity.v1.User", "resource_name": f"users/{username}"}
            )
        if len(parts) == 1 and role != "admin":
            await _keep_an_admin(tx, parts[0], user, username)
        await members_store.join_tenant(tx, user, parts[0])
        await members_store.put(tx, user, members_store.at(parts), role)
        message = messages.member(await _member(tx, request.member.name, parts, username))
        call.tenant = names.tenant(parts[0])
        call.resources.append(f"users/{username}")
        await events.publish(tx, "member-updated", message)
        return message

    async def DeleteMember(self, request: member_service_pb2.DeleteMemberRequest, call: Call) -> empty_pb2.Empty:
        """Takes a user's role at one level away, and everything below it; NotFound, LastAdmin."""
        parts, username = _split(request.name)
        tx = await pg.tx(call)
        await tenants_store.get(tx, parts[0], lock="FOR UPDATE")
        message = messages.member(await _member(tx, request.name, parts, username))
        user = await members_store.user_uid(tx, username)
        assert user is not None, "a member is a user"
        if len(parts) == 1:
            await _keep_an_admin(tx, parts[0], user, username)
        await members_store.remove(tx, user, members_store.at(parts))
        call.tenant = names.tenant(parts[0])
        call.resources.append(f"users/{username}")
        await events.publish(tx, "member-deleted", message)
        return empty_pb2.Empty()


def _split(name: str) -> tuple[list[str], str]:
    *parts, user = names.parts(name)
    return parts, user


async def _member(tx: Tx, name: str, parts: list[str], username: str) -> Record:
    row = await members_store.get(tx, members_store.at(parts), username)
    if row is None:
        raise missing.not_found(name, "Member")
    return row


async def _level(tx: Tx, parts: list[str], *, lock: str = "") -> Record:
    match parts:
        case [tenant]:
            return await tenants_store.get(tx, tenant)
        case [tenant, project]:
            return await projects_store.get(tx, tenant, project, lock=lock)
        case [tenant, project, environment]:
            return await environments_store.get(tx, tenant, project, environment, lock=bool(lock))
    raise AssertionError(f"no level at {parts}")


async def _keep_an_admin(tx: Tx, tenant: str, user: UUID, username: str) -> None:
    """Raises LastAdmin when the tenant's only admin would go."""
    row = await members_store.get(tx, (tenant, "", ""), username)
    if row and row["role"] == "admin" and not await members_store.other_admins(tx, tenant, user):
        raise roles.LastAdmin(
            f"users/{username} is the last admin of {names.tenant(tenant)}; make another one first", {"user": f"users/{username}"}
        )
