"""The edge's bounds as the configuration sets them; ValueError for a setting that cannot be meant, which stops the start."""

from __future__ import annotations

from libs.clock import Clock
from libs.rest import Cors, Guard
from libs.rpc.addresses import Proxies
from services.gateway.config import Config
from services.gateway.edge.buckets import Rate
from services.gateway.edge.limits import Limits, weights

_SLOTS_PER_CONNECTION = 2  # calls at once for each PostgreSQL connection: some wait for other things meanwhile


def proxies(config: Config) -> Proxies:
    """Whose `X-Forwarded-For` is believed."""
    return Proxies(config.trusted_proxies.split(","))


def guard(config: Config) -> Guard:
    """Bounds of the REST edge's connections."""
    return Guard(per_address=config.connections_per_address, proxies=proxies(config))


def cors(config: Config) -> Cors:
    """Other origins whose pages may call."""
    return Cors(config.cors_origins.split(","))


def limits(config: Config, clock: Clock) -> Limits:
    """Rates, streams and turns."""
    rate = float(config.reads_per_address)
    return Limits(
        clock,
        per_address=Rate(rate, 2 * rate),
        weights=weights(config.tenant_weights),
        streams=config.streams_per_caller,
        slots=_SLOTS_PER_CONNECTION * config.database_connections,
    )
