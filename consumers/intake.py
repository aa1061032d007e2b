"""From a record on the log to the event that a visitor's fold sorts: hashing and numbering.

What needs the whole record happens here, once, when the record is read: value numbers, the steps
of funnels that it can be, whether its conversion is a macro one. Later runs need none of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from consumers.run import index_of
from consumers.sites import LANDING_PAGE, SiteView
from consumers.state import ARRIVAL, SESSIONLESS, Recent, Sale, Visitor
from tracker.model.cell import Audience
from tracker.model.keys import Keys
from tracker.model.record import (
    OUR_NETWORK,
    PURCHASE,
    REFUND,
    TRAFFIC_DIMENSIONS,
    TYPE_RANK,
    EventRecord,
    EventType,
    IdentifiedBy,
    Trust,
)

_SOURCE_DIMENSIONS = tuple(name for name in TRAFFIC_DIMENSIONS if name != LANDING_PAGE)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose state an event moves: a visitor's, or nobody's (then only its id is remembered)."""

    digest: int
    is_visitor: bool


def audience_of(record: EventRecord) -> Audience:
    """Return whether people or bots are counted by `record`."""
    return Audience.BOTS if record.bot else Audience.PEOPLE


def owner_of(keys: Keys, record: EventRecord) -> Owner:
    """Return the owner of `record`: its visitor where one may be named."""
    audience = audience_of(record)
    if record.visitor_id and record.identified_by is not IdentifiedBy.NOBODY:
        return Owner(keys.digest(record.site, audience, "v", record.visitor_id), True)
    return Owner(keys.digest(record.site, audience, "e", record.event_id), False)


def event_digest(keys: Keys, record: EventRecord) -> int:
    """Return the id under which a copy is known: ids of different trust never meet."""
    return keys.digest(record.site, record.trust, record.event_id)


def content_digest(record: EventRecord) -> int:
    """Return a checksum of what the sender said, to tell a copy from a conflict."""
    said = (
        record.type,
        record.name,
        record.order_id,
        str(record.value_micros),
        record.currency,
        record.url,
        record.session_id,
        record.customer_id,
        repr(sorted(record.properties.items())) if record.properties else "",
    )
    return zlib.crc32("\0".join(said).encode("utf-8", "replace"))


def recent_of(keys: Keys, view: SiteView, visitor: Visitor, record: EventRecord) -> Recent:
    """Return `record` as its visitor's fold keeps it, numbering what it needs now."""
    client = index_of(visitor.clients, view.client_numbers(record.dims))
    needs_traffic = record.arrival or record.type is EventType.CLICK
    traffic = -1
    if needs_traffic:
        traffic = index_of(visitor.traffics, view.traffic_numbers(record.dims))
    flags = (ARRIVAL if record.arrival else 0) | (
        SESSIONLESS if record.trust is Trust.SECRET else 0
    )
    session = record.session_id
    is_network_click = record.click_id and record.click_network not in ("", OUR_NETWORK)
    return Recent(
        t_ms=record.occurred_at_ms,
        rank=TYPE_RANK[record.type],
        event_id=record.event_id,
        day=record.day,
        received_ms=record.received_at_ms,
        traffic=traffic,
        client=client,
        session=keys.digest(record.site, "s", session) if session else 0,
        source=_source(record.dims) if record.arrival else 0,
        flags=flags,
        click=keys.digest(record.site, "c", record.click_id) if is_network_click else 0,
        name=record.name if record.type is EventType.CLICK else "",
        page="" if needs_traffic else record.dims.get(LANDING_PAGE, ""),
        steps=view.steps(record),
        sale=sale_of(view, record),
    )


def sale_of(view: SiteView, record: EventRecord) -> Sale | None:
    """Return what a conversion says beyond having happened, None of other events."""
    if record.type is not EventType.CONVERSION:
        return None
    return Sale(
        name=record.name,
        macro=record.name in view.macros,
        order_id=record.order_id if record.name in view.macros or is_order(record) else "",
        value_micros=record.value_micros,
        currency=record.currency or view.site.currency,
        trust=record.trust,
        credit=-1,
    )


def is_order(record: EventRecord) -> bool:
    """Tell whether `record` is a purchase."""
    return record.name == PURCHASE


def is_refund(record: EventRecord) -> bool:
    """Tell whether `record` takes an order back."""
    return record.type is EventType.CONVERSION and record.name == REFUND


def _source(dims: Mapping[str, str]) -> int:
    """Return a digest of where an arrival says it comes from, the landing page aside."""
    said = "\0".join(dims.get(name, "") for name in _SOURCE_DIMENSIONS)
    return zlib.crc32(said.encode("utf-8", "replace")) + 1
