"""Facts for whoever listens: `gems.platform.tenancy.<event>`, the payload is the resource as it is after the change."""

from __future__ import annotations

from google.protobuf.message import Message

from kubegems.messages.v1 import events_pb2, inbox_pb2
from kubegems.tenancy.v1 import quota_pb2
from libs.bus import subjects
from libs.pg import Tx, outbox

SCHEMA = "tenancy"


async def publish(tx: Tx, event: str, message: Message) -> None:
    """Publishes with the transaction.

    Args:
        tx: the transaction of the change.
        event: such as `tenant-created`.
        message: the resource.
    """
    await outbox.publish(tx, SCHEMA, subjects.platform("tenancy", event), message)


async def quota_decided(tx: Tx, quota: quota_pb2.TenantQuota, by: str, *, taken: bool = False) -> None:
    """A message to the inboxes of the tenant's admins: a quota was set, or taken away."""
    tenant, _, cluster = quota.name.partition("/quotas/")
    limits = ", ".join(f"{name} {amount}" for name, amount in sorted(quota.hard.items()))
    notice = events_pb2.NoticePosted(
        audiences=[f"{tenant}/roles/admin"],
        severity=inbox_pb2.InboxMessage.WARNING if taken else inbox_pb2.InboxMessage.INFO,
        category="QUOTA_DELETED" if taken else "QUOTA_DECIDED",
        title=f"{tenant} may use clusters/{cluster} no more" if taken else f"Quota of {tenant} on clusters/{cluster}",
        body=f"Taken away by {by}." if taken else f"{limits}; set by {by}.",
        resource=quota.name,
    )
    await outbox.publish(tx, SCHEMA, subjects.notice("posted"), notice)
