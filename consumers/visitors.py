"""One visitor's events in order of time: sessions, touches, uniques, and what they count.

`step` moves a visitor's past by one event and tells a sink what that counts. In order it runs
once an event. A late event (C9) is sorted in, and the steps since the settled past are run twice,
as they were and as they are now: the difference is what moves. So any order of arrival within
the lateness gives the counts of the sorted stream. Source: SEMANTICS, people and events.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass

from consumers.attribution import credit, touch
from consumers.fold import LATENESS_MS, NOTHING, RECENT_MAX, Tally, count_again
from consumers.funnels import advance
from consumers.run import KEEP_CREDIT, Run, own_traffic, previous_by_dimension
from consumers.sites import SiteView
from consumers.state import (
    ARRIVAL,
    CLICKS_MAX,
    ORDERS_MAX,
    SEEN_MAX,
    SESSIONLESS,
    VISITS_MAX,
    Past,
    Recent,
    Sale,
    Seen,
    Visit,
    Visitor,
    copy_past,
    last_period,
)
from tracker.model.record import PURCHASE, TYPE_RANK, EventType

SESSION_SILENCE_MS = 30 * 60_000
"""Source: Plausible, Matomo and GA4 alike end a visit after 30 minutes of silence."""

VISITORS_UNIQUE = 0
CONVERTERS_UNIQUE = 1
UNIQUE_NAMES = ("visitors", "converters")

_CLICK = TYPE_RANK[EventType.CLICK]
_VIEW = TYPE_RANK[EventType.VIEW]


@dataclass(slots=True)
class Known:
    """A visitor in memory: the stored state, and where its sorted events have led to."""

    visitor: Visitor
    head: Past
    ids: dict[int, tuple[int, int]]  # digest → (content, forget at in minutes)
    period_min: int = 0  # of the container, so that no id is forgotten early

    @classmethod
    def of(cls, visitor: Visitor, view: SiteView) -> Known:
        """Return `visitor` with its head worked out anew."""
        head = copy_past(visitor.past)
        run = Run(view, visitor, NOTHING, frozen_ms=KEEP_CREDIT)
        for event in visitor.recent:
            step(run, head, event)
        ids = {digest: (content, forget) for digest, content, forget in visitor.ids}
        latest = max((forget for _, forget in ids.values()), default=0)
        return cls(visitor, head, ids, last_period(latest))

    def stored(self) -> Visitor:
        """Return the visitor as it is stored."""
        self.visitor.ids = [(digest, *kept) for digest, kept in self.ids.items()]
        return self.visitor


@dataclass(frozen=True, slots=True)
class Moved:
    """What one event moved beside the tally: the orders to claim (anew).

    `is_behind` when it came too late to be sorted in.
    """

    claims: Mapping[tuple[str, str], Recent]
    is_behind: bool = False


def take(known: Known, view: SiteView, event: Recent, tally: Tally, watermark_ms: int) -> Moved:
    """Put one event, not seen before, into its visitor, and what it counts into the tally.

    The tally stands at the log's horizon, which says which buckets still exist; the log's
    watermark as of this record says which credit is frozen.
    """
    visitor = known.visitor
    if event.t_ms < max(visitor.newest_ms - LATENESS_MS, visitor.settled_ms):
        run = Run(view, visitor, tally)
        _count_late(run, known.head, event)
        return Moved(run.claims, is_behind=True)
    if not visitor.recent or event.order() >= visitor.recent[-1].order():
        run = Run(view, visitor, tally)
        visitor.recent.append(event)
        step(run, known.head, event)
        claims: Mapping[tuple[str, str], Recent] = run.claims
    else:
        claims = _sort_in(known, view, event, (tally, watermark_ms - LATENESS_MS))
    visitor.newest_ms = max(visitor.newest_ms, event.t_ms)
    _settle(known, view)
    return Moved(claims)


def _sort_in(
    known: Known, view: SiteView, event: Recent, into: tuple[Tally, int]
) -> Mapping[tuple[str, str], Recent]:
    """Run the recent events without and with `event`; put the difference into the tally."""
    tally, frozen_ms = into
    visitor = known.visitor
    before = Run(view, visitor, Tally(tally.horizon_ms), frozen_ms=KEEP_CREDIT)
    _run_all(before, copy_past(visitor.past))
    credits_before = {key: _credit(claim) for key, claim in before.claims.items()}
    insort(visitor.recent, event, key=Recent.order)
    known.head = copy_past(visitor.past)
    after = Run(view, visitor, tally, frozen_ms=frozen_ms)
    _run_all(after, known.head)
    assert isinstance(before.sink, Tally)  # noqa: S101 - made above
    tally.merge(before.sink, sign=-1)
    return {
        key: claim
        for key, claim in after.claims.items()
        if credits_before.get(key) != _credit(claim)
    }


def _credit(claim: Recent) -> int:
    assert claim.sale is not None  # noqa: S101 - only conversions claim
    return claim.sale.credit


def _run_all(run: Run, past: Past) -> None:
    for event in run.visitor.recent:
        step(run, past, event)


def _settle(known: Known, view: SiteView) -> None:
    """Move events into the past that nothing can be sorted before any more."""
    visitor = known.visitor
    oldest = visitor.newest_ms - LATENESS_MS
    ready = 0
    while ready < len(visitor.recent) and (
        visitor.recent[ready].t_ms < oldest or len(visitor.recent) - ready > RECENT_MAX
    ):
        ready += 1
    if not ready:
        return
    run = Run(view, visitor, NOTHING, frozen_ms=KEEP_CREDIT)
    for event in visitor.recent[:ready]:
        step(run, visitor.past, event)
        visitor.settled_ms = event.t_ms
    del visitor.recent[:ready]


def step(run: Run, past: Past, event: Recent) -> None:
    """Move `past` by one event, in order of time, and tell the run's sink what it counts."""
    if event.flags & SESSIONLESS:
        traffic = past.visits[-1].traffic if past.visits else own_traffic(run, event)
    else:
        traffic = _session(run, past, event)
        _see(run, past, VISITORS_UNIQUE, (event, traffic))
    if event.rank == _VIEW:
        run.sink.add(event.t_ms, event.day, run.combo(traffic, event.client), "views")
    if event.rank == _CLICK or event.click:
        _click(run, past, event)
    is_copy = False
    if event.sale is not None:
        is_copy = _convert(run, past, (event, event.sale))
    if event.steps and not is_copy:
        advance(run, past, event, traffic)


def _session(run: Run, past: Past, event: Recent) -> int:
    """Put the event into its session, opening one when it needs to; return its traffic."""
    visit = _visit_of(past, event)
    if visit is not None:
        visit.last_ms = event.t_ms
        if past.visits[-1] is not visit:
            # The session of the newest event stands last: at equal times only the order tells.
            past.visits.remove(visit)
            past.visits.append(visit)
        if event.flags & ARRIVAL:
            touch(past, visit, event, own_traffic(run, event))
        return visit.traffic
    visit = Visit(event.session, event.t_ms, event.t_ms, own_traffic(run, event), [])
    if not event.session:
        # Silence has closed every session before; only those that senders name can go on.
        past.visits = [old for old in past.visits if old.session]
    past.visits.append(visit)
    del past.visits[:-VISITS_MAX]
    run.sink.add(event.t_ms, event.day, run.combo(visit.traffic, event.client), "sessions")
    touch(past, visit, event, visit.traffic)
    return visit.traffic


def _visit_of(past: Past, event: Recent) -> Visit | None:
    if event.session:
        named = (visit for visit in past.visits if visit.session == event.session)
        return next(named, None)
    if not past.visits:
        return None
    latest = past.visits[-1]
    return latest if event.t_ms - latest.last_ms < SESSION_SILENCE_MS else None


def _click(run: Run, past: Past, event: Recent) -> None:
    """Count a click: one that was sent, or a landing with a network's click id not seen yet."""
    is_known = event.click in past.clicks
    if event.click and not is_known:
        past.clicks.append(event.click)
        del past.clicks[:-CLICKS_MAX]
    if event.rank == _CLICK:
        column = run.view.click_column(event.name)
    elif is_known:
        return
    else:
        column = "clicks"
    combo = run.combo(own_traffic(run, event), event.client)
    run.sink.add(event.t_ms, event.day, combo, column)


def _convert(run: Run, past: Past, what: tuple[Recent, Sale]) -> bool:
    """Count a conversion under the touch it is credited to; tell whether it is a second copy.

    An order with an id is not counted here: it is claimed, and its own partition counts it.
    """
    event, sale = what
    if event.received_ms >= run.frozen_ms:
        sale.credit = credit(past, event)
    if sale.credit < 0:
        sale.credit = own_traffic(run, event)
    is_copy = bool(sale.order_id) and _is_copy(past, sale)
    if sale.macro and not is_copy:
        _see(run, past, CONVERTERS_UNIQUE, (event, sale.credit))
    if sale.order_id:
        run.claims[sale.order_id, event.event_id] = event
        return is_copy
    combo = run.combo(sale.credit, event.client)
    for column, count in sale_counts(run.view, sale):
        run.sink.add(event.t_ms, event.day, combo, column, count)
    return False


def sale_counts(view: SiteView, sale: Sale) -> list[tuple[str, int]]:
    """Return the columns that a conversion counts in when no order id ties it to others."""
    counts = [(view.conversion_column(sale.name), 1)]
    value = sale.value_micros or 0
    if sale.macro:
        counts.append(("conversions", 1))
    if sale.name == PURCHASE:
        counts += [("orders", 1), (f"order_revenue:{sale.currency}", value)]
    if sale.macro or sale.name == PURCHASE:
        counts.append((f"revenue:{sale.currency}", value))
    return [(column, count) for column, count in counts if count]


def _is_copy(past: Past, sale: Sale) -> bool:
    """Tell whether the visitor converted with this order before, and remember that it did."""
    # Only to know an order again within one visitor: no key is needed against collisions.
    said = f"{sale.name}\0{sale.order_id}".encode()
    digest = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big") >> 1
    if digest in past.orders:
        return True
    past.orders.append(digest)
    del past.orders[:-ORDERS_MAX]
    return False


def _see(run: Run, past: Past, unique: int, what: tuple[Recent, int]) -> None:
    """Count the visitor once in each row: under the value of every dimension it was seen with."""
    event, traffic = what
    now = (event.t_ms, event.day)
    entries = [seen for seen in past.seen if seen.unique == unique]
    own = next((s for s in entries if s.traffic == traffic and s.client == event.client), None)
    if run.sink is not NOTHING:
        names = (UNIQUE_NAMES[unique], UNIQUE_NAMES[unique])
        combo = run.combo(traffic, event.client)
        if own is not None and len(entries) == 1:
            count_again(run.sink, combo, names, (own.t_ms, own.day), now)
        else:
            for part, previous in previous_by_dimension(combo, entries, run.combo):
                moment = (previous.t_ms, previous.day) if previous else None
                count_again(run.sink, part, names, moment, now)
    if own is not None:
        own.t_ms, own.day = now
        return
    past.seen.append(Seen(unique, traffic, event.client, *now))
    if len(entries) >= SEEN_MAX:
        past.seen.remove(min(entries, key=lambda seen: seen.t_ms))


def _count_late(run: Run, past: Past, event: Recent) -> None:
    """Count an event that came too late to be sorted in: its own bucket and its money.

    It opens no session and moves no unique and no funnel. It counts under the session that was
    going on then, as far as that is still known.
    """
    traffic = next(
        (
            visit.traffic
            for visit in reversed(past.visits)
            if visit.start_ms <= event.t_ms < visit.last_ms + SESSION_SILENCE_MS
            or (event.session and visit.session == event.session)
        ),
        None,
    )
    if traffic is None:
        traffic = own_traffic(run, event)
    if event.rank == _VIEW:
        run.sink.add(event.t_ms, event.day, run.combo(traffic, event.client), "views")
    if event.rank == _CLICK or event.click:
        _click(run, past, event)
    sale = event.sale
    if sale is None:
        return
    sale.credit = credit(past, event)
    if sale.credit < 0:
        sale.credit = own_traffic(run, event)
    if sale.order_id:
        run.claims[sale.order_id, event.event_id] = event
        return
    combo = run.combo(sale.credit, event.client)
    for column, count in sale_counts(run.view, sale):
        run.sink.add(event.t_ms, event.day, combo, column, count)
