"""What SEMANTICS says of a set of events: a batch computation over the events sorted by time.

Written from that page and not from the folds: it keeps everything, knows no increments, no
lateness and no caps. Slow and plain on purpose.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from folding import DAY, MINUTE, SITE, Place

from tracker.model.definition import Funnel, Site, parse_sites
from tracker.model.record import (
    CLIENT_DIMENSIONS,
    DIMENSION_DEFAULTS,
    TRAFFIC_DIMENSIONS,
    EventRecord,
    EventType,
    Trust,
)
from tracker.model.window import SIZE_MS, Granularity

RANK = {"impression": 0, "click": 1, "view": 2, "conversion": 3}
SILENCE = 30 * MINUTE
LOOKBACK = 30 * DAY

Dims = Mapping[str, str]
Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that counts `amount` times, at one time, in the rows of its dimensions."""

    event: EventRecord
    dims: Dims
    column: str
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Sighting:
    """A visitor doing what it is counted for once in any range."""

    visitor: tuple[str, str]
    unique: str
    event: EventRecord
    dims: Dims


@dataclass(slots=True)
class Session:
    """A visitor's session."""

    traffic: Dims
    last_ms: int
    sources: list[Dims] = field(default_factory=list)


@dataclass(slots=True)
class Attempt:
    """One pass through a funnel."""

    entry: EventRecord
    dims: Dims
    steps: int = 1


@dataclass(slots=True)
class Copy:
    """One copy of an order, and where it counts if the order counts there."""

    event: EventRecord
    dims: Dims
    is_credited: bool


class Oracle:
    """Everything that a site's events amount to."""

    def __init__(self, tables: Mapping[str, object], log: Iterable[EventRecord]) -> None:
        """Take the definition of SITE and its events in log order."""
        sites, problems = parse_sites({SITE: tables})
        assert not problems
        self.site: Site = sites[SITE]
        self.facts: list[Fact] = []
        self.sightings: list[Sighting] = []
        self.unmatched = 0
        self._orders: dict[tuple[str, str], list[Copy]] = defaultdict(list)
        first = first_of_each_id(log)
        by_visitor: dict[tuple[str, str], list[EventRecord]] = defaultdict(list)
        for event in sorted(first, key=order_of):
            if event.name == "refund":
                continue
            if event.type is EventType.IMPRESSION:
                self._count(event, self._own(event), "impressions")
            elif not event.visitor_id:
                self._nobody(event)
            else:
                by_visitor[audience(event), event.visitor_id].append(event)
        for visitor, events in by_visitor.items():
            _Visitor(self, visitor).run(events)
        self._count_orders([event for event in first if event.name == "refund"])

    # -- dimensions ---------------------------------------------------------------------------

    def _own(self, event: EventRecord) -> Dims:
        return {**self.traffic(event), **self.client(event)}

    def traffic(self, event: EventRecord) -> Dims:
        return self._named(TRAFFIC_DIMENSIONS, event)

    def client(self, event: EventRecord) -> Dims:
        return self._named(CLIENT_DIMENSIONS, event)

    def _named(self, names: Sequence[str], event: EventRecord) -> Dims:
        return {
            name: event.dims.get(name) or DIMENSION_DEFAULTS[name]
            for name in names
            if name in self.site.dimensions
        }

    # -- what counts --------------------------------------------------------------------------

    def _count(self, event: EventRecord, dims: Dims, column: str, amount: int = 1) -> None:
        if amount:
            self.facts.append(Fact(event, dims, column, amount))

    def _nobody(self, event: EventRecord) -> None:
        """Count an event that moves the counts of its own dimensions only."""
        own = self._own(event)
        if event.type is EventType.CONVERSION:
            named = event.arrival or event.trust is not Trust.SECRET
            traffic = {name: DIMENSION_DEFAULTS[name] for name in self.traffic(event)}
            self.convert(event, own if named else {**own, **traffic}, is_credited=named)
        else:
            self._count(event, own, click_column(event) if event.type == "click" else "views")

    def is_macro(self, event: EventRecord) -> bool:
        return event.name in self.site.conversions

    def is_order(self, event: EventRecord) -> bool:
        return bool(event.order_id) and (self.is_macro(event) or event.name == "purchase")

    def convert(self, event: EventRecord, dims: Dims, *, is_credited: bool) -> None:
        """Count a conversion, or put it with the other copies of its order."""
        if self.is_order(event):
            self._orders[event.name, event.order_id].append(Copy(event, dims, is_credited))
        else:
            self._count_sale(event, dims, (event.value_micros or 0, event.currency))

    def _count_sale(self, event: EventRecord, dims: Dims, money: tuple[int, str]) -> None:
        value, currency = money[0], money[1] or self.site.currency
        self._count(event, dims, f"conversions:{event.name}")
        if self.is_macro(event):
            self._count(event, dims, "conversions")
        if event.name == "purchase":
            self._count(event, dims, "orders")
            self._count(event, dims, f"order_revenue:{currency}", value)
        if self.is_macro(event) or event.name == "purchase":
            self._count(event, dims, f"revenue:{currency}", value)

    def _count_orders(self, refunds: Sequence[EventRecord]) -> None:
        waiting = list(refunds)
        for (name, order_id), copies in self._orders.items():
            copies.sort(key=lambda copy: order_of(copy.event))
            first = copies[0].event
            dims = next((c.dims for c in copies if c.is_credited), copies[0].dims)
            said = [copy.event for copy in copies]
            valued = [event for event in said if event.value_micros is not None] or said
            best = ([event for event in valued if event.trust is not Trust.PUBLIC] or valued)[0]
            value, currency = best.value_micros or 0, best.currency or self.site.currency
            self._count_sale(first, dims, (value, currency))
            if name != "purchase":
                continue
            mine = [r for r in waiting if r.order_id == order_id and r.currency in ("", currency)]
            waiting = [refund for refund in waiting if refund not in mine]
            if mine:
                self._take_back(first, dims, (value, currency), mine)
        self.unmatched = len(waiting)

    def _take_back(
        self, first: EventRecord, dims: Dims, money: tuple[int, str], mine: Sequence[EventRecord]
    ) -> None:
        value, currency = money
        asked = sum(value if r.value_micros is None else r.value_micros for r in mine)
        taken = min(asked, value)
        self._count(first, dims, "refunds", len(mine))
        self._count(first, dims, f"refunded:{currency}", taken)
        for column in ("order_revenue", "revenue"):
            self._count(first, dims, f"{column}:{currency}", -taken)
        if taken == value:
            self._count(first, dims, "orders", -1)

    # -- answers ------------------------------------------------------------------------------

    def counts(self) -> Counter[Place]:
        """Return every count in every bucket of every granularity; no zeros."""
        cells: Counter[Place] = Counter()
        for fact in self.facts:
            for place in places(fact.event, fact.dims, fact.column):
                cells[place] += fact.amount
        return Counter({place: count for place, count in cells.items() if count})

    def last_seen(self) -> Counter[Place]:
        """Return, by unique and bucket, how many visitors did it last there."""
        latest: dict[tuple[str, tuple[str, str], Row], EventRecord] = {}
        for seen in sorted(self.sightings, key=lambda s: order_of(s.event)):
            for row in rows(seen.dims):
                latest[seen.unique, seen.visitor, row] = seen.event
        cells: Counter[Place] = Counter()
        for (unique, _, row), event in latest.items():
            cells.update(places_in(event, row, f"{unique}.last"))
        return cells

    def distinct(
        self, unique: str, granularity: Granularity, span: tuple[int, int]
    ) -> Counter[tuple[str, str, str]]:
        """Return (audience, dimension, value) → visitors that did `unique` in the span's buckets.

        A funnel's step is `NAME:STEP`, and does it when the attempt began.
        """
        found: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for seen in self.sightings:
            bucket = bucket_in(granularity, seen.event)
            if seen.unique == unique and span[0] <= bucket < span[1]:
                for row in rows(seen.dims):
                    found[audience(seen.event), *row].add(seen.visitor[1])
        return Counter({row: len(visitors) for row, visitors in found.items()})


class _Visitor:
    """One visitor of one audience, event by event in order of time."""

    def __init__(self, oracle: Oracle, visitor: tuple[str, str]) -> None:
        self.oracle = oracle
        self.visitor = visitor
        self.named: dict[str, Session] = {}
        self.session: Session | None = None  # of the newest event
        self.touches: list[tuple[int, Dims]] = []
        self.click_ids: set[str] = set()
        self.orders: set[tuple[str, str]] = set()
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)

    def run(self, events: Sequence[EventRecord]) -> None:
        for event in events:
            self._event(event)
        for name, attempts in self.attempts.items():
            for attempt in attempts:
                for step in range(1, attempt.steps + 1):
                    self._see(f"{name}:{step}", attempt.entry, attempt.dims)

    def _see(self, unique: str, event: EventRecord, dims: Dims) -> None:
        self.oracle.sightings.append(Sighting(self.visitor, unique, event, dims))

    def _event(self, event: EventRecord) -> None:
        oracle = self.oracle
        if event.trust is not Trust.SECRET:
            self._session_of(event)
        traffic = self.session.traffic if self.session else oracle.traffic(event)
        dims = {**traffic, **oracle.client(event)}
        if event.trust is not Trust.SECRET:
            self._see("visitors", event, dims)
        is_copy = False
        if event.type is EventType.VIEW:
            oracle._count(event, dims, "views")
            if event.click_network and event.click_network != "tracker":
                if event.click_id not in self.click_ids:
                    oracle._count(event, oracle._own(event), "clicks")
                self.click_ids.add(event.click_id)
        elif event.type is EventType.CLICK:
            oracle._count(event, oracle._own(event), click_column(event))
        else:
            is_copy = self._conversion(event)
        if not is_copy:
            for funnel in oracle.site.funnels:
                self._funnel(funnel, event, dims)

    def _session_of(self, event: EventRecord) -> None:
        if event.session_id:
            session = self.named.get(event.session_id)
        elif self.session and event.occurred_at_ms - self.session.last_ms < SILENCE:
            session = self.session
        else:
            session = None
        traffic = self.oracle.traffic(event)
        source = {name: value for name, value in traffic.items() if name != "landing_page"}
        if session is None:
            session = Session(traffic, event.occurred_at_ms)
            self.oracle._count(event, self.oracle._own(event), "sessions")
            if event.session_id:
                self.named[event.session_id] = session
            is_touch = True
        else:
            is_touch = event.arrival and source not in session.sources
        if is_touch:
            self.touches.append((event.occurred_at_ms, traffic))
            if event.arrival:
                session.sources.append(source)
        session.last_ms = event.occurred_at_ms
        self.session = session

    def _conversion(self, event: EventRecord) -> bool:
        """Count a conversion; tell whether it is a further copy of an order of this visitor."""
        oracle = self.oracle
        within = [t for at, t in self.touches if event.occurred_at_ms - at <= LOOKBACK]
        credited = within[-1] if within else oracle.traffic(event)
        dims = {**credited, **oracle.client(event)}
        key = (event.name, event.order_id)
        is_copy = oracle.is_order(event) and key in self.orders
        self.orders.add(key)
        if oracle.is_macro(event) and not is_copy:
            self._see("converters", event, dims)
        oracle.convert(event, dims, is_credited=True)
        return is_copy

    def _funnel(self, funnel: Funnel, event: EventRecord, dims: Dims) -> None:
        def fits(step: int) -> bool:
            wanted = funnel.steps[step - 1]
            return wanted.type == event.type and wanted.name in ("", event.name)

        attempts = self.attempts[funnel.name]
        if attempts:
            now = attempts[-1]
            elapsed = event.occurred_at_ms - now.entry.occurred_at_ms
            if now.steps < len(funnel.steps) and elapsed <= funnel.within_ms:
                now.steps += fits(now.steps + 1)
                return
        if fits(1):
            attempts.append(Attempt(event, dims))


def first_of_each_id(log: Iterable[EventRecord]) -> list[EventRecord]:
    """Leave out copies: ids of the site's server, of the public and of imports live apart."""
    seen: set[tuple[str, str]] = set()
    first = []
    for event in log:
        if (event.trust, event.event_id) not in seen:
            seen.add((event.trust, event.event_id))
            first.append(event)
    return first


def order_of(event: EventRecord) -> tuple[int, int, str]:
    return (event.occurred_at_ms, RANK[event.type], event.event_id)


def audience(event: EventRecord) -> str:
    return "b" if event.bot else "p"


def click_column(event: EventRecord) -> str:
    return f"clicks:{event.name}" if event.name else "clicks"


def rows(dims: Dims) -> list[Row]:
    return [("", "all"), *dims.items()]


def bucket_in(granularity: Granularity, event: EventRecord) -> int:
    if granularity is Granularity.DAY:
        return event.day
    return event.occurred_at_ms // SIZE_MS[granularity]


def places(event: EventRecord, dims: Dims, column: str) -> Iterator[Place]:
    for row in rows(dims):
        yield from places_in(event, row, column)


def places_in(event: EventRecord, row: Row, column: str) -> Iterator[Place]:
    for granularity in Granularity:
        yield Place(granularity, bucket_in(granularity, event), audience(event), *row, column, SITE)
