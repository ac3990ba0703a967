"""Every subject, built in one place: `gems.<lane>.…`."""

from __future__ import annotations

import base64
import re

_PLAIN = re.compile(r"[A-Za-z0-9-]{1,63}")
CORE_GROUP = "core"
NONE = "_"


def token(text: str) -> str:
    """One subject token for any text: itself when plain, dots as `_`, nothing as `_`, anything else encoded, unmistakably.

    `apps` → `apps`, `apiextensions.k8s.io` → `apiextensions_k8s_io`, `` → `_`. What holds other characters, `_` among
    them, becomes `=` and its URL-safe base64, so that two texts never share a token.
    """
    if not text:
        return NONE
    if _PLAIN.fullmatch(text):
        return text
    dotted = text.split(".")
    if all(_PLAIN.fullmatch(part) for part in dotted) and len(text) <= 253:  # noqa: PLR2004 -- longest DNS name
        return "_".join(dotted)
    return "=" + base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def observed(uid: str, group: str, version: str, resource: str, namespace: str) -> str:
    """Changes of one kind in one namespace of a cluster; core group `""`, cluster-scoped `""`."""
    return f"gems.cluster.{token(uid)}.{token(group or CORE_GROUP)}.{token(version)}.{token(resource)}.{token(namespace)}"


def cluster(uid: str) -> str:
    """All that a cluster publishes."""
    return f"gems.cluster.{token(uid)}.>"


def desired(uid: str) -> str:
    """Hints to an agent that there is desired state to fetch."""
    return f"gems.desired.{token(uid)}"


def interest(uid: str) -> str:
    """Hints to an agent that others look at other kinds now."""
    return f"gems.interest.{token(uid)}"


def watermark(uid: str) -> str:
    """How far a cluster's agent has published."""
    return f"gems.cluster.{token(uid)}.watermark"


def replica(name: str) -> str:
    """Questions to one replica of a hub service."""
    return f"gems.replica.{token(name)}"


def tunnel(uid: str) -> str:
    """Which gateway holds a cluster's tunnel: a key of bucket TUNNELS."""
    return f"$KV.TUNNELS.clusters.{token(uid)}"


def gateway(replica_id: str) -> str:
    """That a gateway lives: a key of bucket TUNNELS."""
    return f"$KV.TUNNELS.gateways.{token(replica_id)}"


def platform(area: str, event: str) -> str:
    """A fact of the platform, such as `tenancy`, `tenant-created`."""
    return f"gems.platform.{token(area)}.{token(event)}"


def jobs(queue: str) -> str:
    """The work of one queue."""
    return f"gems.jobs.{token(queue)}"


def notice(scope: str) -> str:
    """Progress, notices and alerts of a scope."""
    return f"gems.notice.{token(scope)}"


def inbox(uid: str) -> str:
    """Inbox prefix of an agent: the only one that it may subscribe to."""
    return f"_INBOX_{token(uid)}"


def lane(subject: str) -> str:
    """The second token: what one stream, and so one full stream, is about."""
    parts = subject.split(".")
    return parts[1] if len(parts) > 1 else ""


def stored(subject: str) -> bool:
    """Whether a stream keeps what is published on a subject; the rest are hints, heard by whoever listens just then."""
    return lane(subject) in ("platform", "notice", "jobs", "cluster")
