"""What was not taken, counted until it stands in the log.

`received = accepted + rejected + shed` must add up for whoever sends events. Refusals store no
event; their numbers go into the log once a second, as a marker in partition 0. What was refused
in the last second before a kill -9 may be missing, and the documentation says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Final

from tracker.codec import encode
from tracker.collect.parse import Refused
from tracker.errors import TrackerError
from tracker.model.clock import Clock
from tracker.model.record import MarkerRecord
from tracker.ports.log import LogWriter, Unappended

MARKER_PARTITION: Final = 0
FLUSH_AFTER_S: Final = 1.0
FLUSH_DEADLINE_S: Final = 5.0
REDIRECT_LOST: Final = "redirect_lost"
"""Shed: a click whose visitor was redirected, but which the log did not take."""

Counts = Counter[tuple[str, str]]
"""(site, reason) → events. Sites are configured ones or "", reasons are a closed set: bounded."""


def _nested(counts: Counts) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (site, reason), count in sorted(counts.items()):
        nested.setdefault(site, {})[reason] = count
    return nested


class Refusals:
    """Counts of what was rejected and shed, since the last marker and since the start."""

    def __init__(self) -> None:
        self._rejected: Counts = Counter()
        self._shed: Counts = Counter()
        self.rejected_total: Counts = Counter()
        self.shed_total: Counts = Counter()

    def reject(self, refused: Refused) -> None:
        """Count events that were bad input."""
        key = (refused.site, str(refused.rejection.reason))
        self._rejected[key] += refused.count
        self.rejected_total[key] += refused.count

    def shed(self, site: str, reason: str, count: int = 1) -> None:
        """Count good events that could not be stored now."""
        key = (site, str(reason))  # a plain text also of an enum: it becomes a key in JSON
        self._shed[key] += count
        self.shed_total[key] += count

    async def flush(self, writer: LogWriter, clock: Clock) -> bool:
        """Append what was counted since the last time; tell whether nothing is left.

        A failed append leaves the counts for the next one.
        """
        rejected, shed = self._rejected, self._shed
        if not rejected and not shed:
            return True
        self._rejected, self._shed = Counter(), Counter()
        marker = MarkerRecord(
            received_at_ms=clock.now_ms(), rejected=_nested(rejected), shed=_nested(shed)
        )
        try:
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                await writer.append([Unappended(MARKER_PARTITION, encode(marker))])
        except (TrackerError, TimeoutError):
            self._rejected.update(rejected)
            self._shed.update(shed)
            return False
        return True

    async def run(self, writer: LogWriter, clock: Clock, stop: asyncio.Event) -> None:
        """Flush every FLUSH_AFTER_S, and a last time when `stop` is set.

        It is stopped rather than cancelled: nobody knows whether a cancelled append arrived.
        """
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), FLUSH_AFTER_S)
            await self.flush(writer, clock)
        await self.flush(writer, clock)  # what was counted while the last one was under way
