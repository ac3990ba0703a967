"""Principal: as whom a call acts in a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

_PREFIX = "gems:"


@dataclass(frozen=True, slots=True)
class Principal:
    """A user to impersonate; user and groups must start with `gems:`, so that no system group can be named.

    Attributes:
        user: `gems:user:{username}` or `gems:service:{task}`.
        uid: the user's uid; sent only when set (Kubernetes 1.22 and newer read it).
        groups: `gems:…`.
        extra: further facts, by key.
    """

    user: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.user, *self.groups):
            if not name.startswith(_PREFIX) or not name.isprintable() or name == _PREFIX:
                raise ValueError(f"{name!r} cannot be impersonated: it must start with {_PREFIX}")

    def headers(self) -> list[tuple[str, str]]:
        """Impersonation headers; groups and extras repeat."""
        found = [("Impersonate-User", self.user)]
        if self.uid:
            found.append(("Impersonate-Uid", self.uid))
        found += [("Impersonate-Group", group) for group in self.groups]
        return found + [(f"Impersonate-Extra-{quote(key, safe='')}", value) for key, values in self.extra.items() for value in values]
