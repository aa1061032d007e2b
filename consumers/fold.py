"""The words that all folds share: combos, the tally, and what a batch becomes.

A **combo** is where an event counts: a tuple of value numbers, first the site's own grain, then
one for each dimension of the site; `SKIP` leaves a dimension out. A **tally** adds up counts by
(bucket, combo, column) for a batch; `consumers.counters` turns it into pages. Nothing here knows
a clock, a store or a log.
"""

from __future__ import annotations

from typing import Protocol

from tracker.model.cell import Audience, gap_column, last_column
from tracker.model.window import SIZE_MS, SUB_DAY, Granularity, bucket_of, is_kept

LATENESS_MS = 3_600_000
"""How far behind the newest event of its visitor an event may lie and still be sorted in."""

RECENT_MAX = 256
"""Events of one visitor that are kept sortable. More within `LATENESS_MS` is no person."""

LOOKBACK_MS = 30 * 86_400_000
"""How long before a conversion a touch may lie and still be credited."""

SKIP = -1
Combo = tuple[int, ...]
Where = tuple[str, Audience]  # a site and an audience

_QUARTER_MS = SIZE_MS[Granularity.QUARTER]
_FINEST_MS = SIZE_MS[Granularity.SECONDS]


class Sink(Protocol):
    """Where a visitor's step puts what it counts."""

    def add(self, t_ms: int, day: int, combo: Combo, column: str, count: int = 1) -> None:
        """Count at `t_ms`, in every granularity that still keeps that time."""
        ...

    def add_at(
        self, granularity: Granularity, at: tuple[int, int], combo: Combo, column: str
    ) -> None:
        """Count one at (t_ms, day) in this granularity alone."""
        ...


CellKey = tuple[Granularity, int, int, Combo, str]
"""(finest granularity, bucket, day, combo, column); coarser buckets follow from it."""


class Tally:
    """Counts of one site and audience at one horizon; also the difference of two runs.

    `rolled` holds counts that go into their granularity and all coarser ones, `single` counts of
    one granularity alone. The horizon decides which granularities still keep a time.
    """

    __slots__ = ("horizon_ms", "rolled", "single")

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self.rolled: dict[CellKey, int] = {}
        self.single: dict[CellKey, int] = {}

    def add(self, t_ms: int, day: int, combo: Combo, column: str, count: int = 1) -> None:
        """Count at `t_ms`, in every granularity that still keeps that time."""
        granularity, bucket = self._finest(t_ms, day)
        key = (granularity, bucket, day, combo, column)
        self.rolled[key] = self.rolled.get(key, 0) + count

    def add_at(
        self, granularity: Granularity, at: tuple[int, int], combo: Combo, column: str
    ) -> None:
        """Count one at (t_ms, day) in this granularity alone."""
        t_ms, day = at
        if not is_kept(granularity, t_ms, self.horizon_ms):
            return
        key: CellKey = (granularity, bucket_of(granularity, t_ms, day), day, combo, column)
        self.single[key] = self.single.get(key, 0) + 1

    def _finest(self, t_ms: int, day: int) -> tuple[Granularity, int]:
        for granularity in SUB_DAY:
            if is_kept(granularity, t_ms, self.horizon_ms):
                return granularity, t_ms // SIZE_MS[granularity]
        return Granularity.DAY, day

    def merge(self, other: Tally, sign: int = 1) -> None:
        """Add `other` (of the same site and audience), or take it away."""
        for mine, theirs in ((self.rolled, other.rolled), (self.single, other.single)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + sign * count


class Nothing:
    """A sink for runs that only move state."""

    def add(self, t_ms: int, day: int, combo: Combo, column: str, count: int = 1) -> None:
        """Count nothing."""

    def add_at(
        self, granularity: Granularity, at: tuple[int, int], combo: Combo, column: str
    ) -> None:
        """Count nothing."""


NOTHING = Nothing()


Moment = tuple[int, int]  # (t_ms, day)


def count_again(
    sink: Sink, combo: Combo, names: tuple[str, str], previous: Moment | None, now: Moment
) -> None:
    """Count a visitor under unique `names[1]` at `now`, who was last there at `previous`.

    `names` are the unique's names then and now (a funnel's differ in the elapsed class). The
    meaning of the columns is in `tracker.model.cell`.
    """
    t_ms, day = now
    if previous is None:
        sink.add(t_ms, day, combo, last_column(names[1]))
        sink.add_at(Granularity.QUARTER, now, combo, gap_column(names[1], None))
        sink.add_at(Granularity.DAY, now, combo, gap_column(names[1], None))
        return
    before_ms, before_day = previous
    if names[0] == names[1] and before_day == day and before_ms // _FINEST_MS == t_ms // _FINEST_MS:
        return
    sink.add(before_ms, before_day, combo, last_column(names[0]), -1)
    sink.add(t_ms, day, combo, last_column(names[1]))
    quarters = t_ms // _QUARTER_MS - before_ms // _QUARTER_MS
    if quarters > 0:
        sink.add_at(Granularity.QUARTER, now, combo, gap_column(names[1], quarters))
    if day > before_day:
        sink.add_at(Granularity.DAY, now, combo, gap_column(names[1], day - before_day))
