"""JoinTokenService."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf import empty_pb2

from kubegems.fleet.v1 import join_token_service_pb2
from libs import pg
from libs.clock import Clock
from libs.crypt.ca import Authority
from libs.faults import NotFound
from libs.kube import manifest
from libs.pg import lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.fleet import clusters_store, domain, join_tokens_store, joining, messages
from services.gateway.fleet.joining import Joining
from services.gateway.tenancy.domain import names


class JoinTokenService:
    """Makes what a cluster's admin needs to join it."""

    def __init__(self, pages: Pages, *, joining: Joining, authority: Authority, clock: Clock) -> None:
        self._pages = pages
        self._joining = joining
        self._authority = authority
        self._clock = clock

    async def CreateJoinToken(
        self, request: join_token_service_pb2.CreateJoinTokenRequest, call: Call
    ) -> join_token_service_pb2.CreateJoinTokenResponse:
        """A token, and the command and manifest that use it; NotFound for the cluster."""
        (cluster,) = names.parts(request.parent)
        tx = await pg.tx(call)
        uid = await clusters_store.hold(tx, cluster)
        token, now = domain.Token.new(), self._clock.now()
        ttl = timedelta(seconds=request.ttl_seconds) if request.ttl_seconds else domain.DEFAULT_TTL
        row = await join_tokens_store.insert(tx, token, uid, now, now + ttl)
        ca_hash = self._authority.fingerprint
        pods = joining.workloads(self._joining, token.text, ca_hash, one_port=request.one_port)
        reply = join_token_service_pb2.CreateJoinTokenResponse(
            join_token=messages.join_token(cluster, row, "UNUSED"),
            token=token.text,
            ca_hash=ca_hash,
            command=joining.command(self._joining, cluster, token.text, ca_hash, one_port=request.one_port),
            manifest=manifest.render(workloads=pods, without_cluster_admin=request.without_cluster_admin),
        )
        call.resources.append(reply.join_token.name)
        return reply

    async def ListJoinTokens(
        self, request: join_token_service_pb2.ListJoinTokensRequest, call: Call
    ) -> join_token_service_pb2.ListJoinTokensResponse:
        """A cluster's tokens, newest first; NotFound for the cluster."""
        (cluster,) = names.parts(request.parent)
        tx = await pg.tx(call)
        uid = (await clusters_store.get(tx, cluster))["uid"]
        where = lists.Where()
        where.add("j.cluster_uid = {}", uid)
        found = await lists.read(tx, self._pages, call, request, source=join_tokens_store.SOURCE, where=where)
        now = self._clock.now()
        shown = [messages.join_token(cluster, row, domain.state(row, now)) for row in found.rows]
        return join_token_service_pb2.ListJoinTokensResponse(join_tokens=shown, next_page_token=found.token)

    async def DeleteJoinToken(self, request: join_token_service_pb2.DeleteJoinTokenRequest, call: Call) -> empty_pb2.Empty:
        """Takes a token back; what joined with it stays. NotFound."""
        cluster, token = names.parts(request.name)
        if not await join_tokens_store.revoke(await pg.tx(call), cluster, token, self._clock.now()):
            raise NotFound(
                f"{request.name} does not exist", {"resource_type": "kubegems.fleet.v1.JoinToken", "resource_name": request.name}
            )
        return empty_pb2.Empty()
