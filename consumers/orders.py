"""Orders that have an id: one order and one conversion, whoever sent it and how often.

Visitors' partitions claim copies of an order (and refunds) by derived records; the partition of
(site, order id) keeps them all, and what the order counts is a pure function of what was said of
it: the earliest copy gives the time, the server's copy the value, the copy with a visitor the
credit. A new claim moves the difference. Source: SEMANTICS, money.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consumers.fold import Combo, Tally
from consumers.sites import SiteView
from consumers.state import Copy, Order, Refund
from tracker.model.cell import Audience
from tracker.model.record import PURCHASE, OrderClaim, RefundClaim, Trust

COPIES_MAX = 16
"""Copies kept of one order. More senders than that is a loop; later copies change nothing."""
REFUNDS_MAX = 64


@dataclass(frozen=True, slots=True)
class Counted:
    """One count of an order: always in the buckets of the order's own time."""

    column: str
    count: int


def claim(order: Order, view: SiteView, said: OrderClaim) -> None:
    """Put a copy into the order; a later claim of the same copy replaces it."""
    traffic = view.traffic_numbers(said.traffic or {})
    copy = Copy(
        copy=said.copy,
        t_ms=said.occurred_at_ms,
        day=said.day,
        name=said.name,
        macro=said.name in view.macros,
        trust=said.trust,
        bot=said.bot,
        value_micros=said.value_micros,
        currency=said.currency,
        credited=said.traffic is not None,
        combo=list(view.combo(traffic, view.client_numbers(said.client))),
    )
    others = [kept for kept in order.copies if kept.copy != said.copy]
    if len(others) < COPIES_MAX:
        order.copies = sorted([*others, copy], key=_by_time)


def refund(order: Order, said: RefundClaim) -> None:
    """Put a refund into the order, also before the order itself is known."""
    kept = [old for old in order.refunds if old.copy != said.copy]
    if len(kept) < REFUNDS_MAX:
        new = Refund(said.copy, said.occurred_at_ms, said.value_micros, said.currency)
        order.refunds = sorted([*kept, new], key=lambda item: (item.t_ms, item.copy))


def count(order: Order, view: SiteView, tallies: dict[Audience, Tally], sign: int) -> None:
    """Put what the order counts into the tally of its audience, or take it away again."""
    if not order.copies:
        return
    first = order.copies[0]
    credited = next((copy for copy in order.copies if copy.credited), first)
    combo: Combo = tuple(credited.combo)
    people = any(not copy.bot for copy in order.copies)
    tally = tallies[Audience.PEOPLE if people else Audience.BOTS]
    for counted in _counts(order, view):
        tally.add(first.t_ms, first.day, combo, counted.column, sign * counted.count)


def unmatched(order: Order) -> int:
    """Return how many refunds wait: for the order, or for one in their currency."""
    return len(order.refunds) - len(_matched(order)) if order.copies else len(order.refunds)


def _counts(order: Order, view: SiteView) -> Iterator[Counted]:
    first = order.copies[0]
    valued = _valued(order)
    value = valued.value_micros or 0
    refunds = _matched(order)
    refunded = min(value, sum(_amount(item, value) for item in refunds))
    is_taken_back = bool(refunds) and refunded == value
    yield Counted(view.conversion_column(first.name), 1)
    if first.macro:
        yield Counted("conversions", 1)
    if first.name == PURCHASE:
        if not is_taken_back:
            yield Counted("orders", 1)
        yield Counted(f"order_revenue:{valued.currency}", value - refunded)
    if first.macro or first.name == PURCHASE:
        yield Counted(f"revenue:{valued.currency}", value - refunded)
    if refunds:
        yield Counted("refunds", len(refunds))
        yield Counted(f"refunded:{valued.currency}", refunded)


def _valued(order: Order) -> Copy:
    """Return the copy whose value counts: the server's before the public one, then the earliest."""
    return min(order.copies, key=lambda copy: (*_trust(copy), *_by_time(copy)))


def _trust(copy: Copy) -> tuple[bool, bool]:
    return (copy.value_micros is None, copy.trust == Trust.PUBLIC)


def _by_time(copy: Copy) -> tuple[int, int]:
    return (copy.t_ms, copy.copy)


def _matched(order: Order) -> list[Refund]:
    currency = _valued(order).currency
    return [item for item in order.refunds if not item.currency or item.currency == currency]


def _amount(item: Refund, value: int) -> int:
    return value if item.value_micros is None else min(abs(item.value_micros), value)
