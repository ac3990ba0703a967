"""Which roles fit which level."""

from __future__ import annotations

from libs.faults import Invalid, Precondition

ROLES = {
    "tenant": ("admin", "member"),
    "project": ("admin", "ops", "dev", "test"),
    "environment": ("operator", "reader"),
}


class LastAdmin(Precondition):
    """The tenant would be left without an admin."""

    reason = "LAST_ADMIN"


def level(parts: list[str]) -> str:
    """The level that the ids of a scope reach."""
    return ("tenant", "project", "environment")[len(parts) - 1]


def check(level_: str, role: str) -> None:
    """Raises Invalid when a role does not fit a level."""
    if role not in ROLES[level_]:
        fitting = ", ".join(name.upper() for name in ROLES[level_])
        raise Invalid.one("member.role", f"{role.upper()} is no role of {level_}s; known: {fitting}")
