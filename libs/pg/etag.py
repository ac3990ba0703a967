"""Etags: the text of a row's `version` column, a bigint that every change raises."""

from __future__ import annotations

from libs.faults import Stale


def etag(version: int) -> str:
    """The etag of a version."""
    return f'"{version}"'


def check_etag(given: str, version: int) -> None:
    """Raises Stale when an etag was given and is not the current one; none given means: whatever it is now."""
    if given and given.strip().removeprefix("W/").strip('"') != str(version):
        raise Stale(
            f"it has changed since it was read: etag {given} given, {etag(version)} is current; read it again", {"etag": etag(version)}
        )
