"""What stands between an environment and its being as written, in words for people."""

from __future__ import annotations

from services.gateway.tenancy.domain.rows import Row

Condition = dict[str, str]


def conditions(env: Row) -> list[Condition]:
    """The conditions to show: our own about the way to the cluster, if something is in the way, then the reported ones.

    Args:
        env: a row of the environments' view, with the cluster's `cluster`, `online`, `paused`, `confirmation_needed`, the last
            report's `reported_state`, `reason`, `message`, `conditions`, and `shown_state`.
    """
    own = _own(env)
    return ([own] if own else []) + list(env["conditions"] or [])


def _own(env: Row) -> Condition | None:
    match env["shown_state"]:
        case "DELETING":
            return {"type": "Removed", "status": "False", **_hold_up(env, removing=True)}
        case "PENDING":
            return {"type": "Applied", "status": "False", **_hold_up(env, removing=False)}
        case "UNKNOWN":
            return {"type": "ClusterOnline", "status": "Unknown", "reason": "ClusterOffline", "message": _offline(env)}
        case "DEGRADED" if env["reported_state"] == "FAILED":
            return {"type": "Applied", "status": "False", "reason": env["reason"] or "Failed", "message": env["message"]}
    return None


def _hold_up(env: Row, *, removing: bool) -> Condition:
    if not env["online"]:
        return {"reason": "ClusterOffline", "message": _offline(env)}
    if env["confirmation_needed"]:
        return {"reason": "ConfirmationNeeded", "message": f"cluster {env['cluster']} waits for a human: {env['confirmation_needed']}"}
    if removing and env["reported_state"] in ("REMOVING", "FAILED"):
        return {"reason": env["reason"] or "Removing", "message": env["message"] or f"cluster {env['cluster']} is removing it"}
    if env["paused"]:
        return {"reason": "ClusterPaused", "message": f"cluster {env['cluster']} is paused; what was written is applied when it is resumed"}
    what = "confirmed the removal" if removing else "reported on the last change"
    return {"reason": "WaitingForCluster", "message": f"cluster {env['cluster']} has not yet {what}"}


def _offline(env: Row) -> str:
    return f"cluster {env['cluster']} is offline; what was written is applied when it is back"
