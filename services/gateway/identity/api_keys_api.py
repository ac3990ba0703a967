"""ApiKeyService: making, listing, taking back API keys."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.empty_pb2 import Empty

from kubegems.identity.v1 import api_key_pb2
from kubegems.identity.v1 import api_key_service_pb2 as pb
from libs import pg
from libs.clock import Clock, new_id
from libs.faults import Invalid, Precondition
from libs.pg import lists
from libs.pg.paging import Pages
from libs.rpc.authorisation import missing
from libs.rpc.call import Call
from services.gateway.identity import api_key_domain as rules
from services.gateway.identity import api_keys_store as store
from services.gateway.identity import domain, escalation, owners, wire
from services.gateway.identity.api_key_domain import ApiKey, Escalation, KeyText, Limits
from services.gateway.identity.directory import Directory, Standing
from services.gateway.identity.narrowed import KeyRights
from services.gateway.identity.owners import Owner
from services.gateway.identity.rights import known_permissions

_State = api_key_pb2.ApiKey.State


class ApiKeyService:
    """Serves `kubegems.identity.v1.ApiKeyService`."""

    def __init__(self, *, directory: Directory, pages: Pages, clock: Clock) -> None:
        self._directory = directory
        self._pages = pages
        self._clock = clock

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, call: Call) -> pb.CreateApiKeyResponse:
        """Makes a key, which is shown here and never again; Escalation, Invalid, AlreadyExists, TooManyKeys."""
        tx, now, given = await pg.tx(call), self._clock.now(), request.api_key
        owner = await owners.get(tx, request.parent)
        limits = Limits(request.api_key_id, frozenset(given.permissions), given.read_only, given.scope)
        await self._check(limits, owner, call)
        if await store.count(tx, owner.uid, now) >= rules.MOST_KEYS:
            raise rules.TooManyKeys(f"{owner.name} has {rules.MOST_KEYS} API keys; take one back first")
        asked = given.expire_time.ToDatetime(UTC) if given.HasField("expire_time") else None
        text = KeyText.new(new_id())
        key = ApiKey(
            id=text.id,
            user_uid=owner.uid,
            limits=limits,
            display_name=domain.text("api_key.display_name", given.display_name),
            created=now,
            expires=rules.expiry(asked, now),
        )
        await store.insert(tx, key, text.hash, _name(owner, key))
        call.resources.append(_name(owner, key))
        return pb.CreateApiKeyResponse(api_key=_message(owner, key, now), key=text.text)

    async def GetApiKey(self, request: pb.GetApiKeyRequest, call: Call) -> api_key_pb2.ApiKey:
        """One key; NotFound."""
        parent, key_id = _split(request.name)
        tx = await pg.tx(call)
        owner = await owners.get(tx, parent)
        key = await store.get(tx, owner.uid, key_id)
        if key is None:
            raise missing(request.name)
        return _message(owner, key, self._clock.now())

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        """An owner's keys, newest first; NotFound for the owner."""
        tx, now = await pg.tx(call), self._clock.now()
        owner = await owners.get(tx, request.parent)
        where = lists.Where()
        where.add("k.user_uid = {} AND k.revoked IS NULL", owner.uid)
        found = await lists.read(tx, self._pages, call, request, source=store.SOURCE, where=where)
        shown = [_message(owner, store.from_row(row), now) for row in found.rows]
        return pb.ListApiKeysResponse(api_keys=shown, next_page_token=found.token)

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, call: Call) -> Empty:
        """Takes a key back; NotFound."""
        parent, key_id = _split(request.name)
        tx = await pg.tx(call)
        owner = await owners.get(tx, parent)
        if not await store.revoke(tx, owner.uid, key_id, self._clock.now()):
            raise missing(request.name)
        return Empty()

    async def _check(self, limits: Limits, owner: Owner, call: Call) -> None:
        """Raises unless the caller may make this key, and the key gives something that its owner holds."""
        standing = await self._directory.standing(owner.uid)
        if standing is None or not owner.active:
            raise Precondition(f"{owner.name} is disabled")
        if owner.account:
            escalation.refuse(call.caller, standing.account.memberships, owner.username)
        elif not owner.is_caller(call.caller):
            raise Escalation(f"a key of {owner.name} acts as {owner.name}: only that user makes it")
        self._check_permissions(limits, standing)

    def _check_permissions(self, limits: Limits, standing: Standing) -> None:
        unknown = sorted(limits.permissions - known_permissions())
        if unknown:
            raise Invalid.one("api_key.permissions", f"there is no permission `{unknown[0]}`")
        rights = KeyRights(standing.rights, limits, self._directory.places)
        for permission in sorted(limits.permissions):
            if not limits.gives(permission) or rights.scopes(permission).empty:
                where = f" at {limits.scope}" if limits.scope else ""
                raise Escalation(
                    f"the key cannot give {permission}: its owner does not hold it{where}, or no key gives it, or it only reads",
                    {"permission": permission, "scope": limits.scope},
                )
        if limits.scope and all(rights.scopes(permission).empty for permission in known_permissions()):
            raise missing(limits.scope)


def _split(name: str) -> tuple[str, str]:
    """An owner's name and a key's id."""
    parent, _, key = name.rpartition("/apiKeys/")
    return parent, key


def _name(owner: Owner, key: ApiKey) -> str:
    return f"{owner.name}/apiKeys/{key.limits.key}"


def _message(owner: Owner, key: ApiKey, now: datetime) -> api_key_pb2.ApiKey:
    """A key as the API shows it."""
    return api_key_pb2.ApiKey(
        name=_name(owner, key),
        uid=str(key.id),
        display_name=key.display_name,
        permissions=sorted(key.limits.permissions),
        read_only=key.limits.read_only,
        scope=key.limits.scope,
        state=_State.ACTIVE if key.expires > now else _State.EXPIRED,
        expire_time=wire.timestamp(key.expires),
        create_time=wire.timestamp(key.created),
        last_use_time=wire.timestamp(key.last_use) if key.last_use else None,
        last_use_address=key.last_use_address,
    )
