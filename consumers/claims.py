"""What a partition says of an order to the partition that owns it."""

from __future__ import annotations

from consumers.sites import SiteView
from consumers.state import Recent, Sale, Visitor
from tracker.model.keys import Keys
from tracker.model.record import EventRecord, OrderClaim, RefundClaim, Trust


def visitor_claim(
    keys: Keys, view: SiteView, visitor: Visitor, what: tuple[EventRecord, Recent, Sale]
) -> OrderClaim:
    """Return the claim of a visitor's conversion, with the touch that it is credited to.

    `what` is the record that made the claim (anew), the event of the conversion and its sale.
    """
    record, claimed, sale = what
    return OrderClaim(
        site=view.key,
        order_id=sale.order_id,
        name=sale.name,
        copy=copy_digest(keys, view.key, (sale.trust, claimed.event_id)),
        occurred_at_ms=claimed.t_ms,
        day=claimed.day,
        trust=Trust(sale.trust),
        bot=bool(record.bot),
        value_micros=sale.value_micros,
        currency=sale.currency,
        traffic=view.traffic_texts(visitor.traffics[sale.credit]),
        client=view.client_texts(visitor.clients[claimed.client]),
    )


def lone_claim(keys: Keys, record: EventRecord, sale: Sale) -> OrderClaim:
    """Return the claim of a conversion without a visitor: credited to its own values, if any.

    A server that knows the order alone credits nobody, so that a visitor's copy can.
    """
    says_source = record.arrival or record.trust is not Trust.SECRET
    return OrderClaim(
        site=record.site,
        order_id=sale.order_id,
        name=sale.name,
        copy=copy_digest(keys, record.site, (record.trust, record.event_id)),
        occurred_at_ms=record.occurred_at_ms,
        day=record.day,
        trust=record.trust,
        bot=bool(record.bot),
        value_micros=sale.value_micros,
        currency=sale.currency,
        traffic=dict(record.dims) if says_source else None,
        client=dict(record.dims),
    )


def refund_claim(keys: Keys, record: EventRecord) -> RefundClaim:
    """Return the claim of a refund of the order that `record` names."""
    return RefundClaim(
        site=record.site,
        order_id=record.order_id,
        copy=copy_digest(keys, record.site, (record.trust, record.event_id)),
        occurred_at_ms=record.occurred_at_ms,
        value_micros=record.value_micros,
        currency=record.currency,
    )


def copy_digest(keys: Keys, site: str, copy: tuple[str, str]) -> int:
    """Return the number that names one copy of an order: of the event that carried it."""
    trust, event_id = copy
    return keys.digest(site, trust, "copy", event_id)
