"""The call's one transaction."""

from __future__ import annotations

from typing import cast

from libs.pg.tx import Tx
from libs.rpc.call import Call


async def tx(call: Call) -> Tx:
    """The transaction of a call, opened at the first ask. The pipeline ends it; a handler never does."""
    if call.unit is None:
        raise RuntimeError(f"{call.method.path} has no unit of work: a stream opens its own transactions")
    return cast("Tx", await call.unit.begin(call))
