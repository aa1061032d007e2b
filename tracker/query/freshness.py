"""How far an answer reaches: `as_of` and `complete`, never better than the truth.

Positions are taken before the ends of the log, so that a record appended in between can only make
an answer look older than it is. Nothing here reads the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracker.errors import Code, TrackerError
from tracker.model.clock import Clock
from tracker.ports.log import LogReader
from tracker.ports.store import Meta
from tracker.query.mirror import Mirror
from tracker.query.ranges import Range, iso


@dataclass(frozen=True, slots=True)
class Freshness:
    """Where the counters stood when an answer was computed.

    Units: `as_of_ms` in ms since the epoch, None when some partition was read but holds nothing
    live yet; `lags` in records, by partition.
    """

    as_of_ms: int | None
    is_caught_up: bool
    lags: tuple[int, ...]
    epoch: int  # the sum of all owner epochs: it grows whenever any partition changes hands
    quarantined: int  # records set aside, of the site or of no known one
    is_stale: bool  # the store does not answer: these are the last known numbers

    def is_complete(self, span: Range) -> bool:
        """Tell whether nothing that reached the log can still change the range.

        A rolling window ends now, so it is complete when everything was read.
        """
        if self.quarantined or self.as_of_ms is None:
            return False
        return self.is_caught_up if span.is_rolling else self.as_of_ms >= span.to_ms

    def stamp(self) -> dict[str, object]:
        """Return what every answer says of its freshness."""
        told: dict[str, object] = {
            "as_of": None if self.as_of_ms is None else iso(self.as_of_ms),
            "epoch": self.epoch,
        }
        return told | {"stale": True} if self.is_stale else told

    def stamp_range(self, span: Range) -> dict[str, object]:
        """Return what an answer about a range says of its freshness."""
        return {
            **self.stamp(),
            "complete": self.is_complete(span),
            "from": iso(span.from_ms),
            "to": iso(span.to_ms),
        }


def read_freshness(mirror: Mirror, reader: LogReader, clock: Clock, site: str) -> Freshness:
    """Return how fresh what `mirror` holds at this instant is.

    Errors: TrackerError LOG_CHANGED when the store was built from another log.
    """
    metas = mirror.metas
    now_ms = clock.now_ms()
    ends = reader.ends()
    for meta in metas:
        if meta.log_id not in ("", reader.identity):
            raise TrackerError(
                Code.LOG_CHANGED,
                "The counters were built from another log than the one that is read now: go back "
                "to that log, or run `tracker rebuild`.",
            )
    return Freshness(
        as_of_ms=_as_of(metas, ends, now_ms),
        is_caught_up=all(meta.position == end for meta, end in zip(metas, ends, strict=True)),
        lags=tuple(max(0, end - meta.position) for meta, end in zip(metas, ends, strict=True)),
        epoch=sum(meta.epoch for meta in metas),
        quarantined=_quarantined(mirror, site),
        is_stale=mirror.is_stale(),
    )


def _as_of(metas: Sequence[Meta], ends: Sequence[int], now_ms: int) -> int | None:
    lagging = [meta for meta, end in zip(metas, ends, strict=True) if meta.position != end]
    if not lagging:
        return now_ms
    oldest_ms = min(meta.watermark_ms for meta in lagging)
    return min(oldest_ms, now_ms) if oldest_ms else None


def _quarantined(mirror: Mirror, site: str) -> int:
    """Count records set aside; one that could not be read may be of any site and of any time."""
    count = 0
    for ledger in mirror.ledgers().values():
        for key in {site, ""}:
            found = ledger.get(key, {}).get("quarantined", 0)
            count += found if isinstance(found, int) else 0
    return count
