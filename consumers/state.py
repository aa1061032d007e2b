"""What is kept of a visitor and of an order, and how it is packed.

The packed form is MessagePack arrays without field names (msgspec): some 300 bytes a visitor with
four events. Field order is the format: append only, with defaults, or raise the store's format
version. Times are ms since the epoch; `traffic` and `client` are indexes into the visitor's own
tables of value numbers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tracker.model.window import DAY_MS, MINUTE_MS

STATE_PERIOD_MS = 8 * DAY_MS
STATE_KEPT_MS = 35 * DAY_MS
"""Visitor state lives at least this long after its last record (log time): the look-back of 30
days and the longest funnel of 30 days, with room for a weekend. It goes by whole containers of
STATE_PERIOD_MS, so that forgetting a million visitors is one command."""

VISITS_MAX = 64
TOUCHES_MAX = 64
SEEN_MAX = 16
ATTEMPTS_MAX = 16
CLICKS_MAX = 64
ORDERS_MAX = 64
IDS_MAX = 16_384
"""Ids remembered a visitor: 230 kB at the most. A real visitor has some dozens."""


class Visit(msgspec.Struct, array_like=True):
    """A session: by the sender's id, or cut by silence (session 0)."""

    session: int
    start_ms: int
    last_ms: int
    traffic: int
    sources: list[int]  # digests of the sources that were a touch in it


class Touch(msgspec.Struct, array_like=True):
    """An arrival that can be credited."""

    t_ms: int
    traffic: int


class Seen(msgspec.Struct, array_like=True):
    """When the visitor last counted under a unique, for one pair of traffic and client."""

    unique: int
    traffic: int
    client: int
    t_ms: int
    day: int


class Attempt(msgspec.Struct, array_like=True):
    """One pass through a funnel: the entry, and how long after it each further step came."""

    funnel: int
    traffic: int
    client: int
    t_ms: int
    day: int
    after_ms: list[int]


class Past(msgspec.Struct, array_like=True):
    """Everything that a visitor's sorted events have led to."""

    visits: list[Visit] = []
    touches: list[Touch] = []
    seen: list[Seen] = []
    attempts: list[Attempt] = []
    clicks: list[int] = []  # digests of network click ids landed with
    orders: list[int] = []  # digests of order ids converted with


class Sale(msgspec.Struct, array_like=True):
    """What a conversion says beyond having happened."""

    name: str
    macro: bool
    order_id: str
    value_micros: int | None
    currency: str
    trust: str
    credit: int  # traffic that the conversion was credited to, -1 for nobody


class Recent(msgspec.Struct, array_like=True):
    """One event that can still be sorted among others."""

    t_ms: int
    rank: int  # of its type
    event_id: str
    day: int
    received_ms: int
    traffic: int  # its own, -1 while nothing needed it: then `page` is its landing page
    client: int
    session: int  # digest of the sender's session id, 0 for none
    source: int  # digest of where it says it came from
    flags: int
    click: int  # digest of a network's click id, 0 for none
    name: str  # of a click on a marked element
    page: str
    steps: list[tuple[int, int]]  # (funnel, bit mask of the steps it can be)
    sale: Sale | None

    def order(self) -> tuple[int, int, str]:
        """Return the key that sorts events (SEMANTICS, late)."""
        return (self.t_ms, self.rank, self.event_id)


ARRIVAL = 1  # carries UTM values, a click id or a foreign referrer
SESSIONLESS = 2  # opens and prolongs no session and makes no visitor (secret key)


class Visitor(msgspec.Struct, array_like=True):
    """One visitor of one site and audience."""

    newest_ms: int = 0
    past: Past = msgspec.field(default_factory=Past)
    recent: list[Recent] = []
    ids: list[tuple[int, int, int]] = []  # (digest, content, forget at, in minutes)
    traffics: list[list[int]] = []
    clients: list[list[int]] = []
    settled_ms: int = 0  # the newest event time that `past` holds


class Copy(msgspec.Struct, array_like=True):
    """One copy of an order."""

    copy: int
    t_ms: int
    day: int
    name: str
    macro: bool
    trust: str
    bot: bool
    value_micros: int | None
    currency: str
    credited: bool
    combo: list[int]


class Refund(msgspec.Struct, array_like=True):
    """One refund of an order, whether it could be applied yet or not."""

    copy: int
    t_ms: int
    value_micros: int | None
    currency: str


class Order(msgspec.Struct, array_like=True):
    """An order: all that was said of it. What it counts follows from that alone."""

    copies: list[Copy] = []
    refunds: list[Refund] = []


_pack = msgspec.msgpack.Encoder().encode
_visitor = msgspec.msgpack.Decoder(Visitor)
_past = msgspec.msgpack.Decoder(Past)
_order = msgspec.msgpack.Decoder(Order)


def pack(value: Any) -> bytes:
    """Return the stored form of a visitor or an order."""
    return _pack(value)


def unpack_visitor(raw: bytes) -> Visitor:
    """Return the visitor that `raw` holds."""
    return _visitor.decode(raw)


def unpack_order(raw: bytes) -> Order:
    """Return the order that `raw` holds."""
    return _order.decode(raw)


def copy_past(past: Past) -> Past:
    """Return an independent copy, the quickest way there is: 2 µs."""
    return _past.decode(_pack(past))


def period_of(horizon_ms: int) -> int:
    """Return the period whose container holds a visitor last written at `horizon_ms`."""
    return horizon_ms // STATE_PERIOD_MS


def is_period_kept(period: int, horizon_ms: int) -> bool:
    """Tell whether the visitors of `period` still exist when the log stands at `horizon_ms`."""
    return (period + 1) * STATE_PERIOD_MS + STATE_KEPT_MS > horizon_ms


def last_period(forget_minute: int) -> int:
    """Return the first period whose container stays until `forget_minute` (since the epoch)."""
    return (forget_minute * MINUTE_MS - STATE_KEPT_MS) // STATE_PERIOD_MS


def key_bytes(digest: int) -> bytes:
    """Return the field of a visitor or an order in its container."""
    return digest.to_bytes(8, "big")
