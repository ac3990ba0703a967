"""Wash: what a cluster says is untrusted. Sizes are limited, texts made harmless, impossible names refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf.internal.containers import ScalarMap

from kubegems.agent.v1.events_pb2 import ObservedChange, Watermark
from services.msgbus.domain import NEVER

MOST_LABELS = 64
MOST_COLUMNS = 140
LONGEST_COLUMN = 1024
_KEY, _VALUE, _NAME = 317, 63, 253
_TOKEN = re.compile(r"[A-Za-z0-9._-]{0,253}")  # group, version, resource, kind
_OBJECT = re.compile(r"[A-Za-z0-9._:@-]{1,253}")  # RBAC names hold colons and at signs
_NAMESPACE = re.compile(r"[a-z0-9-]{0,63}")
_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)  # what hides, turns or breaks text
_MARKERS = (ObservedChange.LISTING, ObservedChange.LISTED)
_VERBS = (ObservedChange.ADDED, ObservedChange.MODIFIED, ObservedChange.DELETED)
_EPOCH = re.compile(r"[A-Za-z0-9-]{1,64}")  # it goes into the resume tokens of all who see the cluster


def washed(change: ObservedChange) -> bool:
    """Makes a change harmless in place; False when its very identity is impossible, so that it cannot be shown at all."""
    if not (_TOKEN.fullmatch(change.group) and _TOKEN.fullmatch(change.version) and _TOKEN.fullmatch(change.kind)):
        return False
    if not change.resource or not _TOKEN.fullmatch(change.resource) or (change.resource, change.group) == NEVER:
        return False
    if change.verb in _MARKERS:
        return True
    if change.verb not in _VERBS:
        return False
    if ".." in change.name or not _OBJECT.fullmatch(change.name) or not _NAMESPACE.fullmatch(change.namespace):
        return False
    change.uid, change.resource_version = escaped(change.uid, 64), escaped(change.resource_version, 64)
    _limit(change.labels, MOST_LABELS, _KEY, _VALUE)
    _limit(change.columns, MOST_COLUMNS, _NAME, LONGEST_COLUMN)
    return True


def started(said: ObservedChange | Watermark) -> None:
    """Refuses what does not say, in the way that agents do, which start of the agent it is of: ValueError."""
    if not _EPOCH.fullmatch(said.epoch):
        raise ValueError("impossible epoch")


def escaped(text: str, longest: int) -> str:
    r"""A text without control, invisible or direction-turning characters: they appear as `\u202e`; cut to `longest` characters."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", cut) if not cut.isascii() or not cut.isprintable() else cut


def _limit(values: ScalarMap[str, str], most: int, key: int, value: int) -> None:
    if len(values) <= most and all(_plain(k, key) and _plain(v, value) for k, v in values.items()):
        return
    kept = _kept(values, most, key, value)
    values.clear()
    values.update(kept)


def _plain(text: str, longest: int) -> bool:
    return len(text) <= longest and text.isascii() and (not text or text.isprintable())


def _kept(values: Mapping[str, str], most: int, key: int, value: int) -> dict[str, str]:
    return {escaped(name, key): escaped(values[name], value) for name in sorted(values)[:most]}
