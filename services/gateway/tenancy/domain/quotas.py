"""Quota arithmetic: what may be asked for, and whether it still fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from libs.faults import Invalid, Precondition, Violation
from libs.kube import quantity

Hard = Mapping[str, str]

_ALIASES = {"cpu": "requests.cpu", "memory": "requests.memory", "ephemeral-storage": "requests.ephemeral-storage"}
_STANDARD = frozenset(
    {
        *_ALIASES,
        *_ALIASES.values(),
        "requests.storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "services.nodeports",
        "services.loadbalancers",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
    }
)
_QUALIFIED = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class QuotaExceeded(Precondition):
    """More was asked for than is left; metadata: `resource`, `asked`, `left`."""

    reason = "QUOTA_EXCEEDED"


class QuotaInUse(Precondition):
    """Environments hold more than the quota would allow; metadata: `resource`, `asked`, `allocated`."""

    reason = "QUOTA_IN_USE"


def check(path: str, hard: Hard) -> list[Violation]:
    """What is wrong with a set of hard limits, each with its resource's path."""
    found = []
    for name, text in hard.items():
        if name not in _STANDARD and not _QUALIFIED.fullmatch(name):
            found.append(Violation(f"{path}[{name}]", "is no resource that Kubernetes can put a quota on"))
        elif name in _ALIASES and _ALIASES[name] in hard:
            found.append(Violation(f"{path}[{name}]", f"means the same as {_ALIASES[name]}; give one of them"))
        else:
            found += _amount(f"{path}[{name}]", text)
    return found


def _amount(path: str, text: str) -> list[Violation]:
    try:
        value = quantity.parse(text)
    except ValueError as error:
        return [Violation(path, str(error))]
    return [Violation(path, f"{text} is below zero")] if value < 0 else []


def complete(limits: Hard, asked: Hard) -> dict[str, str]:
    """An environment's quota with `0` for each resource that the tenant's quota limits and it does not name.

    Without that, leaving a resource out would mean having all of it.
    """
    named = {_canonical(name) for name in asked}
    return {**dict(asked), **{name: "0" for name in limits if _canonical(name) not in named}}


def fit(limits: Hard, others: Iterable[Hard], asked: Hard) -> None:
    """Raises QuotaExceeded when `asked` and what `others` hold is more than the tenant's limits, naming each resource."""
    held = _sums(others)
    over = []
    for name, text in asked.items():
        limit = _limit(limits, name)
        if limit is None:
            continue
        left = quantity.subtract(limit, held.get(_canonical(name), "0"))
        if quantity.compare(text, left) > 0:
            over.append((name, text, left))
    if over:
        name, text, left = over[0]
        told = "; ".join(f"{n}: {t} asked, {rest} left" for n, t, rest in over)
        raise QuotaExceeded(
            f"the tenant's quota on the cluster does not hold that much: {told}", {"resource": name, "asked": text, "left": left}
        )


def cover(limits: Hard, environments: Mapping[str, Hard]) -> None:
    """Raises QuotaInUse when new limits are below what the environments (by name) hold, or limit what one leaves open."""
    held = _sums(environments.values())
    for name, text in limits.items():
        key = _canonical(name)
        unnamed = [env for env, hard in environments.items() if key not in {_canonical(n) for n in hard}]
        if unnamed:
            raise QuotaInUse(
                f"{name} cannot be limited while environments do not name it: {', '.join(sorted(unnamed)[:10])}",
                {"resource": name, "asked": text, "allocated": "unlimited"},
            )
        allocated = held.get(key, "0")
        if quantity.compare(text, allocated) < 0:
            raise QuotaInUse(
                f"{name}: {text} is less than the {allocated} that environments hold",
                {"resource": name, "asked": text, "allocated": allocated},
            )


def allocated(limits: Hard, environments: Iterable[Hard]) -> dict[str, str]:
    """What the environments hold of each limited resource."""
    held = _sums(environments)
    return {name: held.get(_canonical(name), "0") for name in limits}


def refuse(violations: list[Violation]) -> None:
    """Raises Invalid for all violations at once, if any."""
    if violations:
        raise Invalid.fields(violations)


def _sums(hards: Iterable[Hard]) -> dict[str, str]:
    return quantity.total({_canonical(name): text for name, text in hard.items()} for hard in hards)


def _canonical(name: str) -> str:
    return _ALIASES.get(name, name)


def _limit(limits: Hard, name: str) -> str | None:
    return next((text for limit, text in limits.items() if _canonical(limit) == _canonical(name)), None)
