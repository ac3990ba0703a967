"""THE table of roles and permissions. A case that is not written here is a no.

Each row names permissions, who holds them, and where. Where is a list of patterns over the membership that gives the
role: `{scope}` is the membership's own resource name, `{tenant}` and `{project}` are the tenant's and project's above
it, `{user}` is the user's name, `{cluster}` stands for each cluster of the tenant. A pattern that ends in `/**` holds
at that name and all below it; any other holds at that name alone. Rows about one permission add up. The platform
admin holds every permission everywhere, the auditor those of rows marked `audited`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Role(enum.Enum):
    """What a membership makes of a user; the value is (level, name in the database)."""

    SELF = ("user", "SELF")
    TENANT_ADMIN = ("tenant", "ADMIN")
    TENANT_MEMBER = ("tenant", "MEMBER")
    PROJECT_ADMIN = ("project", "ADMIN")
    PROJECT_OPS = ("project", "OPS")
    PROJECT_DEV = ("project", "DEV")
    PROJECT_TEST = ("project", "TEST")
    ENVIRONMENT_OPERATOR = ("environment", "OPERATOR")
    ENVIRONMENT_READER = ("environment", "READER")
    SUSPENDED = ("any", "SUSPENDED")  # whatever the role was, while its tenant is suspended


Where = tuple[str, ...]
TREE: Where = ("{scope}/**",)
TENANT: Where = ("{tenant}",)
PROJECT: Where = ("{project}",)
ENVIRONMENTS: Where = ("{scope}/environments/**",)
OWN_MEMBERSHIP: Where = ("{scope}/members/{user}",)
CLUSTERS: Where = ("{cluster}",)
ONESELF: Where = ("users/{user}/**",)
ANYWHERE: Where = ("",)  # a call that names no scope

_TA, _TM, _PA, _OPS, _DEV, _TEST, _EO, _ER = (
    Role.TENANT_ADMIN, Role.TENANT_MEMBER, Role.PROJECT_ADMIN, Role.PROJECT_OPS,
    Role.PROJECT_DEV, Role.PROJECT_TEST, Role.ENVIRONMENT_OPERATOR, Role.ENVIRONMENT_READER,
)  # fmt: skip
_OPERATE = (_TA, _PA, _OPS, _EO)
_SEE = (_TA, _PA, _OPS, _DEV, _TEST, _EO, _ER)
_IN_PROJECT = (_PA, _OPS, _DEV, _TEST)


@dataclass(frozen=True, slots=True)
class Row:
    """Permissions that are always held together: what they are for, who holds them where, and whether the auditor does."""

    title: str
    permissions: tuple[str, ...]
    cells: Mapping[Role, Where] = field(default_factory=dict)
    audited: bool = False


def _all(collection: str, *verbs: str) -> tuple[str, ...]:
    return tuple(f"{collection}.{verb}" for verb in verbs)


def _read(collection: str) -> tuple[str, ...]:
    return _all(collection, "get", "list")


def _write(collection: str) -> tuple[str, ...]:
    return _all(collection, "create", "update", "delete")


def _at(where: Where, *roles: Role) -> dict[Role, Where]:
    return dict.fromkeys(roles, where)


def _below_tenant(collection: str) -> Where:
    return ("{tenant}", "{tenant}/" + collection + "/**")


ROWS: tuple[Row, ...] = (
    # Every signed-in user.
    Row(
        "own user: read, edit, password; own sessions",
        (
            *_all("identity.users", "get", "update", "changePassword"),
            *_all("identity.sessions", "list", "delete"),
        ),
        _at(ONESELF, Role.SELF),
    ),
    Row("own inbox", _all("messages.inbox", "list", "update", "delete"), _at(ONESELF, Role.SELF)),
    Row("announcements: read those for oneself", ("messages.announcements.list",), _at(ANYWHERE, Role.SELF), audited=True),
    Row("announcements: make, remove", _all("messages.announcements", "create", "delete")),
    Row("subscribe without naming a scope (sees what other rows give)", ("messages.messages.subscribe",), _at(ANYWHERE, Role.SELF)),
    Row(
        "API keys: own, and those of service accounts",
        _all("identity.apiKeys", "create", "get", "list", "delete"),
        _at(ONESELF, Role.SELF) | _at(TREE, _TA, _PA),
    ),
    Row("API keys: read", _read("identity.apiKeys"), audited=True),
    Row("service accounts of tenant and project: read", _read("identity.serviceAccounts"), _at(TREE, _TA, _PA), audited=True),
    Row("service accounts of tenant and project: make, change, remove", _write("identity.serviceAccounts"), _at(TREE, _TA, _PA)),
    Row("users, sessions: read", ("identity.users.get", "identity.users.list", "identity.sessions.list"), audited=True),
    # Tenant.
    Row(
        "tenant: its name",
        _read("tenancy.tenants"),
        _at(TREE, _TA) | _at(TENANT, _TM, _PA, _OPS, _DEV, _TEST, _EO, _ER, Role.SUSPENDED),
        audited=True,
    ),
    Row("tenant: all of it", ("tenancy.tenants.view",), _at(TREE, _TA), audited=True),
    Row("tenant: edit", ("tenancy.tenants.update",), _at(TREE, _TA)),
    Row("own membership: read", ("tenancy.members.get",), _at(OWN_MEMBERSHIP, *_SEE, _TM, Role.SUSPENDED)),
    Row("members of tenant and project: read", _read("tenancy.members"), _at(TREE, _TA, _PA), audited=True),
    Row("members of tenant and project: change", _all("tenancy.members", "update", "delete"), _at(TREE, _TA, _PA)),
    Row(
        "members of the environment: read",
        _read("tenancy.members"),
        _at(TREE, _TA, _PA, _EO, _ER) | _at(ENVIRONMENTS, _OPS, _DEV, _TEST),
        audited=True,
    ),
    # Project.
    Row("project: create", ("tenancy.projects.create",), _at(TREE, _TA)),
    Row("project: delete", ("tenancy.projects.delete",), _at(TREE, _TA, _PA)),
    Row("project: its name", _read("tenancy.projects"), _at(TREE, _TA, *_IN_PROJECT) | _at(PROJECT, _EO, _ER), audited=True),
    Row("project: all of it", ("tenancy.projects.view",), _at(TREE, _TA, *_IN_PROJECT), audited=True),
    Row("project: edit", ("tenancy.projects.update",), _at(TREE, _TA, _PA)),
    # Environment.
    Row("environment: read, status, quota use", _all("tenancy.environments", "get", "list", "view"), _at(TREE, *_SEE), audited=True),
    Row("environment: create, delete, change quota", _write("tenancy.environments"), _at(TREE, _TA, _PA, _OPS)),
    Row("isolation switches", ("tenancy.isolation.update",), _at(TREE, _TA, _PA, _OPS)),
    # What a tenant has.
    Row("tenant quota: read", _read("tenancy.quotas"), _at(TREE, _TA) | _at(_below_tenant("quotas"), *_IN_PROJECT), audited=True),
    Row("tenant quota: request", _all("tenancy.quotaRequests", "get", "list", "create", "withdraw"), _at(TREE, _TA)),
    Row("tenant quota requests: read", _read("tenancy.quotaRequests"), audited=True),
    Row("tenant gateways: read", _read("tenancy.gateways"), _at(TREE, _TA) | _at(_below_tenant("gateways"), *_IN_PROJECT), audited=True),
    Row("tenant gateways: change", _write("tenancy.gateways"), _at(TREE, _TA)),
    Row(
        "alert channels: read",
        _read("observability.alertChannels"),
        _at(TREE, _TA) | _at(_below_tenant("alertChannels"), *_IN_PROJECT),
        audited=True,
    ),
    Row("alert channels: change", _write("observability.alertChannels"), _at(TREE, _TA)),
    # What runs.
    Row("manifests, applications: read", (*_read("apps.manifests"), *_read("apps.applications")), _at(TREE, *_SEE), audited=True),
    Row(
        "manifests, applications: edit",
        (*_write("apps.manifests"), *_write("apps.applications")),
        _at(TREE, _TA, _PA, _OPS, _DEV, _EO),
    ),
    Row(
        "deploy, sync, rollback, scale, restart",
        (*_all("apps.applications", "deploy", "sync", "rollback"), *_all("workloads.objects", "scale", "restart", "rollback")),
        _at(TREE, *_OPERATE),
    ),
    Row("workload objects: read", _read("workloads.objects"), _at(TREE, *_SEE), audited=True),
    Row("workload objects: write", _write("workloads.objects"), _at(TREE, *_OPERATE)),
    Row("secret values", ("workloads.secrets.get",), _at(TREE, *_OPERATE)),
    Row("logs", ("workloads.pods.logs",), _at(TREE, *_SEE)),
    Row(
        "exec, attach, files, debug, port-forward",
        _all("workloads.pods", "exec", "attach", "files", "debug", "portforward"),
        _at(TREE, *_OPERATE),
    ),
    Row(
        "metrics, traces, alerts: read",
        (*_read("observability.metrics"), *_read("observability.traces"), *_read("observability.alerts"), *_read("observability.rules")),
        _at(TREE, *_SEE),
        audited=True,
    ),
    Row("alert rules: change", _write("observability.rules"), _at(TREE, *_OPERATE)),
    Row("jobs of the scope: read", _read("jobs.jobs"), _at(TREE, *_SEE), audited=True),
    Row("jobs of the scope: start, cancel, retry, replay", _all("jobs.jobs", "create", "cancel", "retry", "replay"), _at(TREE, *_OPERATE)),
    Row("jobs of the scope: purge", ("jobs.jobs.purge",), _at(TREE, _TA, _PA)),
    Row("live changes of the scope", ("messages.messages.subscribe",), _at(TREE, *_SEE), audited=True),
    Row("audit of the scope", _read("audit.events"), _at(TREE, _TA, _PA), audited=True),
    Row(
        "clusters of own tenants: name, state, kubeconfig, /k8s",
        _all("fleet.clusters", "get", "list", "kubeconfig", "connect"),
        _at(CLUSTERS, *_SEE, _TM),
        audited=True,
    ),
    # The platform's own.
    Row("clusters: all of it, what would change", ("fleet.clusters.view", "fleet.clusters.diff"), audited=True),
    Row(
        "clusters: add, change, remove, confirm, pause, resume",
        (*_write("fleet.clusters"), *_all("fleet.clusters", "confirm", "pause", "resume")),
    ),
    Row("clusters: act as another user", ("fleet.clusters.impersonate",)),
    Row("join tokens: read", ("fleet.joinTokens.list",), audited=True),
    Row("join tokens: make, remove", _all("fleet.joinTokens", "create", "delete")),
    Row(
        "users: make, disable, enable, set role and password",
        _all("identity.users", "create", "disable", "enable", "resetPassword", "setRole"),
    ),
    Row("any session: end; any user: edit", ("identity.sessions.delete", "identity.users.update", "identity.users.changePassword")),
    Row("tenants: make, delete, suspend, resume", _all("tenancy.tenants", "create", "delete", "suspend", "resume")),
    Row(
        "tenant quota: set, remove, approve",
        (*_all("tenancy.quotas", "update", "delete"), *_all("tenancy.quotaRequests", "approve", "reject")),
    ),
    Row("environment: foreign namespace, adopt, relax pod security", _all("tenancy.environments", "adopt", "relaxPodSecurity")),
    Row("schedules: read", _read("jobs.schedules"), audited=True),
    Row("schedules: run, make, change, delete", ("jobs.schedules.run", *_write("jobs.schedules"))),
    Row("queues: read", ("jobs.queues.list",), audited=True),
    Row("queues: pause, resume", _all("jobs.queues", "pause", "resume")),
)
