"""Times as senders write them, the correction of their clocks, and the day of an instant.

Pure functions of what they are given; the clock is read elsewhere.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from tracker.model.window import DAY_MS, MINUTE_MS, SECOND_MS, day_of

SKEW_MS = 2 * SECOND_MS
"""Below this, network time and a clock's error cannot be told apart."""
FUTURE_MS = 5 * MINUTE_MS
"""What a corrected clock may still be ahead."""
SECRET_MAX_AGE_MS = 90 * DAY_MS
"""Servers that know the secret key may send this late, whatever the public limit is."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH_MS_MAX = 2**53
"""Every JSON number up to here is exact."""
_STABLE_OFFSETS_FROM_MS = 3 * 365 * DAY_MS
"""Since 1973 every zone's offset has been a multiple of 15 minutes (Liberia was the last)."""
_QUARTER_MS = 15 * MINUTE_MS
_TEXT_MAX = 40


def read_epoch_ms(value: object) -> int | None:
    """Return epoch milliseconds given as a number or its digits, None for anything else."""
    kind = type(value)
    if kind is int:
        moment: int = value  # type: ignore[assignment]
    elif kind is float:
        number: float = value  # type: ignore[assignment]
        if not 0 <= number <= _EPOCH_MS_MAX:  # also when it is NaN
            return None
        moment = int(number)
    elif kind is str:
        text = str(value).strip()
        if not (text.isascii() and text.isdecimal()) or len(text) > 16:
            return None
        moment = int(text)
    else:
        return None
    return moment if 0 <= moment <= _EPOCH_MS_MAX else None


def read_moment(value: object) -> int | None:
    """Return the instant of an ISO 8601 text with a zone, or of epoch milliseconds, in ms."""
    if type(value) is not str:
        return read_epoch_ms(value)
    text = value.strip()
    if len(text) > _TEXT_MAX:
        return None
    if text.isascii() and text.isdecimal():
        return read_epoch_ms(text)
    if len(text) > 6 and text[-6] == " ":  # a `+` that nobody escaped in a query
        text = f"{text[:-6]}+{text[-5:]}"
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        since = (moment - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        return None
    return since if since >= 0 else None


def correct_skew(occurred_at_ms: int, sent_at_ms: int | None, received_at_ms: int) -> int:
    """Return `occurred_at_ms` on our clock, when the sender's differs by more than SKEW_MS."""
    if sent_at_ms is None:
        return occurred_at_ms
    skew = received_at_ms - sent_at_ms
    return occurred_at_ms + skew if abs(skew) > SKEW_MS else occurred_at_ms


def local_day(t_ms: int, timezone: str) -> int:
    """Return the day (since 1970-01-01) of `t_ms` in `timezone`, quickly for recent instants."""
    if t_ms < _STABLE_OFFSETS_FROM_MS:
        return day_of(t_ms, ZoneInfo(timezone))
    return _day_of_quarter(t_ms // _QUARTER_MS, timezone)


@lru_cache(maxsize=4_096)
def _day_of_quarter(quarter: int, timezone: str) -> int:
    return day_of(quarter * _QUARTER_MS, ZoneInfo(timezone))
