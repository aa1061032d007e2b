"""Network addresses: who sent a request, which proxies are believed, and what is kept of it.

The full address of a person never reaches the log: only its prefix goes into the visitor's
keyed hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

HOPS_MAX = 32
"""Proxies in a row; what lies further left in X-Forwarded-For is not looked at."""


@lru_cache(maxsize=8_192)
def read_address(text: str) -> Address | None:
    """Return the address that `text` writes, with or without a port, None for anything else."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=8_192)
def address_prefix(text: str) -> str:
    """Return the network that a visitor is estimated from: /24 of IPv4, /48 of IPv6."""
    address = read_address(text)
    if address is None:
        return ""
    length = 24 if isinstance(address, IPv4Address) else 48
    return str(ip_network((address, length), strict=False))


@dataclass(frozen=True, slots=True)
class Proxies:
    """The networks whose word about their clients is believed."""

    networks: tuple[str, ...] = ()

    def trusts(self, text: str) -> bool:
        """Tell whether the sender at `text` is one of ours."""
        if not self.networks:
            return False
        address = read_address(text)
        return address is not None and _is_inside(address, self.networks)

    def client(self, peer: str, forwarded: str) -> str:
        """Return the right-most address that is none of our proxies.

        `forwarded` is X-Forwarded-For. It is believed only as far as it comes from proxies that
        are; a malformed one leaves the last hop that was well-formed.
        """
        if not forwarded or not self.trusts(peer):
            return peer
        client = peer
        for hop in reversed(forwarded.split(",")[-HOPS_MAX:]):
            address = read_address(hop)
            if address is None:
                return client
            client = str(address)
            if not _is_inside(address, self.networks):
                return client
        return client


@lru_cache(maxsize=8_192)
def _is_inside(address: Address, networks: tuple[str, ...]) -> bool:
    return any(address in ip_network(network, strict=False) for network in networks)
