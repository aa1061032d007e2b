"""The range that an answer is about: as asked for, snapped to buckets, and how people are counted.

Rolling windows end now. Other ranges are half-open. Both are snapped outwards to the finest
bucket that is kept for the age of their beginning, and further where people are counted in a range
of the past: there only quarter hours and days know who had been there before (`tracker.model.cell`
has the layout). Pure: the present is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from tracker.errors import Code, TrackerError
from tracker.model.definition import Site, parse_duration_ms
from tracker.model.window import (
    DAY_MS,
    SIZE_MS,
    Cover,
    Granularity,
    Piece,
    cover,
    day_of,
    day_start_ms,
    finest_kept,
)
from tracker.query.known import short

DEFAULT_WINDOW = "24h"

RANGE_DAYS_MAX = 36_600
"""A hundred years: 1,144 containers of days, which are read in some tenths of a second."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_MS = 253_370_764_800_000  # 9999-01-01: the calendar ends a year later
_DIGITS_MAX = 15


class People(StrEnum):
    """How distinct visitors are counted over a range."""

    LAST = "last"  # it ends now: by where each was last seen
    GAPS = "gaps"  # it is past: who had not been there since it began


@dataclass(frozen=True, slots=True)
class Asked:
    """A range in the words of the request; an empty text was not given."""

    window: str = ""
    begin: str = ""
    end: str = ""
    tz: str = ""


@dataclass(frozen=True, slots=True)
class Range:
    """A range and the buckets that make it up.

    `pieces` add up to every count. `people` and `people_pieces` say how and from which buckets
    visitors are counted; with GAPS there is one piece, and its first bucket begins the range.
    """

    from_ms: int
    to_ms: int
    pieces: tuple[Piece, ...]
    people: People
    people_pieces: tuple[Piece, ...]
    is_rolling: bool = False  # a window: it is over by definition

    def buckets(self, beside: Piece | None = None) -> Iterable[tuple[Granularity, int]]:
        """Return every bucket that an answer needs, each once; `beside` is a piece more."""
        pieces = [*self.pieces, *self.people_pieces, *([beside] if beside else [])]
        return dict.fromkeys(
            (piece.granularity, bucket)
            for piece in pieces
            for bucket in range(piece.first, piece.stop)
        )


def resolve(asked: Asked, site: Site, now_ms: int, *, with_people: bool) -> Range:
    """Return the range that `asked` means for `site` at `now_ms`.

    `with_people` says that distinct visitors are asked for, which may snap it further.
    Errors: TrackerError INVALID, which says what would be understood.
    """
    zone = _zone(asked.tz, site)
    is_foreign = bool(asked.tz) and asked.tz != site.timezone
    if is_foreign and with_people:
        raise TrackerError(
            Code.INVALID,
            f"Distinct visitors are counted by the days of the site's zone, {site.timezone}, and "
            f"of no other: leave tz= out, or ask only for metrics that count events.",
        )
    begin_ms, end_ms, is_rolling = _bounds(asked, zone, now_ms)
    finest = finest_kept(begin_ms, now_ms)
    if is_foreign and finest is Granularity.DAY:
        raise TrackerError(
            Code.INVALID,
            f"Of a time so long ago only the days of the site's zone, {site.timezone}, are kept: "
            "leave tz= out, or begin within the last 45 days.",
        )
    covered = cover(begin_ms, end_ms, finest, site.zone)
    if is_rolling or covered.to_ms >= now_ms:
        return _range(covered, People.LAST, covered.pieces, is_rolling=is_rolling)
    if not with_people:
        return _range(covered, People.GAPS, ())
    if not _is_whole_days(covered):
        coarse = Granularity.QUARTER
        if finest_kept(covered.from_ms // SIZE_MS[coarse] * SIZE_MS[coarse], now_ms) is (
            Granularity.DAY
        ):
            coarse = Granularity.DAY
        covered = cover(begin_ms, end_ms, coarse, site.zone)
        if covered.to_ms >= now_ms:
            return _range(covered, People.LAST, covered.pieces)
    return _range(covered, People.GAPS, (_gap_piece(covered),))


def inwards(begin_ms: int, end_ms: int, site: Site, now_ms: int) -> Piece | None:
    """Return the quarters, or the days, that lie wholly in a range of the past; None without any.

    For counting the people of a range that may not be made longer.
    """
    size = SIZE_MS[Granularity.QUARTER]
    first, stop = -(-begin_ms // size), end_ms // size
    if finest_kept(first * size, now_ms) is not Granularity.DAY:
        return Piece(Granularity.QUARTER, first, stop) if first < stop else None
    first, stop = day_of(begin_ms, site.zone), day_of(end_ms, site.zone)
    if day_start_ms(first, site.zone) < begin_ms:
        first += 1
    return Piece(Granularity.DAY, first, stop) if first < stop else None


def iso(t_ms: int) -> str:
    """Return an instant as answers print it: ISO 8601 in UTC, to the millisecond."""
    moment = _EPOCH + timedelta(milliseconds=t_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _range(
    covered: Cover, people: People, people_pieces: Sequence[Piece], *, is_rolling: bool = False
) -> Range:
    return Range(
        covered.from_ms, covered.to_ms, covered.pieces, people, tuple(people_pieces), is_rolling
    )


def _is_whole_days(covered: Cover) -> bool:
    return all(piece.granularity is Granularity.DAY for piece in covered.pieces)


def _gap_piece(covered: Cover) -> Piece:
    if _is_whole_days(covered):
        return covered.pieces[0]
    size = SIZE_MS[Granularity.QUARTER]
    return Piece(Granularity.QUARTER, covered.from_ms // size, -(-covered.to_ms // size))


def _bounds(asked: Asked, zone: ZoneInfo, now_ms: int) -> tuple[int, int, bool]:
    if asked.window and (asked.begin or asked.end):
        raise TrackerError(Code.INVALID, "Give either window=, or from= and to=, not both.")
    if asked.end and not asked.begin:
        raise TrackerError(Code.INVALID, "to= needs from=: when does the range begin?")
    if not asked.begin:
        text = asked.window or DEFAULT_WINDOW
        length_ms = parse_duration_ms(text)
        if not length_ms or length_ms > RANGE_DAYS_MAX * DAY_MS:
            raise TrackerError(
                Code.INVALID,
                f"window={short(text)} is no time like 5m, 1h, 24h or 7d, of at most 100 years.",
            )
        return max(0, now_ms - length_ms), now_ms, True
    begin_ms = _moment("from", asked.begin, zone)
    end_ms = _moment("to", asked.end, zone) if asked.end else now_ms
    if begin_ms >= end_ms:
        raise TrackerError(
            Code.INVALID,
            f"The range is empty: it begins at {iso(begin_ms)} and ends at {iso(end_ms)}. "
            "to= is the first moment after the range.",
        )
    if end_ms - begin_ms > RANGE_DAYS_MAX * DAY_MS:
        raise TrackerError(Code.INVALID, "A range may span 100 years.")
    return begin_ms, end_ms, False


def _moment(name: str, text: str, zone: ZoneInfo) -> int:
    """Return the instant that `text` names; without a zone of its own it is one of `zone`."""
    text = text.strip()
    found: int | None = None
    try:
        if text.isascii() and text.isdecimal() and len(text) > 8:
            found = int(text) if len(text) <= _DIGITS_MAX else None
        elif len(text) == 10:
            found = day_start_ms((date.fromisoformat(text) - date(1970, 1, 1)).days, zone)
        elif len(text) <= 40:
            # A `+` that nobody escaped in a query has become a blank.
            moment = datetime.fromisoformat(
                f"{text[:-6]}+{text[-5:]}" if text[-6:-5] == " " and "T" in text else text
            )
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=zone)
            found = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        found = None
    if found is None or not 0 <= found <= _LATEST_MS:
        raise TrackerError(
            Code.INVALID,
            f"{name}={short(text)} is no time between 1970 and 9998 like 2026-01-31, "
            "2026-01-31T12:00, 2026-01-31T12:00:00Z, or milliseconds since 1970.",
        )
    return found


def _zone(name: str, site: Site) -> ZoneInfo:
    if not name:
        return site.zone
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise TrackerError(
            Code.INVALID,
            f"tz={short(name)} is no time zone of the IANA database, like Europe/Berlin.",
        ) from None
