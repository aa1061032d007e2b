"""A batch as it is folded: what was read, what it has moved so far, what others must be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from consumers.fold import Tally, Where
from consumers.intake import Owner, event_digest, owner_of
from consumers.state import Order
from tracker.codec import UnreadableError, decode
from tracker.model.keys import PARTITIONS, Keys, owner_of_order
from tracker.model.record import (
    DerivedRecord,
    EventRecord,
    Mark,
    NumberedDefinition,
    OrderClaim,
    Record,
    RefundClaim,
)
from tracker.ports.log import LogRecord


@dataclass(frozen=True, slots=True)
class Read:
    """One record as read: what it says, or why it cannot be read.

    Of an event, whose state it moves and the digest of its id are worked out once, here.
    """

    offset: int
    raw: bytes
    record: Record | None
    problem: str = ""
    owner: Owner | None = None
    event: int = 0


def read_all(keys: Keys, records: Iterable[LogRecord]) -> list[Read]:
    """Decode a batch; what cannot be read keeps its place."""
    return [_read(keys, item) for item in records]


def _read(keys: Keys, item: LogRecord) -> Read:
    try:
        record = decode(item.raw)
    except UnreadableError as error:
        return Read(item.offset, item.raw, None, str(error))
    if isinstance(record, EventRecord):
        owner, event = owner_of(keys, record), event_digest(keys, record)
        return Read(item.offset, item.raw, record, owner=owner, event=event)
    return Read(item.offset, item.raw, record)


@dataclass(slots=True)
class Moves:
    """What a batch has moved so far, beside the visitors."""

    tallies: dict[Where, Tally] = field(default_factory=dict)
    orders: dict[bytes, Order] = field(default_factory=dict)
    quarantined: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Derived:
    """A record for another partition, to be appended before this batch is committed."""

    partition: int
    record: DerivedRecord


class Outbox:
    """What a batch tells other partitions, each with the mark by which they know it again."""

    def __init__(self, keys: Keys, partition: int, log_id: str) -> None:
        self._keys = keys
        self._partition = partition
        self._log_id = log_id
        self._derived: list[Derived] = []
        self._at = (0, 0)  # offset and received time of the record that is being folded
        self._index = 0

    def begin(self, offset: int, received_ms: int) -> None:
        """Say which record is being folded: what follows is marked with it."""
        self._at = (offset, received_ms)
        self._index = 0

    def order(self, said: OrderClaim) -> None:
        """Tell the owner of an order about a copy of it."""
        target = self._keys.partition(said.site, owner_of_order(said.order_id))
        self._put(target, order=said)

    def refund(self, said: RefundClaim) -> None:
        """Tell the owner of an order about a refund of it."""
        target = self._keys.partition(said.site, owner_of_order(said.order_id))
        self._put(target, refund=said)

    def definition(self, numbered: NumberedDefinition) -> None:
        """Tell every partition about a numbered definition."""
        for target in range(PARTITIONS):
            self._put(target, definition=numbered)

    def take(self) -> Sequence[Derived]:
        """Return everything put in since the last time, in order."""
        derived, self._derived = self._derived, []
        return derived

    def _put(
        self,
        target: int,
        *,
        order: OrderClaim | None = None,
        refund: RefundClaim | None = None,
        definition: NumberedDefinition | None = None,
    ) -> None:
        offset, received_ms = self._at
        record = DerivedRecord(
            mark=Mark(self._partition, offset, self._index),
            log_id=self._log_id,
            received_at_ms=received_ms,
            order=order,
            refund=refund,
            definition=definition,
        )
        self._index += 1
        self._derived.append(Derived(target, record))
