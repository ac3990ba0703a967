"""EnvironmentService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.tenancy.v1 import environment_pb2, environment_service_pb2
from libs import clock, pg
from libs.faults import Invalid, NotFound, Precondition
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.fleet import clusters_store, desired
from services.gateway.tenancy import derive, environments_store, events, masks, messages, missing, parents, quotas_store
from services.gateway.tenancy import environments_input as given
from services.gateway.tenancy.domain import names, namespaces, quotas

VIEW = "tenancy.environments.view"
LIST = "tenancy.environments.list"


class NoQuota(Precondition):
    """The tenant has no quota on the cluster, and so no leave to be there."""

    reason = "NO_QUOTA"


class EnvironmentService:
    """Keeps a project's environments."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateEnvironment(self, request: environment_service_pb2.CreateEnvironmentRequest, call: Call) -> environment_pb2.Environment:
        """Makes an environment; NotFound, Invalid, AlreadyExists, QuotaExceeded, NoQuota, PermissionDenied."""
        asked = request.environment
        tenant, project = names.parts(request.parent)
        if not asked.cluster:
            raise Invalid.one("environment.cluster", "must be given, as clusters/{cluster}")
        fields = given.columns(asked, masks.paths(asked, _ALL, known=given.MUTABLE))
        tx = await pg.tx(call)
        await parents.project(tx, tenant, project)
        given.refuse_privileges(call, fields)
        if asked.namespace:
            given.check_namespace(call, asked.namespace, tenant)
        key = {"uid": clock.new_id(), "tenant": tenant, "project": project, "name": request.environment_id}
        if await environments_store.named(tx, tenant, project, request.environment_id):
            raise missing.taken(names.environment(tenant, project, request.environment_id))
        cluster_uid = await _cluster(tx, asked.cluster)
        env = {**fields, **key, "cluster_uid": cluster_uid}
        env["quota"] = await _fitting(tx, call, env, asked.cluster)
        await _insert(tx, env, asked.namespace)
        return await _written(tx, call, env, "environment-created", network_too=env["isolated"])

    async def GetEnvironment(self, request: environment_service_pb2.GetEnvironmentRequest, call: Call) -> environment_pb2.Environment:
        """An environment; NotFound."""
        tenant, project, environment = names.parts(request.name)
        return _message(call, await environments_store.get(await pg.tx(call), tenant, project, environment))

    async def ListEnvironments(
        self, request: environment_service_pb2.ListEnvironmentsRequest, call: Call
    ) -> environment_service_pb2.ListEnvironmentsResponse:
        """The environments that the caller may see; NotFound for a parent in which it may see nothing."""
        tenant, project = names.parts(request.parent)
        tx = await pg.tx(call)
        scopes = call.caller.rights.scopes(LIST)
        await parents.seen(tx, scopes, tenant, project)
        where = lists.Where()
        if tenant != names.ANY:
            where.add("e.tenant = {}", tenant)
        if project != names.ANY:
            where.add("e.project = {}", project)
        where.within(scopes, "e.tenant", environments_store.NAME)
        found = await lists.read(tx, self._pages, call, request, source=environments_store.SOURCE, where=where)
        shown = [_message(call, row) for row in found.rows]
        return environment_service_pb2.ListEnvironmentsResponse(environments=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateEnvironment(self, request: environment_service_pb2.UpdateEnvironmentRequest, call: Call) -> environment_pb2.Environment:
        """Changes an environment; NotFound, Stale, Invalid, QuotaExceeded, PermissionDenied."""
        asked = request.environment
        changed = masks.paths(asked, request.update_mask, known=given.KNOWN)
        tenant, project, environment = names.given(asked.name, "environment.name", _PATTERN)
        tx = await pg.tx(call)
        row = await environments_store.get(tx, tenant, project, environment, lock=True)
        pg.check_etag(asked.etag, row["version"])
        parents.refuse_deleting(row, asked.name)
        given.refuse_changed(asked, changed, row)
        env = given.columns(asked, changed, row)
        given.refuse_privileges(call, env, row)
        if "quota" in changed:
            env["quota"] = await _fitting(tx, call, env, f"clusters/{row['cluster']}")
        await environments_store.update(tx, env)
        return await _written(tx, call, env, "environment-updated", network_too=env["isolated"] != row["isolated"])

    async def DeleteEnvironment(self, request: environment_service_pb2.DeleteEnvironmentRequest, call: Call) -> environment_pb2.Environment:
        """Starts to delete an environment; it stays DELETING until its cluster has confirmed."""
        tenant, project, environment = names.parts(request.name)
        tx = await pg.tx(call)
        row = await environments_store.get(tx, tenant, project, environment, lock=True)
        pg.check_etag(request.etag, row["version"])
        if row["state"] != "DELETING":
            await environments_store.set_deleting(tx, row["uid"])
            await desired.remove(tx, row["cluster_uid"], derive.environment_ref(row))
            row = await environments_store.get(tx, tenant, project, environment)
            await events.publish(tx, "environment-updated", messages.environment(row, full=True))
        call.tenant = names.tenant(tenant)
        return _message(call, row)


_PATTERN = "tenants/{tenant}/projects/{project}/environments/{environment}"
_ALL = FieldMask()  # of a Create: whatever is set


async def _cluster(tx: Tx, name: str) -> UUID:
    """The cluster's uid; the cluster stays until the transaction ends."""
    try:
        return await clusters_store.hold(tx, *names.parts(name))
    except NotFound as error:
        raise _no_cluster(name) from error


def _no_cluster(name: str) -> Invalid:
    """The fault for a cluster that is not there, or where the caller's tenants may not be."""
    return Invalid.one("environment.cluster", f"{name} does not exist")


async def _fitting(tx: Tx, call: Call, env: dict[str, Any], cluster: str) -> dict[str, str]:
    """The quota, completed, once it fits what is left of the tenant's; the tenant's quota stays locked."""
    held = await quotas_store.lock(tx, env["tenant"], env["cluster_uid"])
    if held is None:
        if not call.caller.allows("fleet.clusters.get", cluster):
            raise _no_cluster(cluster)
        raise NoQuota(f"tenants/{env['tenant']} has no quota on {cluster}", {"tenant": f"tenants/{env['tenant']}", "cluster": cluster})
    asked = quotas.complete(held["hard"], env["quota"])
    others = await environments_store.quotas(tx, env["tenant"], env["cluster_uid"], without=env["uid"])
    quotas.fit(held["hard"], others.values(), asked)
    return asked


async def _insert(tx: Tx, env: dict[str, Any], namespace: str) -> None:
    """Adds the row under the namespace asked for, or the first free one of its own."""
    for candidate in _namespaces(env, namespace):
        env["namespace"] = candidate
        if await environments_store.insert(tx, env):
            return
        if await environments_store.named(tx, env["tenant"], env["project"], env["name"]):
            raise missing.taken(names.environment(env["tenant"], env["project"], env["name"]))
    raise Invalid.one("environment.namespace", f"{env['namespace']} is another environment's on the cluster, or was burnt; choose another")


def _namespaces(env: dict[str, Any], namespace: str) -> Iterable[str]:
    if namespace:
        return [namespace]
    return namespaces.candidates(env["tenant"], env["project"], env["name"], str(env["uid"]))


def _message(call: Call, row: Record) -> environment_pb2.Environment:
    name = names.environment(row["tenant"], row["project"], row["name"])
    return messages.environment(row, full=call.caller.allows(VIEW, name))


async def _written(tx: Tx, call: Call, env: dict[str, Any], event: str, *, network_too: bool) -> environment_pb2.Environment:
    await derive.environment(tx, env, network_too=network_too)
    message = messages.environment(await environments_store.get(tx, env["tenant"], env["project"], env["name"]), full=True)
    call.tenant = names.tenant(env["tenant"])
    call.resources.append(message.name)
    await events.publish(tx, event, message)
    return message
