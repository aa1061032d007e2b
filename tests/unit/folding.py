"""A bench for the folds: events by short words, a log and a store in memory, counters by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from consumers.explain import Named, meaning_of
from consumers.partition import NUMBERED
from consumers.replay import Comparison, reconcile
from consumers.runner import Parts, Runner
from tracker.backends.memory_log import MemoryLog, MemoryLogReader, MemoryLogWriter
from tracker.backends.memory_store import MemoryStore
from tracker.codec import encode
from tracker.collect.admit import partition_of
from tracker.model.cell import (
    COUNTERS,
    GAP_NEW,
    LEDGER,
    NAMES,
    OWNER,
    PAGE_VALUES,
    Audience,
    container_span,
    decode_page,
    funnel_unique,
    gap_class_max,
    read_page_key,
)
from tracker.model.keys import PARTITIONS, Keys, owner_of_order, owner_of_visitor
from tracker.model.record import (
    DefinitionRecord,
    EventRecord,
    EventType,
    IdentifiedBy,
    Layer,
    MarkerRecord,
    Trust,
)
from tracker.model.window import DAY_MS, Granularity, is_kept
from tracker.ports.log import LogBatch, LogReader, LogWriter, Unappended
from tracker.ports.store import Store

KEYS = Keys(b"k" * 32)
SITE = "shop"
T0 = int(datetime(2026, 1, 5, 10, tzinfo=UTC).timestamp()) * 1000
"""A Monday morning, on the edge of a bucket of every size below a day."""
DAY0 = T0 // DAY_MS
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, DAY_MS

IMPRESSION, CLICK, VIEW, CONVERSION = EventType

DEFINED: dict[str, Any] = {
    "currency": "EUR",
    "conversions": ["purchase", "lead"],
    "dimensions": ["utm_source", "utm_campaign", "landing_page", "device"],
    "funnel": {
        "checkout": {"within": "24h", "steps": ["view", "conversion:cart", "conversion:purchase"]},
        "quick": {"within": "1h", "steps": ["view", "conversion:lead"]},
    },
}
"""The site of the tests: two macro conversions, four dimensions, two funnels."""

_made = iter(range(1_000_000_000))


def at(t_ms: int, event_type: EventType = VIEW, **said: Any) -> EventRecord:
    """Make an event `t_ms` after T0; received then too unless it says otherwise.

    `visitor` names one ("v" unless it says otherwise), `source` and `campaign` make it an
    arrival with these UTM values, `device` and `page` are dimensions too; times are after T0.
    """
    dims = {
        name: said.pop(word)
        for word, name in (
            ("source", "utm_source"),
            ("campaign", "utm_campaign"),
            ("page", "landing_page"),
            ("device", "device"),
        )
        if word in said
    }
    visitor = said.pop("visitor", "v")
    said.setdefault("arrival", bool(dims.keys() & {"utm_source", "utm_campaign"}))
    said.setdefault("event_id", f"made-{next(_made)}")
    said.setdefault("identified_by", IdentifiedBy.SENT if visitor else IdentifiedBy.NOBODY)
    received = said.pop("received", t_ms)
    return EventRecord(
        site=said.pop("site", SITE),
        type=event_type,
        occurred_at_ms=T0 + t_ms,
        received_at_ms=T0 + received,
        day=said.pop("day", (T0 + t_ms) // DAY_MS),
        visitor_id=visitor,
        dims=dims,
        **said,
    )


def bought(t_ms: int, order: str = "", euros: float | None = None, **said: Any) -> EventRecord:
    """Make a purchase."""
    value = None if euros is None else round(euros * 1_000_000)
    said = {"name": "purchase", "order_id": order, "value_micros": value} | said
    return at(t_ms, CONVERSION, **said)


def refunded(t_ms: int, order: str, euros: float | None = None, **said: Any) -> EventRecord:
    """Make a refund, as the site's server sends it."""
    said = {"name": "refund", "trust": Trust.SECRET, "visitor": ""} | said
    return bought(t_ms, order, euros, **said)


def visitors_in(partition: int, count: int) -> list[str]:
    """Return the names of `count` visitors whose state lives in `partition`."""
    names = (f"n{number}" for number in range(1_000_000))
    found = (n for n in names if KEYS.partition(SITE, owner_of_visitor(n)) == partition)
    return [next(found) for _ in range(count)]


def order_elsewhere(visitor: str) -> str:
    """Return an order id that another partition than the visitor's owns."""
    home = KEYS.partition(SITE, owner_of_visitor(visitor))
    names = (f"O{number}" for number in range(1_000))
    return next(n for n in names if KEYS.partition(SITE, owner_of_order(n)) != home)


class Place(NamedTuple):
    """One cell, by name."""

    granularity: Granularity
    bucket: int
    audience: str
    dimension: str  # empty: the site's own grain
    value: str
    column: str
    site: str = SITE


@dataclass(slots=True)
class Clock:
    """A clock that stands."""

    now: int = T0

    def now_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.now


class ChunkedReader:
    """A log that gives out its records in pieces of the sizes it is told, over and over."""

    def __init__(self, reader: LogReader, sizes: Sequence[int]) -> None:
        self._reader = reader
        self._sizes = list(sizes)
        self._turn = 0

    @property
    def identity(self) -> str:
        return self._reader.identity

    def ends(self) -> Sequence[int]:
        return self._reader.ends()

    async def read(
        self, positions: Mapping[int, int], *, records_max: int, wait_ms: int
    ) -> Sequence[LogBatch]:
        batches = await self._reader.read(positions, records_max=records_max, wait_ms=wait_ms)
        cut = []
        for batch in batches:
            size = self._sizes[self._turn % len(self._sizes)]
            self._turn += 1
            records = batch.records[:size]
            cut.append(LogBatch(batch.partition, records, records[-1].offset + 1))
        return cut

    async def close(self) -> None:
        await self._reader.close()


def ignore_progress(_done: int, _total: int) -> None:
    """Show nobody how far a replay is."""


class Bench:
    """A log, a store and a runner in memory."""

    def __init__(self, log: MemoryLog | None = None, store: Store | None = None) -> None:
        self.log = log or MemoryLog()
        self.store: Store = store or MemoryStore()
        self.reader: LogReader = MemoryLogReader(self.log)
        self.writer: LogWriter = MemoryLogWriter(self.log)
        self.clock = Clock()
        self.runner = self.new_runner()

    def parts(self) -> Parts:
        return Parts(self.reader, self.writer, self.store, KEYS, self.clock)

    def new_runner(self) -> Runner:
        return Runner(self.parts())

    async def define(self, tables: Mapping[str, Any] | None = None, **said: Any) -> None:
        """Put the layer of definitions into force: `tables` of SITE, DEFINED unless given."""
        record = DefinitionRecord(
            layer=said.get("layer", Layer.FILE),
            definitions={SITE: dict(DEFINED if tables is None else tables)},
            received_at_ms=T0 + said.get("received", 0),
        )
        self.log.add([Unappended(0, encode(record))])
        await self.drain()

    def add(self, *events: EventRecord | MarkerRecord) -> None:
        """Append to the log as the collector does, without folding."""
        self.log.add(
            [
                Unappended(
                    partition_of(KEYS, event) if isinstance(event, EventRecord) else 1,
                    encode(event),
                )
                for event in events
            ]
        )

    async def send(self, *events: EventRecord) -> None:
        """Append, and fold all there is."""
        self.add(*events)
        await self.drain()

    async def drain(self) -> None:
        await self.runner.drain()

    async def reconciled(self) -> Comparison:
        return await reconcile(self.parts(), MemoryStore(), ignore_progress)

    # -- reading ------------------------------------------------------------------------------

    async def containers(self, partition: int) -> dict[str, dict[bytes, bytes]]:
        return (await self.store.snapshot(partition))[1]

    async def cells(self) -> Counter[Place]:
        """Return every counter that is not zero, summed over the partitions."""
        cells: Counter[Place] = Counter()
        for partition in range(PARTITIONS):
            containers = await self.containers(partition)
            named = Named(containers.get(NAMES, {}))
            for container, fields in containers.items():
                if container.startswith(COUNTERS):
                    cells.update(_cells_of(container, fields, named))
        return Counter({place: count for place, count in cells.items() if count})

    async def count(self, column: str, **where: Any) -> int:
        """Return a counter of SITE, by day unless `granularity` says otherwise, over all time.

        One keyword that names a dimension picks its row; `audience`, `bucket` as of the cell.
        """
        return count_in(await self.cells(), column, **where)

    async def ledger(self, site: str = SITE) -> dict[str, Any]:
        """Return the fates of a site's events, summed over the partitions; no zeros."""
        summed: Counter[str] = Counter()
        for partition in range(PARTITIONS):
            raw = (await self.containers(partition)).get(LEDGER, {}).get(site.encode())
            for fate, number in orjson.loads(raw or b"{}").items():
                if isinstance(number, int):
                    summed[fate] += number
        return {fate: number for fate, number in summed.items() if number}

    async def numbered(self) -> int:
        """Return how many definitions partition 0 has numbered."""
        return int((await self.containers(0))[OWNER][NUMBERED])

    async def meaning(self) -> dict[tuple[int, str], dict[str, str]]:
        """Return all state of all partitions in words, as a reconcile compares it."""
        said = {}
        for partition in range(PARTITIONS):
            containers = await self.containers(partition)
            named = Named(containers.get(NAMES, {}))
            for container, fields in containers.items():
                said[partition, container] = meaning_of(container, fields, named)
        return {place: values for place, values in said.items() if values}


def _cells_of(container: str, fields: Mapping[bytes, bytes], named: Named) -> Counter[Place]:
    span = container_span(container)
    assert span is not None
    counts: Counter[Place] = Counter()
    for field, raw in fields.items():
        key = read_page_key(field)
        for cell, count in decode_page(raw).items():
            column, slot = divmod(cell, PAGE_VALUES)
            value = named.value(key.site, key.dimension, key.page * PAGE_VALUES + slot)
            place = Place(
                span[0],
                key.bucket,
                key.audience,
                key.dimension,
                value,
                named.column(column),
                key.site,
            )
            counts[place] += count
    return counts


def pick(cells: Mapping[Place, int], keep: Callable[[Place], bool]) -> int:
    return sum(count for place, count in cells.items() if keep(place))


def _row(where: dict[str, Any]) -> tuple[str, str]:
    """Take the one keyword that names a dimension out of `where`."""
    rows = [(name, where.pop(name)) for name in list(where) if name not in _NOT_DIMENSIONS]
    assert len(rows) <= 1, rows
    return rows[0] if rows else ("", "all")


_NOT_DIMENSIONS = {"granularity", "bucket", "audience", "site", "first", "stop"}


def count_in(cells: Mapping[Place, int], column: str, **where: Any) -> int:
    """Return a counter, see `Bench.count`."""
    row = _row(where)
    granularity = where.get("granularity", Granularity.DAY)
    return pick(
        cells,
        lambda p: (
            p.column == column
            and p.granularity is granularity
            and (p.dimension, p.value) == row
            and p.audience == where.get("audience", Audience.PEOPLE)
            and p.site == where.get("site", SITE)
            and where.get("bucket", p.bucket) == p.bucket
        ),
    )


def distinct(cells: Mapping[Place, int], unique: str, **where: Any) -> int:
    """Return how many visitors did `unique` in the buckets first ≤ b < stop, by the gaps.

    A row and a granularity (days unless said) as of `count_in`.
    """
    row = _row(where)
    granularity = where.get("granularity", Granularity.DAY)
    first, stop = where.get("first", 0), where.get("stop", 1 << 62)
    total = 0
    for place, count in cells.items():
        if (
            place.granularity is granularity
            and (place.dimension, place.value) == row
            and place.audience == where.get("audience", Audience.PEOPLE)
            and place.site == SITE
            and first <= place.bucket < stop
            and place.column.startswith(unique + ".gap:")
        ):
            gap = place.column.rpartition(":")[2]
            if gap == GAP_NEW or place.bucket - gap_class_max(int(gap)) < first:
                total += count
    return total


def last_since(cells: Mapping[Place, int], unique: str, first: int, **where: Any) -> int:
    """Return how many visitors did `unique` from bucket `first` on, for a window that ends now."""
    row = _row(where)
    granularity = where.get("granularity", Granularity.DAY)
    return pick(
        cells,
        lambda p: (
            p.column == unique + ".last"
            and p.granularity is granularity
            and (p.dimension, p.value) == row
            and p.audience == where.get("audience", Audience.PEOPLE)
            and p.site == SITE
            and p.bucket >= first
        ),
    )


def reached(cells: Mapping[Place, int], funnel: str, since: int = 1, **where: Any) -> list[int]:
    """Return how many visitors reached each step (1 … 3) of a funnel, in whole days."""
    return [
        sum(distinct(cells, funnel_unique(funnel, since, step, k), **where) for k in range(8))
        for step in (1, 2, 3)
    ]


def readable(cells: Mapping[Place, int], horizon_ms: int) -> dict[Place, int]:
    """Return the counters of the buckets that are still kept when the log stands at `horizon`."""
    size = {"10s": 10_000, "1m": 60_000, "15m": 900_000, "1d": 0}
    return {
        place: count
        for place, count in cells.items()
        if is_kept(place.granularity, place.bucket * size[place.granularity], horizon_ms)
    }
