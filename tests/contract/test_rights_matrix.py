"""Every RPC of the protos, by every role, in the own and another tenant, held against expectations written by hand.

The expectations say who may, by letter; what they do not say is a no. A new RPC without a line here fails the test. Each call
takes the whole road of the pipeline, and who may is who reaches the handler.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubegems.policy.v1 import policy_pb2
from libs.faults import Fault, NotFound, PermissionDenied
from libs.rpc import Caller, Kind
from libs.rpc.registry import rule_of
from services.gateway.identity import matrix
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.rights import MemberRights, Membership, known_permissions
from services.gateway.identity.role_table import Role
from tests.contract.road import METHODS, Road

ROOT = Path(__file__).parents[2]
_Rule = policy_pb2.Rule

# Letters of the roles: $ platform admin, @ platform auditor, u signed in without membership; A tenant admin, M tenant
# member; a project admin, o ops, d dev, t test; x environment operator, r environment reader; s any role in a suspended tenant.
WHO = "$@uAMaodtxrs"
MEMBERS = "AMaodtxr"
SEE = "Aaodtxr"
UID = "01890a5d-ac96-774b-bcce-b302099a8057"
T, P, E = "tenants/acme", "tenants/acme/projects/shop", "tenants/acme/projects/shop/environments/dev"

# RPC, resource name that it asks about, who may.
MAY: list[tuple[str, str, str]] = [
    # Users and sessions: oneself, the admin; the auditor reads.
    ("UserService/GetUser", "users/me", WHO),
    ("UserService/GetUser", "users/other", "$@"),
    ("UserService/UpdateUser", "users/me", WHO),
    ("UserService/UpdateUser", "users/other", "$"),
    ("UserService/ChangePassword", "users/me", WHO),
    ("UserService/ChangePassword", "users/other", "$"),
    ("UserService/ListUsers", "", "$@"),
    ("UserService/CreateUser", "", "$"),
    ("UserService/ResetPassword", "users/other", "$"),
    ("UserService/DisableUser", "users/other", "$"),
    ("UserService/EnableUser", "users/other", "$"),
    ("SessionService/ListSessions", "users/me", WHO),
    ("SessionService/ListSessions", "users/other", "$@"),
    ("SessionService/DeleteSession", "users/me/sessions/1", WHO),
    ("SessionService/DeleteSession", "users/other/sessions/1", "$"),
    # API keys: one's own (the handler lets nobody make another person's), and those of service accounts by who keeps these.
    ("ApiKeyService/CreateApiKey", "users/me", WHO),
    ("ApiKeyService/CreateApiKey", "users/other", "$"),
    ("ApiKeyService/CreateApiKey", f"{T}/serviceAccounts/ci", "$A"),
    ("ApiKeyService/CreateApiKey", f"{P}/serviceAccounts/ci", "$Aa"),
    ("ApiKeyService/GetApiKey", "users/me/apiKeys/k", WHO),
    ("ApiKeyService/GetApiKey", "users/other/apiKeys/k", "$@"),
    ("ApiKeyService/GetApiKey", f"{T}/serviceAccounts/ci/apiKeys/k", "$@A"),
    ("ApiKeyService/ListApiKeys", "users/me", WHO),
    ("ApiKeyService/ListApiKeys", "users/other", "$@"),
    ("ApiKeyService/ListApiKeys", f"{P}/serviceAccounts/ci", "$@Aa"),
    ("ApiKeyService/DeleteApiKey", "users/me/apiKeys/k", WHO),
    ("ApiKeyService/DeleteApiKey", "users/other/apiKeys/k", "$"),
    ("ApiKeyService/DeleteApiKey", f"{T}/serviceAccounts/ci/apiKeys/k", "$A"),
    ("ApiKeyService/DeleteApiKey", f"{P}/serviceAccounts/ci/apiKeys/k", "$Aa"),
    ("ServiceAccountService/CreateServiceAccount", T, "$A"),
    ("ServiceAccountService/CreateServiceAccount", P, "$Aa"),
    ("ServiceAccountService/CreateServiceAccount", "tenants/acme/projects/blog", "$A"),
    ("ServiceAccountService/GetServiceAccount", f"{T}/serviceAccounts/ci", "$@A"),
    ("ServiceAccountService/GetServiceAccount", f"{P}/serviceAccounts/ci", "$@Aa"),
    ("ServiceAccountService/ListServiceAccounts", T, "$@A"),
    ("ServiceAccountService/ListServiceAccounts", P, "$@Aa"),
    ("ServiceAccountService/UpdateServiceAccount", f"{T}/serviceAccounts/ci", "$A"),
    ("ServiceAccountService/UpdateServiceAccount", f"{P}/serviceAccounts/ci", "$Aa"),
    ("ServiceAccountService/DeleteServiceAccount", f"{T}/serviceAccounts/ci", "$A"),
    ("ServiceAccountService/DeleteServiceAccount", f"{P}/serviceAccounts/ci", "$Aa"),
    # Tenants.
    ("TenantService/GetTenant", T, "$@s" + MEMBERS),
    ("TenantService/ListTenants", T, "$@s" + MEMBERS),
    ("TenantService/UpdateTenant", T, "$A"),
    ("TenantService/CreateTenant", "", "$"),
    ("TenantService/DeleteTenant", T, "$"),
    ("TenantService/SuspendTenant", T, "$"),
    ("TenantService/ResumeTenant", T, "$"),
    ("QuotaService/GetTenantQuota", f"{T}/quotas/local", "$@Aaodt"),
    ("QuotaService/ListTenantQuotas", T, "$@Aaodt"),
    ("QuotaService/UpdateTenantQuota", f"{T}/quotas/local", "$"),
    ("QuotaService/DeleteTenantQuota", f"{T}/quotas/local", "$"),
    # Projects; environment roles know the name.
    ("ProjectService/GetProject", P, "$@" + SEE),
    ("ProjectService/ListProjects", P, "$@" + SEE),
    ("ProjectService/GetProject", "tenants/acme/projects/blog", "$@A"),
    ("ProjectService/CreateProject", T, "$A"),
    ("ProjectService/UpdateProject", P, "$Aao"),  # of ops the isolation switch alone, which the handler sees to
    ("ProjectService/DeleteProject", P, "$Aa"),
    ("ProjectService/DeleteProject", "tenants/acme/projects/blog", "$A"),
    # Environments.
    ("EnvironmentService/GetEnvironment", E, "$@" + SEE),
    ("EnvironmentService/GetEnvironment", f"{P}/environments/live", "$@Aaodt"),
    ("EnvironmentService/GetEnvironment", "tenants/acme/projects/blog/environments/dev", "$@A"),
    ("EnvironmentService/ListEnvironments", E, "$@" + SEE),
    ("EnvironmentService/CreateEnvironment", P, "$Aao"),
    ("EnvironmentService/UpdateEnvironment", E, "$Aao"),
    ("EnvironmentService/DeleteEnvironment", E, "$Aao"),
    # Members at each level; everyone sees the own row.
    ("MemberService/ListMembers", T, "$@A"),
    ("MemberService/ListMembers", P, "$@Aa"),
    ("MemberService/ListMembers", E, "$@" + SEE),
    ("MemberService/GetMember", f"{T}/members/other", "$@A"),
    ("MemberService/GetMember", f"{P}/members/other", "$@Aa"),
    ("MemberService/GetMember", f"{E}/members/other", "$@" + SEE),
    ("MemberService/UpdateMember", f"{T}/members/other", "$A"),
    ("MemberService/UpdateMember", f"{P}/members/other", "$Aa"),
    ("MemberService/UpdateMember", f"{E}/members/other", "$Aa"),
    ("MemberService/DeleteMember", f"{T}/members/other", "$A"),
    ("MemberService/DeleteMember", f"{P}/members/other", "$Aa"),
    ("MemberService/DeleteMember", f"{E}/members/other", "$Aa"),
    ("MemberService/UpdateMember", f"{T}/members/me", "$A"),
    # Clusters of own tenants, and the platform's.
    ("ClusterService/GetCluster", "clusters/local", "$@" + MEMBERS),
    ("ClusterService/ListClusters", "clusters/local", "$@" + MEMBERS),
    ("ClusterService/GetClusterKubeconfig", "clusters/local", "$@" + MEMBERS),
    ("ClusterService/GetCluster", "clusters/elsewhere", "$@"),
    ("ClusterService/GetClusterKubeconfig", "clusters/elsewhere", "$@"),
    ("ClusterService/CreateCluster", "", "$"),
    ("ClusterService/UpdateCluster", "clusters/local", "$"),
    ("ClusterService/DeleteCluster", "clusters/local", "$"),
    ("ClusterService/ConfirmCluster", "clusters/local", "$"),
    ("ClusterService/PauseCluster", "clusters/local", "$"),
    ("ClusterService/ResumeCluster", "clusters/local", "$"),
    ("ClusterService/DiffCluster", "clusters/local", "$@"),
    ("JoinTokenService/CreateJoinToken", "clusters/local", "$"),
    ("JoinTokenService/ListJoinTokens", "clusters/local", "$@"),
    ("JoinTokenService/DeleteJoinToken", "clusters/local/joinTokens/1", "$"),
    # Jobs: rights are those of the target.
    ("JobService/CreateJob", T, "$A"),
    ("JobService/CreateJob", P, "$Aao"),
    ("JobService/CreateJob", E, "$Aaox"),
    ("JobService/CreateJob", "clusters/local", "$"),
    ("JobService/GetJob", E, "$@" + SEE),
    ("JobService/WatchJob", E, "$@" + SEE),
    ("JobService/ListJobs", P, "$@Aaodt"),
    ("JobService/ListJobs", E, "$@" + SEE),
    ("JobService/GetJob", "clusters/local", "$@"),
    ("JobService/CancelJob", E, "$Aaox"),
    ("JobService/RetryJob", E, "$Aaox"),
    ("JobService/ReplayJob", E, "$Aaox"),
    ("JobService/BulkRetryJobs", E, "$Aaox"),
    ("JobService/PurgeJobs", P, "$Aa"),
    ("ScheduleService/ListSchedules", "", "$@"),
    ("ScheduleService/GetSchedule", "schedules/nightly", "$@"),
    ("ScheduleService/ListScheduleRuns", "schedules/nightly", "$@"),
    ("ScheduleService/CreateSchedule", "", "$"),
    ("ScheduleService/UpdateSchedule", "schedules/nightly", "$"),
    ("ScheduleService/DeleteSchedule", "schedules/nightly", "$"),
    ("QueueService/ListQueues", "", "$@"),
    ("QueueService/PauseQueue", "queues/default", "$"),
    ("QueueService/ResumeQueue", "queues/default", "$"),
    ("ScheduleService/RunSchedule", "schedules/nightly", "$"),
    # Live changes: each scope needs its own right; without any, what other rows give is seen.
    ("MessageService/Subscribe", "", WHO),
    ("MessageService/Subscribe", T, "$@A"),
    ("MessageService/Subscribe", P, "$@Aaodt"),
    ("MessageService/Subscribe", E, "$@" + SEE),
    ("MessageService/UpdateSubscription", "", WHO),
    ("MessageService/UpdateSubscription", T, "$@A"),
    ("MessageService/UpdateSubscription", E, "$@" + SEE),
    ("InboxService/ListInboxMessages", "users/me", WHO),
    ("InboxService/ListInboxMessages", "users/other", "$"),
    ("InboxService/CountInboxMessages", "users/me", WHO),
    ("InboxService/MarkInboxMessages", "users/me", WHO),
    ("InboxService/MarkInboxMessages", "users/other", "$"),
    ("InboxService/DeleteInboxMessage", f"users/me/inbox/{UID}", WHO),
    ("InboxService/DeleteInboxMessage", f"users/other/inbox/{UID}", "$"),
    ("AnnouncementService/ListAnnouncements", "", WHO),
    ("AnnouncementService/CreateAnnouncement", "", "$"),
    ("AnnouncementService/DeleteAnnouncement", f"announcements/{UID}", "$"),
    # Audit.
    ("AuditService/ListAuditEvents", T, "$@A"),
    ("AuditService/ListAuditEvents", P, "$@Aa"),
    ("AuditService/GetAuditEvent", E, "$@Aa"),
    ("AuditService/GetAuditEvent", "", "$@"),
]  # fmt: skip

# RPCs that no user reaches, or that need no sign-in, and how their caller proves who it is.
NOT_BY_USERS = {
    "SessionService/CreateSession": _Rule.PUBLIC,
    "SessionService/RefreshSession": _Rule.REFRESH,
    "EnrolmentService/Enrol": _Rule.JOIN_TOKEN,
    "EnrolmentService/Renew": _Rule.JOIN_TOKEN,
    "AccessService": _Rule.SERVICE_CERT,
    "ClusterAccessService": _Rule.SERVICE_CERT,
    "UpkeepService": _Rule.SERVICE_CERT,
    "DesiredStateService": _Rule.AGENT_CERT,
    "InventoryService": _Rule.AGENT_CERT,
    "PreviewService": _Rule.AGENT_CERT,
}


ROAD = Road()
_ROLES = {
    "A": Role.TENANT_ADMIN, "M": Role.TENANT_MEMBER, "a": Role.PROJECT_ADMIN, "o": Role.PROJECT_OPS, "d": Role.PROJECT_DEV,
    "t": Role.PROJECT_TEST, "x": Role.ENVIRONMENT_OPERATOR, "r": Role.ENVIRONMENT_READER,
}  # fmt: skip
_PLATFORM = {"$": PlatformRole.ADMIN, "@": PlatformRole.AUDITOR}
_CLUSTERS = {"acme": ["local"]}


def _callers(who: str) -> Iterator[Caller]:
    """Users with a role in tenant acme, project shop, environment dev; all roles, for the suspended one."""
    for role in _ROLES.values() if who == "s" else [_ROLES[who]] if who in _ROLES else [None]:
        memberships = []
        if role is not None:
            level = role.value[0]
            project, environment = "shop" if level != "tenant" else "", "dev" if level == "environment" else ""
            memberships.append(Membership(role, "acme", project, environment, who == "s"))
        clusters: dict[str, list[str]] = {} if who == "s" else _CLUSTERS
        rights = MemberRights("me", _PLATFORM.get(who, PlatformRole.USER), memberships, clusters)
        yield Caller(Kind.USER, "me", "uid", "1", rights)


async def _fault(rpc: str, caller: Caller, name: str) -> Fault | None:
    """Why the caller may not, by the whole road; None when it may.

    A filtered RPC is let in anyway for reading: there it is whether the name lies in what the handler filters by.
    """
    rule = METHODS[rpc].rule
    fault = await ROAD.fault(rpc, caller, "" if rule.filtered else name)
    assert fault is None or isinstance(fault, (NotFound, PermissionDenied)), fault
    if rule.filtered and not caller.allows(rule.permission, name):
        return NotFound(f"{name} is filtered")
    return fault


@pytest.mark.parametrize(("rpc", "name", "may"), MAY, ids=lambda value: str(value).replace("tenants/acme", "T") or "platform")
async def test_in_the_own_tenant(rpc: str, name: str, may: str) -> None:
    """Exactly the roles named may; the platform admin always, so that a refusal is never due to the call itself."""
    assert "$" in may
    for who in WHO:
        for caller in _callers(who):
            fault = await _fault(rpc, caller, name)
            assert (fault is None) == (who in may), f"{rpc} {name} {who} {caller.rights.memberships}: {fault}"  # type: ignore[attr-defined] # every caller here is a user


@pytest.mark.parametrize(("rpc", "name", "may"), [row for row in MAY if row[1].startswith(T)])
async def test_in_another_tenant(rpc: str, name: str, may: str) -> None:
    """The same names under another tenant, one that starts alike too: platform roles only, and what is there looks absent."""
    for other in ("tenants/globex", "tenants/acme2", "tenants/acm"):
        foreign = name.replace(T, other, 1)
        for who in WHO:
            for caller in _callers(who):
                fault = await _fault(rpc, caller, foreign)
                assert (fault is None) == (who in may and who in "$@"), f"{rpc} {foreign} {who}: {fault}"
                assert fault is None or who in "$@" or isinstance(fault, NotFound), f"{rpc} {foreign} {who} tells that it exists: {fault}"


async def test_every_rpc_has_a_line() -> None:
    """No RPC of the protos is missing here, none here is missing there, and each is proved by whom it says."""
    by_users = {rpc for rpc, method in METHODS.items() if method.rule.auth == _Rule.USER}
    assert by_users == {rpc for rpc, _, _ in MAY}
    for rpc in METHODS.keys() - by_users:
        assert METHODS[rpc].rule.auth == NOT_BY_USERS.get(rpc, NOT_BY_USERS.get(rpc.split("/")[0])), rpc


async def test_only_sign_in_needs_no_proof() -> None:
    """PUBLIC is the first sign-in alone, and what is internal is never for users."""
    assert [rpc for rpc, m in METHODS.items() if m.rule.auth == _Rule.PUBLIC] == ["SessionService/CreateSession"]
    assert all(m.rule.auth != _Rule.USER for m in METHODS.values() if m.rule.internal)


def test_every_permission_in_use_is_in_the_table() -> None:
    """Those of the protos' rules, and every one that the services ask for by name."""
    used = {rule_of(m.descriptor).permission for m in METHODS.values()} - {""}
    areas = sorted({permission.split(".")[0] for permission in known_permissions()})
    literal = re.compile(rf'"((?:{"|".join(areas)})\.[a-zA-Z]+\.[a-zA-Z]+)"')
    for path in (ROOT / "services").rglob("*.py"):
        if "tests" not in path.parts:
            used |= set(literal.findall(path.read_text()))
    assert len(used) > len(METHODS) / 2, "the control: the scan found them"
    assert used - known_permissions() == set()


def test_the_page_is_generated() -> None:
    """docs/rights.md is what the table says now: `python -m services.gateway.identity.matrix > docs/rights.md`."""
    assert (ROOT / "docs/rights.md").read_text() == "\n".join(matrix.lines()) + "\n"
