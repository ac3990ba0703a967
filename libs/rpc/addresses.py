"""Whose call it is: what counts as one client, and when proxies stand before us, the address that the last trusted one saw."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MOST_HOPS = 32


class Proxies:
    """Which peers are believed about who is behind them.

    `X-Forwarded-For` is read from the right: each proxy adds the address that it saw at the end, so what stands left of
    the first address that is no trusted proxy was written by the client and means nothing. Without networks the header
    is not looked at.

    Args:
        networks: of trusted proxies, such as `10.0.0.0/8`, `2001:db8::/32` or one address; ValueError for others.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(n.strip()) for n in networks if n.strip())
        self._trusted = lru_cache(maxsize=1024)(self._looked_up)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether an address is a trusted proxy's."""
        return bool(self._networks) and self._trusted(address)

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address.

        Args:
            peer: who connected to us.
            forwarded: `X-Forwarded-For`, its lines joined by commas in order; empty for none.
        """
        if not self._networks or not forwarded or not self._trusted(peer):
            return peer
        address = peer
        for hop in reversed(forwarded.split(",")[-_MOST_HOPS:]):
            seen = _parsed(hop)
            if seen is None:
                return address
            address = str(seen)
            if not self._trusted(address):
                return address
        return address

    def _looked_up(self, text: str) -> bool:
        address = _parsed(text)
        return address is not None and any(address in network for network in self._networks if network.version == address.version)


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address, of which anybody has all addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:  # noqa: PLR2004 -- the version of IP
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed.ipv4_mapped or parsed) if parsed.version == 6 else str(parsed)  # noqa: PLR2004


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, with or without a port, an IPv4 one in IPv6's clothes as itself; None when it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
