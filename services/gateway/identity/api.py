"""UserService: making, changing, shutting out users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty

from kubegems.identity.v1 import user_pb2
from kubegems.identity.v1 import user_service_pb2 as pb
from libs import pg
from libs.clock import Clock, new_id
from libs.faults import Invalid, PermissionDenied
from libs.pg import lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.identity import domain, store, wire
from services.gateway.identity.domain import PlatformRole, User, UserState
from services.gateway.identity.passwords import Passwords
from services.gateway.identity.sessions_api import SessionService
from services.gateway.identity.sign_in import SignIn

__all__ = ["SessionService", "UserService"]

_SET_ROLE = "identity.users.setRole"
_CHANGEABLE = ("display_name", "email", "platform_role")


class UserService:
    """Serves `kubegems.identity.v1.UserService`."""

    def __init__(self, *, sign_in: SignIn, passwords: Passwords, pages: Pages, clock: Clock) -> None:
        self._sign_in = sign_in
        self._passwords = passwords
        self._pages = pages
        self._clock = clock

    async def CreateUser(self, request: pb.CreateUserRequest, call: Call) -> user_pb2.User:
        """Makes a user with a first password."""
        domain.check_username(request.user_id)
        domain.check_password("initial_password", request.user_id, request.initial_password)
        if wire.platform_role(request.user.platform_role) is not PlatformRole.USER:
            _check_role_change(request.user_id, call)
        now = self._clock.now()
        user = User(
            uid=new_id(),
            username=request.user_id,
            display_name=domain.text("user.display_name", request.user.display_name),
            email=domain.text("user.email", request.user.email),
            state=UserState.ACTIVE,
            platform_role=wire.platform_role(request.user.platform_role),
            version=1,
            created=now,
            updated=now,
        )
        password_hash = await self._passwords.hash(request.initial_password)
        made = await store.insert_user(await pg.tx(call), user, password_hash)
        call.resources.append(f"users/{made.username}")
        return wire.user_message(made)

    async def GetUser(self, request: pb.GetUserRequest, call: Call) -> user_pb2.User:
        """One user."""
        return wire.user_message(await store.get_user(await pg.tx(call), wire.username_of(request.name)))

    async def ListUsers(self, request: pb.ListUsersRequest, call: Call) -> pb.ListUsersResponse:
        """A page of users."""
        where = lists.Where()
        where.add("u.kind = 'PERSON'")
        found = await lists.read(await pg.tx(call), self._pages, call, request, source=store.USERS, where=where)
        shown = [wire.user_message(store.user_of(row)) for row in found.rows]
        return pb.ListUsersResponse(users=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateUser(self, request: pb.UpdateUserRequest, call: Call) -> user_pb2.User:
        """Changes display name, mail address or platform role."""
        given, changes = request.user, _changes(request)
        tx = await pg.tx(call)
        role = wire.platform_role(given.platform_role)
        # the admins' rows first, in one order for all, so that two changes cannot wait for each other
        admins = await store.lock_active_admins(tx) if "platform_role" in changes else frozenset()
        old = await store.get_user(tx, wire.username_of(given.name), lock=True)
        pg.check_etag(given.etag, old.version)
        new = replace(
            old,
            display_name=domain.text("user.display_name", given.display_name) if "display_name" in changes else old.display_name,
            email=domain.text("user.email", given.email) if "email" in changes else old.email,
            platform_role=role if "platform_role" in changes else old.platform_role,
        )
        if new.platform_role is not old.platform_role:
            _check_role_change(old.username, call)
            if new.platform_role is not PlatformRole.ADMIN:
                domain.check_not_last_admin(old, admins)
        return wire.user_message(old if new == old else await store.update_user(tx, new, self._clock.now()))

    async def ChangePassword(self, request: pb.ChangePasswordRequest, call: Call) -> Empty:
        """Sets a new password after proof of the old one; all other sessions end."""
        username = wire.username_of(request.name)
        domain.check_password("new_password", username, request.new_password)
        if request.new_password == request.old_password:
            raise Invalid.one("new_password", "must differ from the old one")
        proved = await self._sign_in.prove(username, request.old_password, call.address)
        password_hash = await self._passwords.hash(request.new_password)
        tx, now = await pg.tx(call), self._clock.now()
        current = await store.credentials(tx, username, lock=True)
        if current is None or current.password_hash != proved.password_hash:
            raise domain.WrongCredentials  # changed while the password was being checked
        await store.set_password(tx, current.user.uid, password_hash, now)
        await store.end_sessions(tx, current.user.uid, now, but=wire.session_id(call.caller.session))
        return Empty()

    async def ResetPassword(self, request: pb.ResetPasswordRequest, call: Call) -> Empty:
        """Sets a user's password without the old one; all its sessions end."""
        username = wire.username_of(request.name)
        domain.check_password("new_password", username, request.new_password)
        password_hash = await self._passwords.hash(request.new_password)
        tx, now = await pg.tx(call), self._clock.now()
        user = await store.get_user(tx, username, lock=True)
        await store.set_password(tx, user.uid, password_hash, now)
        await store.end_sessions(tx, user.uid, now)
        return Empty()

    async def DisableUser(self, request: pb.DisableUserRequest, call: Call) -> user_pb2.User:
        """Ends all sessions and refuses new ones."""
        tx, now = await pg.tx(call), self._clock.now()
        admins = await store.lock_active_admins(tx)
        user = await store.get_user(tx, wire.username_of(request.name), lock=True)
        domain.check_not_last_admin(user, admins)
        if user.state is not UserState.DISABLED:
            user = await store.update_user(tx, replace(user, state=UserState.DISABLED), now)
        await store.end_sessions(tx, user.uid, now)
        return wire.user_message(user)

    async def EnableUser(self, request: pb.EnableUserRequest, call: Call) -> user_pb2.User:
        """Lets a disabled user sign in again."""
        tx = await pg.tx(call)
        user = await store.get_user(tx, wire.username_of(request.name), lock=True)
        if user.state is not UserState.ACTIVE:
            user = await store.update_user(tx, replace(user, state=UserState.ACTIVE), self._clock.now())
        return wire.user_message(user)


def _changes(request: pb.UpdateUserRequest) -> Sequence[str]:
    """Fields to change: those of the mask, or all that are set."""
    paths = list(request.update_mask.paths)
    unknown = [path for path in paths if path not in _CHANGEABLE]
    if unknown:
        raise Invalid.one("update_mask", f"`{unknown[0]}` cannot be changed; {', '.join(_CHANGEABLE)} can")
    return paths or [name for name in _CHANGEABLE if getattr(request.user, name)]


def _check_role_change(username: str, call: Call) -> None:
    if not call.caller.allows(_SET_ROLE):
        raise PermissionDenied(
            f"only a platform admin may change the platform role of users/{username} (needs {_SET_ROLE})",
            metadata={"permission": _SET_ROLE, "scope": ""},
        )
