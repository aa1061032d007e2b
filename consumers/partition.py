"""One partition: its state in memory behind the fence, and what a batch of records does to it.

The flow of a batch: `wanted` says what has to be loaded, `absorb` takes it in, `fold` moves the
state record by record and says which pages it moves, `finish` turns all of it into one `Changes`.
Everything is a pure function of the records and the state; after any outcome but success the
whole object is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from consumers.batch import Derived, Moves, Outbox, Read
from consumers.claims import lone_claim, refund_claim, visitor_claim
from consumers.counters import PageId, Pages, expired_periods, moved_cells
from consumers.definitions import CURRENT, DEFINITION_PARTITION, Definitions
from consumers.fold import Tally
from consumers.imported import ImportedIds
from consumers.intake import (
    audience_of,
    content_digest,
    is_refund,
    recent_of,
    sale_of,
)
from consumers.ledger import Fate, Ledger
from consumers.names import Names
from consumers.orders import claim, count, refund, unmatched
from consumers.people import People
from consumers.sites import SiteView
from consumers.state import Order, Sale, key_bytes, pack, unpack_order
from consumers.visitors import Known, sale_counts, take
from tracker.model.cell import (
    DEFINITIONS,
    IMPORTED_IDS,
    LEDGER,
    NAMES,
    ORDERS,
    OWNER,
    QUARANTINE,
    Audience,
)
from tracker.model.definition import Site
from tracker.model.keys import Keys
from tracker.model.record import (
    PURCHASE,
    DefinitionRecord,
    DerivedRecord,
    EventRecord,
    EventType,
    MarkerRecord,
    NumberedDefinition,
    OrderClaim,
    Record,
    RefundClaim,
    Trust,
)
from tracker.ports.store import Changes, Meta

MARKS = b"marks"
HELD = b"held"
NUMBERED = b"numbered"

LOADED_AT_START = (NAMES, LEDGER, DEFINITIONS, OWNER)

QUARANTINED_BYTES_MAX = 4_096
"""Kept of a record that cannot be read: enough to see what it was."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a partition's fold needs beside its state.

    `beginning` makes the definitions that a partition without any state begins with.
    """

    partition: int
    keys: Keys
    log_id: str
    beginning: Callable[[], Definitions]


class PartitionFold:
    """The state of one partition, as its owner holds it."""

    def __init__(
        self,
        start: Start,
        meta: Meta,
        loaded: Mapping[str, Mapping[bytes, bytes]],
    ) -> None:
        self.partition = start.partition
        self.keys = start.keys
        self.watermark_ms = meta.watermark_ms
        self.horizon_ms = meta.horizon_ms
        self.names = Names(loaded[NAMES])
        self.ledger = Ledger(loaded[LEDGER])
        self.pages = Pages()
        self._outbox = Outbox(start.keys, start.partition, start.log_id)
        self.imported = ImportedIds()
        self._orders: dict[bytes, Order] = {}
        owner = loaded[OWNER]
        self._marks = {
            int(source): (mark[0], mark[1])
            for source, mark in orjson.loads(owner.get(MARKS, b"{}")).items()
        }
        held = orjson.loads(owner.get(HELD, b"{}"))
        self._oldest: dict[str, int] = held.get("counters", {})
        self._numbered = int(owner.get(NUMBERED, b"0"))
        self.people = People(held.get("visitors"))
        stored = loaded[DEFINITIONS].get(CURRENT)
        self._is_new = stored is None
        self.definitions = Definitions.decode(stored) if stored else start.beginning()
        self._views: dict[str, SiteView] = {}
        self._definitions_moved = False
        self._owner_before: dict[bytes, bytes] = dict(owner)
        self._moves = Moves()

    # -- what has to be loaded ------------------------------------------------------------------

    def wanted(self, batch: Sequence[Read]) -> dict[str, list[bytes]]:
        """Return the fields that folding `batch` needs and that are not in memory."""
        visitors: set[int] = set()
        orders: set[bytes] = set()
        imports: set[int] = set()
        horizon_ms = self.horizon_ms
        for read in batch:
            record = read.record
            if isinstance(record, EventRecord):
                assert read.owner is not None  # noqa: S101 - every event has one
                horizon_ms = max(horizon_ms, record.received_at_ms)
                visitors.add(read.owner.digest)
                if record.trust is Trust.IMPORT:
                    imports.add(read.event)
            elif isinstance(record, DerivedRecord):
                orders.update(self._order_fields(record))
        wanted = self.people.missing(visitors, horizon_ms)
        wanted[ORDERS] = sorted(orders - self._orders.keys())
        wanted[IMPORTED_IDS] = self.imported.missing(imports)
        return {container: fields for container, fields in wanted.items() if fields}

    def absorb(
        self,
        asked: Mapping[str, Sequence[bytes]],
        loaded: Mapping[str, Mapping[bytes, bytes]],
    ) -> None:
        """Take in what `wanted` asked for."""
        self.people.absorb(asked, loaded)
        for name in asked.get(ORDERS, ()):
            raw = loaded.get(ORDERS, {}).get(name)
            self._orders[name] = unpack_order(raw) if raw else Order()
        self.imported.absorb(asked.get(IMPORTED_IDS, ()), loaded.get(IMPORTED_IDS, {}))

    def _order_fields(self, record: DerivedRecord) -> Iterator[bytes]:
        for said in (record.order, record.refund):
            if said is not None:
                yield self._order_field(said)

    def _order_field(self, said: OrderClaim | RefundClaim) -> bytes:
        # A lead with the order's id is no copy of the order; a refund is always of a purchase.
        name = said.name if isinstance(said, OrderClaim) else PURCHASE
        return key_bytes(self.keys.digest(said.site, "order", name, said.order_id))

    # -- folding --------------------------------------------------------------------------------

    def fold(self, batch: Sequence[Read]) -> Sequence[Derived]:
        """Move the state by `batch`; return what other partitions have to be told first."""
        for read in batch:
            self._advance_time(read.record)
            self._outbox.begin(read.offset, self.horizon_ms)
            match read.record:
                case EventRecord() as event:
                    self._event(event, read)
                case DerivedRecord() as derived:
                    self._told(derived)
                case DefinitionRecord() as definition:
                    self._number(definition)
                case MarkerRecord() as marker:
                    self.ledger.count_refused(marker)
                case None:
                    self._quarantine(read)
        return self._outbox.take()

    def pages_wanted(self) -> dict[PageId, dict[int, int]]:
        """Return the cells that the folded batch moves, page by page."""
        return moved_cells(self._moves.tallies, self.names)

    def finish(self, moved: Mapping[PageId, Mapping[int, int]]) -> Changes:
        """Return everything that the folded batch changes; its pages have been absorbed."""
        puts = self.pages.apply(moved)
        puts.update(self.people.puts())
        drops = self._expire()
        orders = {name: pack(order) for name, order in self._moves.orders.items()}
        groups: tuple[tuple[str, Mapping[bytes, bytes | None]], ...] = (
            (ORDERS, orders),
            (IMPORTED_IDS, self.imported.puts()),
            (NAMES, self.names.fresh),
            (LEDGER, self.ledger.puts()),
            (QUARANTINE, self._moves.quarantined),
            (OWNER, self._owner_puts()),
            (DEFINITIONS, self._definition_puts()),
        )
        for container, fields in groups:
            if fields:
                puts.setdefault(container, {}).update(fields)
        for container in drops:
            self.pages.forget(container)
            puts.pop(container, None)
        self.names.fresh = {}
        self._moves = Moves()
        return Changes(puts=puts, drops=drops)

    def _expire(self) -> list[str]:
        counters_gone, self._oldest = expired_periods(self._oldest, self.horizon_ms)
        return counters_gone + self.people.expired(self.horizon_ms)

    def trim(self) -> None:
        """Forget what the store holds and memory need not; to be called between batches."""
        self.people.trim()
        self.imported.trim()
        if len(self._orders) > ORDERS_CACHED_MAX:
            self._orders.clear()

    def _owner_puts(self) -> dict[bytes, bytes | None]:
        now = {
            MARKS: orjson.dumps({str(key): list(mark) for key, mark in self._marks.items()}),
            HELD: orjson.dumps({"counters": self._oldest, "visitors": self.people.periods()}),
            NUMBERED: str(self._numbered).encode(),
        }
        moved = {key: raw for key, raw in now.items() if self._owner_before.get(key) != raw}
        self._owner_before.update(moved)
        return dict(moved)

    def _definition_puts(self) -> dict[bytes, bytes | None]:
        if not self._definitions_moved and not self._is_new:
            return {}
        self._definitions_moved = self._is_new = False
        return {CURRENT: self.definitions.encode()}

    def _advance_time(self, record: Record | None) -> None:
        if record is None:
            return
        received_ms = record.received_at_ms
        if not self._oldest:
            # Set by the first record, so that buckets which the first batch outlives go too.
            _, self._oldest = expired_periods({}, received_ms)
        self.horizon_ms = max(self.horizon_ms, received_ms)
        is_import = isinstance(record, EventRecord) and record.trust is Trust.IMPORT
        if not is_import:
            self.watermark_ms = max(self.watermark_ms, received_ms)

    def _view(self, key: str) -> SiteView:
        view = self._views.get(key)
        if view is None:
            site = self.definitions.sites.get(key) or Site(key=key)
            view = self._views[key] = SiteView(site, self.definitions, self.names)
        return view

    def _tally(self, site: str, audience: Audience) -> Tally:
        tally = self._moves.tallies.get((site, audience))
        if tally is None:
            tally = self._moves.tallies[site, audience] = Tally(self.horizon_ms)
        tally.horizon_ms = self.horizon_ms
        return tally

    # -- events ---------------------------------------------------------------------------------

    def _event(self, record: EventRecord, read: Read) -> None:
        owner = read.owner
        assert owner is not None  # noqa: S101 - every event has one
        view = self._view(record.site)
        known = self.people.get(owner.digest, self.horizon_ms, view)
        fate = self._fate(record, known, read.event)
        if fate is not None:
            self.ledger.count(record.site, Fate.DUPLICATE)
            if fate is Fate.CONFLICT:
                self.ledger.count(record.site, Fate.CONFLICT)
            return
        self.ledger.count(record.site, Fate.APPLIED)
        if is_refund(record):
            self._refund(record)
        elif record.type is EventType.IMPRESSION or not owner.is_visitor:
            self._count_alone(view, record)
        else:
            self._move_visitor(view, record, known)

    def _fate(self, record: EventRecord, known: Known, digest: int) -> Fate | None:
        """Return DUPLICATE or CONFLICT for an event that was counted before, else remember it."""
        if record.trust is Trust.IMPORT:
            return None if self.imported.add(digest) else Fate.DUPLICATE
        return self.people.remember(known, (digest, content_digest(record)), record)

    def _move_visitor(self, view: SiteView, record: EventRecord, known: Known) -> None:
        event = recent_of(self.keys, view, known.visitor, record)
        tally = self._tally(record.site, audience_of(record))
        moved = take(known, view, event, tally, self.watermark_ms)
        if moved.is_behind:
            self.ledger.count(record.site, Fate.BEHIND)
        for claimed in moved.claims.values():
            assert claimed.sale is not None  # noqa: S101 - only conversions claim
            what = (record, claimed, claimed.sale)
            self._outbox.order(visitor_claim(self.keys, view, known.visitor, what))

    def _count_alone(self, view: SiteView, record: EventRecord) -> None:
        """Count an event that moves nobody's state: under its own values, with its own money."""
        tally = self._tally(record.site, audience_of(record))
        combo = view.combo(view.traffic_numbers(record.dims), view.client_numbers(record.dims))
        sale = sale_of(view, record)
        if sale is not None and sale.order_id:
            self._outbox.order(lone_claim(self.keys, record, sale))
            return
        for column, number in _lone_counts(view, record, sale):
            tally.add(record.occurred_at_ms, record.day, combo, column, number)

    def _refund(self, record: EventRecord) -> None:
        if record.order_id:
            self._outbox.refund(refund_claim(self.keys, record))
        else:
            self.ledger.count_unmatched(record.site, 1)

    # -- what other partitions say------------------------------------------------------------------

    def _told(self, derived: DerivedRecord) -> None:
        """Take what another partition says, unless it said so before."""
        mark = derived.mark
        if (mark.offset, mark.index) <= self._marks.get(mark.partition, (-1, -1)):
            return
        self._marks[mark.partition] = (mark.offset, mark.index)
        if derived.definition is not None:
            if self.definitions.apply(derived.definition, derived.received_at_ms):
                self._definitions_moved = True
                self._views.clear()
                for key in self.definitions.sites:
                    self._view(key)
        elif derived.order is not None:
            self._order(derived.order)
        elif derived.refund is not None:
            self._order(derived.refund)

    def _order(self, said: OrderClaim | RefundClaim) -> None:
        view = self._view(said.site)
        name = self._order_field(said)
        order = self._orders[name]
        tallies = {audience: self._tally(said.site, audience) for audience in Audience}
        waiting = unmatched(order)
        count(order, view, tallies, sign=-1)
        if isinstance(said, OrderClaim):
            claim(order, view, said)
        else:
            refund(order, said)
        count(order, view, tallies, sign=1)
        if unmatched(order) != waiting:
            self.ledger.count_unmatched(said.site, unmatched(order) - waiting)
        self._moves.orders[name] = order

    def _number(self, definition: DefinitionRecord) -> None:
        if self.partition != DEFINITION_PARTITION:
            return  # nobody puts one here; numbering it would contradict partition 0
        self._numbered += 1
        numbered = NumberedDefinition(
            number=self._numbered, layer=definition.layer, definitions=definition.definitions
        )
        self._outbox.definition(numbered)

    def _quarantine(self, read: Read) -> None:
        self.ledger.count("", Fate.QUARANTINED)
        said = {"reason": read.problem, "raw": read.raw[:QUARANTINED_BYTES_MAX].hex()}
        self._moves.quarantined[str(read.offset).encode()] = orjson.dumps(said)


ORDERS_CACHED_MAX = 5_000
"""Orders that a partition keeps decoded, at some 1 kB each: 160 MB for all 32."""


def _lone_counts(
    view: SiteView, record: EventRecord, sale: Sale | None
) -> Iterable[tuple[str, int]]:
    match record.type:
        case EventType.IMPRESSION:
            return [("impressions", 1)]
        case EventType.VIEW:
            return [("views", 1)]
        case EventType.CLICK:
            return [(view.click_column(record.name), 1)]
        case EventType.CONVERSION:
            assert sale is not None  # noqa: S101 - every conversion has one
            return sale_counts(view, sale)
