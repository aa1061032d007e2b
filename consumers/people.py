"""A partition's visitors: which are in memory, where they are stored, and the ids they have sent.

Visitors are stored in one container a period of the log's time, by when they were last moved;
when nobody can need a period any more its container goes as a whole. Whether a visitor still
exists is decided by the log's time at each record, never by when the container really went.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from consumers.ledger import Fate
from consumers.sites import SiteView
from consumers.state import (
    IDS_MAX,
    Visitor,
    is_period_kept,
    key_bytes,
    last_period,
    pack,
    period_of,
    unpack_visitor,
)
from consumers.visitors import Known
from tracker.model.cell import VISITORS
from tracker.model.record import EventRecord, Trust
from tracker.model.window import DAY_MS, MINUTE_MS

PEOPLE_CACHED_MAX = 1_500
"""Visitors that a partition keeps decoded, at some 5 kB each: 240 MB for all 32."""

ID_MEMORY_MS = {Trust.PUBLIC: 3 * DAY_MS, Trust.SECRET: 90 * DAY_MS}
"""How long an id is remembered after it was received: as long as a sender may retry (C4)."""


@dataclass(slots=True)
class Entry:
    """One visitor in memory; `period` is that of the container that holds it, None for none."""

    raw: bytes | None
    known: Known | None
    period: int | None


class People:
    """The visitors of one partition."""

    def __init__(self, periods: tuple[int, int] | None) -> None:
        """Hold nobody yet; `periods` are the oldest and the newest container that may exist."""
        self._oldest: int | None = periods[0] if periods else None
        self._newest = periods[1] if periods else 0
        self._entries: dict[int, Entry] = {}
        self._moved: dict[int, int] = {}  # digest → period of the record that moved it

    def missing(self, digests: Iterable[int], horizon_ms: int) -> dict[str, list[bytes]]:
        """Return the fields to load before these visitors can be folded, by container."""
        fields = [key_bytes(digest) for digest in digests if digest not in self._entries]
        if not fields or self._oldest is None:
            return {}
        periods = range(self._oldest, max(period_of(horizon_ms), self._newest) + 1)
        return {_container(period): fields for period in periods}

    def absorb(
        self,
        asked: Mapping[str, Sequence[bytes]],
        loaded: Mapping[str, Mapping[bytes, bytes]],
    ) -> None:
        """Take in what `missing` asked for."""
        for container in asked:
            if not container.startswith(VISITORS):
                continue
            period = int(container.rpartition(":")[2])
            for field, raw in loaded.get(container, {}).items():
                self._entries[int.from_bytes(field, "big")] = Entry(raw, None, period)

    def get(self, digest: int, horizon_ms: int, view: SiteView) -> Known:
        """Return a visitor, a new one when nobody is known under `digest` any more."""
        entry = self._entries.pop(digest, None) or Entry(None, None, None)
        self._entries[digest] = entry  # the newest use last
        if not self._exists(digest, entry, horizon_ms):
            entry.known, entry.raw = Known.of(Visitor(), view), None
        elif entry.known is None:
            assert entry.raw is not None  # noqa: S101 - stored, so it has bytes
            entry.known, entry.raw = Known.of(unpack_visitor(entry.raw), view), None
        assert entry.known is not None  # noqa: S101 - set above or before
        self._moved[digest] = period_of(horizon_ms)
        return entry.known

    def _exists(self, digest: int, entry: Entry, horizon_ms: int) -> bool:
        """Tell whether a visitor is stored, or about to be, in a container that is still kept."""
        period = self._moved.get(digest, entry.period)
        if period is None:
            return False
        least = entry.known.period_min if entry.known else period
        return is_period_kept(max(period, least), horizon_ms)

    def remember(self, known: Known, event: tuple[int, int], record: EventRecord) -> Fate | None:
        """Return DUPLICATE or CONFLICT for an id that is remembered, else remember it.

        `event` is the digest of the id and the checksum of the content.
        """
        digest, content = event
        minute = record.received_at_ms // MINUTE_MS
        ids = known.ids
        while ids and next(iter(ids.values()))[1] < minute:
            del ids[next(iter(ids))]
        earlier = ids.get(digest)
        if earlier is not None and earlier[1] >= minute:
            return Fate.DUPLICATE if earlier[0] == content else Fate.CONFLICT
        forget = minute + ID_MEMORY_MS[record.trust] // MINUTE_MS
        ids[digest] = (content, forget)
        # A server's ids outlive the visitor's other state: its container is one that stays so long.
        known.period_min = max(known.period_min, last_period(forget))
        if len(ids) > IDS_MAX:
            del ids[next(iter(ids))]
        return None

    def puts(self) -> dict[str, dict[bytes, bytes | None]]:
        """Return the moved visitors' absolute values, and begin anew."""
        puts: dict[str, dict[bytes, bytes | None]] = {}
        for digest, moved_in in self._moved.items():
            entry = self._entries[digest]
            assert entry.known is not None  # noqa: S101 - only loaded visitors move
            period = max(moved_in, entry.known.period_min)
            field = key_bytes(digest)
            if entry.period is not None and entry.period != period:
                puts.setdefault(_container(entry.period), {})[field] = None
            puts.setdefault(_container(period), {})[field] = pack(entry.known.stored())
            entry.period = period
            self._newest = max(self._newest, period)
            self._oldest = period if self._oldest is None else min(self._oldest, period)
        self._moved.clear()
        return puts

    def expired(self, horizon_ms: int) -> list[str]:
        """Return the containers that nobody can need any more."""
        gone = []
        while self._oldest is not None and not is_period_kept(self._oldest, horizon_ms):
            gone.append(_container(self._oldest))
            self._oldest += 1
        return gone

    def periods(self) -> tuple[int, int] | None:
        """Return the oldest and the newest container that may exist."""
        return None if self._oldest is None else (self._oldest, self._newest)

    def trim(self) -> None:
        """Forget those longest unused; to be called between batches, when all are stored."""
        surplus = len(self._entries) - PEOPLE_CACHED_MAX
        for digest in list(self._entries)[: max(0, surplus)]:
            del self._entries[digest]


def _container(period: int) -> str:
    return f"{VISITORS}:{period}"
