"""Keyed hashes and signatures of one installation.

Partitions, the 8-byte ids in the store and signed click ids all derive from one secret of 32
bytes, so that nobody outside can aim at a partition, forge a click or collide two ids on purpose.
Losing the secret is losing the installation: it belongs into every backup.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache

PARTITIONS = 32
"""Logical partitions, in every mode and for good: visitor state lives where its hash says.
32 spreads over up to 32 consumers, and costs one machine 32 small commits a tick."""

SECRET_BYTES = 32
SIGNATURE_BYTES = 10
"""80 bits of HMAC: an online forger at 10,000 guesses a second needs some 10^12 years."""


def _keyed(secret: bytes, purpose: bytes, parts: tuple[str, ...], size: int) -> bytes:
    hasher = _keyed_hasher(secret, purpose, size).copy()
    hasher.update("\0".join(parts).encode("utf-8", "surrogatepass"))
    return hasher.digest()


@lru_cache(maxsize=64)
def _keyed_hasher(secret: bytes, purpose: bytes, size: int) -> hashlib.blake2b:
    """Return a hasher that has taken the key in: copying it halves the price of a short digest."""
    return hashlib.blake2b(digest_size=size, key=secret, person=purpose)


@dataclass(frozen=True, slots=True)
class Keys:
    """All that is derived from the installation's secret."""

    secret: bytes

    def partition(self, site: str, owner: str) -> int:
        """Return the partition (0 ≤ p < PARTITIONS) that owns `owner`'s state.

        `owner` is what the state belongs to, with its kind in front: see `owner_of_*` below.
        """
        return _keyed(self.secret, b"partition", (site, owner), 1)[0] % PARTITIONS

    def digest(self, *parts: str) -> int:
        """Return a 63-bit keyed hash of `parts`, the form in which ids are kept in the store."""
        return int.from_bytes(_keyed(self.secret, b"id", parts, 8), "big") >> 1

    def estimate(self, site: str, day: int, address_prefix: str, user_agent: str) -> str:
        """Return a visitor id for a browser that has none: stable for one day, irreversible."""
        parts = (site, str(day), address_prefix, user_agent)
        return "e." + _keyed(self.secret, b"estimate", parts, 12).hex()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message`, SIGNATURE_BYTES long."""
        return hmac.digest(self.secret, message, "sha256")[:SIGNATURE_BYTES]

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Tell in constant time whether `signature` is ours."""
        return hmac.compare_digest(self.sign(message), signature)


CLICK_VERSION = b"\x01"


@dataclass(frozen=True, slots=True)
class ClickId:
    """What a click id of ours says once its signature was verified."""

    clicked_at_ms: int
    nonce: int
    visitor_id: str


def make_click_id(keys: Keys, click: ClickId) -> str:
    """Return the URL-safe, signed form of `click`.

    Shape: 1 byte version, 6 bytes time, 8 bytes nonce, the visitor id, 10 bytes signature; base64.
    """
    body = (
        CLICK_VERSION
        + click.clicked_at_ms.to_bytes(6, "big")
        + click.nonce.to_bytes(8, "big")
        + click.visitor_id.encode()
    )
    return base64.urlsafe_b64encode(body + keys.sign(body)).rstrip(b"=").decode()


def read_click_id(keys: Keys, text: str) -> ClickId | None:
    """Return what `text` says, or None when it is not a click id that we signed."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    body, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    if len(body) < 15 or body[:1] != CLICK_VERSION or not keys.verify(body, signature):
        return None
    try:
        visitor_id = body[15:].decode()
    except UnicodeDecodeError:
        return None
    return ClickId(int.from_bytes(body[1:7], "big"), int.from_bytes(body[7:15], "big"), visitor_id)


def owner_of_visitor(visitor_id: str) -> str:
    """Name the owner of a visitor's state."""
    return "v:" + visitor_id


def owner_of_order(order_id: str) -> str:
    """Name the owner of an order, whoever sent it."""
    return "o:" + order_id


def owner_of_event(event_id: str) -> str:
    """Name the owner of an event that belongs to nobody (consent denied, server without ids)."""
    return "e:" + event_id
