"""Methods that will go: what their answers say of it, in the words of RFC 9745 (Deprecation) and RFC 8594 (Sunset)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from google.protobuf.descriptor import MethodDescriptor

from kubegems.policy.v1 import policy_pb2

LEAST = timedelta(days=365)  # between the two days; docs/api.md promises it


def headers(rule: policy_pb2.Rule) -> dict[str, str]:
    """Headers, or trailing metadata, of each answer of a method; none for one that stays."""
    if not rule.HasField("deprecation"):
        return {}
    since, sunset = _day(rule.deprecation.since), _day(rule.deprecation.sunset)
    return {"deprecation": f"@{int(since.timestamp())}", "sunset": format_datetime(sunset, usegmt=True)}


def problems(descriptor: MethodDescriptor, rule: policy_pb2.Rule) -> Iterator[str]:
    """What is wrong with a method's deprecation."""
    told = rule.HasField("deprecation")
    if told != descriptor.GetOptions().deprecated:
        yield "`deprecated = true` and the rule's deprecation belong together"
    if not told:
        return
    try:
        since, sunset = _day(rule.deprecation.since), _day(rule.deprecation.sunset)
    except ValueError:
        yield "deprecation: since and sunset must be days such as 2026-03-01"
        return
    if sunset - since < LEAST:
        yield f"deprecation: at least {LEAST.days} days must lie between since and sunset"


def _day(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
