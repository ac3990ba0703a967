"""Facts for whoever listens: `gems.platform.tenancy.<event>`, the payload is the resource as it is after the change."""

from __future__ import annotations

from google.protobuf.message import Message

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
