"""ProjectService."""

from __future__ import annotations

from typing import Any

from kubegems.tenancy.v1 import project_pb2, project_service_pb2
from libs import clock, pg
from libs.faults import PermissionDenied, Precondition
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.tenancy import derive, events, masks, messages, missing, parents, projects_store, settle
from services.gateway.tenancy.domain import names

_FIELDS = ("display_name", "description", "isolated")
VIEW = "tenancy.projects.view"
LIST = "tenancy.projects.list"
UPDATE = "tenancy.projects.update"


class ProjectNotEmpty(Precondition):
    """Environments are left in it; metadata: `left`."""

    reason = "PROJECT_NOT_EMPTY"


class ProjectService:
    """Keeps a tenant's projects."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateProject(self, request: project_service_pb2.CreateProjectRequest, call: Call) -> project_pb2.Project:
        """Makes a project; NotFound for the tenant, AlreadyExists."""
        (tenant,) = names.parts(request.parent)
        tx = await pg.tx(call)
        await parents.tenant(tx, tenant)
        if not await projects_store.insert(tx, clock.new_id(), tenant, request.project_id, _fields(request.project)):
            raise missing.taken(names.project(tenant, request.project_id))
        if request.project.isolated:
            await derive.networks(tx, tenant)
        return await _told(tx, call, (tenant, request.project_id), "project-created")

    async def GetProject(self, request: project_service_pb2.GetProjectRequest, call: Call) -> project_pb2.Project:
        """A project; only its name to a mere member; NotFound."""
        tenant, project = names.parts(request.name)
        return _message(call, await projects_store.get(await pg.tx(call), tenant, project))

    async def ListProjects(self, request: project_service_pb2.ListProjectsRequest, call: Call) -> project_service_pb2.ListProjectsResponse:
        """The projects that the caller may see; NotFound for a tenant in which it may see nothing."""
        (tenant,) = names.parts(request.parent)
        tx = await pg.tx(call)
        scopes = call.caller.rights.scopes(LIST)
        await parents.seen(tx, scopes, tenant)
        where = lists.Where()
        if tenant != names.ANY:
            where.add("p.tenant = {}", tenant)
        where.within(scopes, "p.tenant", projects_store.NAME)
        found = await lists.read(tx, self._pages, call, request, source=projects_store.SOURCE, where=where)
        shown = [_message(call, row) for row in found.rows]
        return project_service_pb2.ListProjectsResponse(projects=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateProject(self, request: project_service_pb2.UpdateProjectRequest, call: Call) -> project_pb2.Project:
        """Changes a project; NotFound, Stale, Invalid, PermissionDenied."""
        changed = masks.paths(request.project, request.update_mask, known=_FIELDS)
        tenant, project = names.given(request.project.name, "project.name", "tenants/{tenant}/projects/{project}")
        tx = await pg.tx(call)
        row = await projects_store.get(tx, tenant, project, lock="FOR UPDATE")
        pg.check_etag(request.project.etag, row["version"])
        parents.refuse_deleting(row, request.project.name)
        fields = {f: getattr(request.project, f) if f in changed else row[f] for f in _FIELDS}
        _refuse_more_than_isolation(call, request.project.name, fields, row)
        await projects_store.update(tx, tenant, project, fields)
        if fields["isolated"] != row["isolated"]:
            await derive.networks(tx, tenant)
        return await _told(tx, call, (tenant, project), "project-updated")

    async def DeleteProject(self, request: project_service_pb2.DeleteProjectRequest, call: Call) -> project_pb2.Project:
        """Starts to delete a project; ProjectNotEmpty names what is left in it."""
        tenant, project = names.parts(request.name)
        tx = await pg.tx(call)
        row = await projects_store.get(tx, tenant, project, lock="FOR UPDATE")
        pg.check_etag(request.etag, row["version"])
        left = await projects_store.contents(tx, tenant, project)
        if left:
            raise ProjectNotEmpty(f"{request.name} still holds {', '.join(left)}; delete them first", {"left": ",".join(left)})
        if row["state"] != "DELETING":
            await projects_store.set_deleting(tx, tenant, project)
            row = await projects_store.get(tx, tenant, project)
        message = _message(call, row)
        call.tenant = names.tenant(tenant)
        await settle.tenant(tx, tenant)
        if row["isolated"]:
            await derive.networks(tx, tenant)
        return message


def _refuse_more_than_isolation(call: Call, name: str, fields: dict[str, Any], row: Record) -> None:
    """Whoever holds the isolation switch alone changes nothing else; raises PermissionDenied naming what it would."""
    others = sorted(field for field in _FIELDS if field != "isolated" and fields[field] != row[field])
    if others and not call.caller.allows(UPDATE, name):
        raise PermissionDenied(f"{', '.join(others)}: needs the permission {UPDATE} at {name}", {"permission": UPDATE, "scope": name})


def _fields(message: project_pb2.Project) -> dict[str, Any]:
    return {field: getattr(message, field) for field in _FIELDS}


def _message(call: Call, row: Record) -> project_pb2.Project:
    return messages.project(row, full=call.caller.allows(VIEW, names.project(row["tenant"], row["name"])))


async def _told(tx: Tx, call: Call, key: tuple[str, str], event: str) -> project_pb2.Project:
    message = messages.project(await projects_store.get(tx, *key), full=True)
    call.tenant = names.tenant(key[0])
    call.resources.append(message.name)
    await events.publish(tx, event, message)
    return message
