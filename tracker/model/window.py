"""Time cut into buckets, and ranges put together from them.

Buckets of ten seconds and a minute are cut in UTC; a quarter hour is the same in every zone in use
today; a day is the site's own. A record carries its day number, so that folding needs no zone
data; only reading turns days back into instants, here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_EPOCH = date(1970, 1, 1)


class Granularity(StrEnum):
    """How long a bucket is; finest first."""

    SECONDS = "10s"
    MINUTE = "1m"
    QUARTER = "15m"
    DAY = "1d"


SIZE_MS = {
    Granularity.SECONDS: 10 * SECOND_MS,
    Granularity.MINUTE: MINUTE_MS,
    Granularity.QUARTER: 15 * MINUTE_MS,
    Granularity.DAY: DAY_MS,
}
KEEP_MS = {
    Granularity.SECONDS: 2 * HOUR_MS,
    Granularity.MINUTE: 2 * DAY_MS,
    Granularity.QUARTER: 45 * DAY_MS,
}
"""How long after its end a bucket is kept, in the log's time. Days are kept for good."""

SUB_DAY = (Granularity.SECONDS, Granularity.MINUTE, Granularity.QUARTER)


def bucket_of(granularity: Granularity, t_ms: int, day: int) -> int:
    """Return the number of the bucket that holds `t_ms`; `day` is the day in the site's zone."""
    if granularity is Granularity.DAY:
        return day
    return t_ms // SIZE_MS[granularity]


def is_kept(granularity: Granularity, t_ms: int, horizon_ms: int) -> bool:
    """Tell whether the bucket that holds `t_ms` is still kept when the log stands at `horizon_ms`.

    The rule is about whole buckets: it changes at a bucket's end, never inside it.
    """
    if granularity is Granularity.DAY:
        return True
    size = SIZE_MS[granularity]
    return (t_ms // size + 1) * size + KEEP_MS[granularity] > horizon_ms


def day_of(t_ms: int, zone: ZoneInfo) -> int:
    """Return the day (since 1970-01-01) that `t_ms` lies in, in `zone`."""
    return (datetime.fromtimestamp(t_ms / 1000, zone).date() - _EPOCH).days


def day_start_ms(day: int, zone: ZoneInfo) -> int:
    """Return the first instant of `day` in `zone`, ms since the epoch."""
    start = _EPOCH + timedelta(days=day)
    local = datetime(start.year, start.month, start.day, tzinfo=zone)
    return int(local.astimezone(UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of buckets of one granularity: first ≤ bucket < stop."""

    granularity: Granularity
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cover:
    """A range snapped outwards to buckets, and the buckets that make it up.

    Units: `from_ms` ≤ t < `to_ms`, ms since the epoch.
    """

    from_ms: int
    to_ms: int
    pieces: tuple[Piece, ...]


def finest_kept(t_ms: int, horizon_ms: int) -> Granularity:
    """Return the finest granularity whose bucket at `t_ms` is still kept."""
    for granularity in SUB_DAY:
        if is_kept(granularity, t_ms, horizon_ms):
            return granularity
    return Granularity.DAY


def cover(from_ms: int, to_ms: int, finest: Granularity, zone: ZoneInfo) -> Cover:
    """Snap [from_ms, to_ms) outwards to `finest` and cover it with as few buckets as possible.

    Whole days inside are taken as days, whole quarters as quarters, and so on: every granularity
    holds all events of its buckets, so the pieces add up.
    """
    if finest is Granularity.DAY:
        first, last = day_of(from_ms, zone), day_of(max(from_ms, to_ms - 1), zone)
        piece = Piece(Granularity.DAY, first, last + 1)
        return Cover(day_start_ms(first, zone), day_start_ms(last + 1, zone), (piece,))
    size = SIZE_MS[finest]
    start, stop = from_ms // size * size, -(-to_ms // size) * size
    stop = max(stop, start + size)
    return Cover(start, stop, tuple(_pieces(start, stop, finest, zone)))


def _pieces(start: int, stop: int, finest: Granularity, zone: ZoneInfo) -> Iterator[Piece]:
    first_day = day_of(start, zone)
    if day_start_ms(first_day, zone) < start:
        first_day += 1
    last_day = day_of(stop, zone)
    if finest is not Granularity.SECONDS or last_day - first_day >= 1:
        days_start = day_start_ms(first_day, zone)
        days_stop = day_start_ms(last_day, zone)
        if last_day > first_day:
            yield from _sub_day(start, days_start, finest)
            yield Piece(Granularity.DAY, first_day, last_day)
            yield from _sub_day(days_stop, stop, finest)
            return
    yield from _sub_day(start, stop, finest)


def _sub_day(start: int, stop: int, finest: Granularity) -> Iterator[Piece]:
    """Cover [start, stop) with quarters inside, minutes around them, tens of seconds outside."""
    if start >= stop:
        return
    coarser = [g for g in SUB_DAY if SIZE_MS[g] > SIZE_MS[finest]]
    size = SIZE_MS[finest]
    if not coarser:
        yield Piece(finest, start // size, stop // size)
        return
    step = SIZE_MS[coarser[0]]
    inner_start, inner_stop = -(-start // step) * step, stop // step * step
    if inner_start >= inner_stop:
        yield Piece(finest, start // size, stop // size)
        return
    if start < inner_start:
        yield Piece(finest, start // size, inner_start // size)
    yield from _sub_day(inner_start, inner_stop, coarser[0])
    if inner_stop < stop:
        yield Piece(finest, inner_stop // size, stop // size)
