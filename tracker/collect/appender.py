"""From admitted events to durable records: stamps the producer, picks the partition, appends.

The log gathers concurrent appends into one sync, so nothing is gathered here. What is bounded
here is how much may wait, and for how long.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from tracker.codec import encode_stamped
from tracker.collect.admit import partition_of
from tracker.errors import Code, TrackerError
from tracker.model.keys import Keys
from tracker.model.record import EventRecord
from tracker.ports.log import LogWriter, Unappended

APPEND_DEADLINE_S: Final = 5.0
"""A sync takes 0.3 s on a bad disk; after this the outcome is unknown and the client is told."""
WAITING_BYTES_MAX: Final = 64 * 2**20
"""Half a second of 250,000 events of 500 bytes; above it a request is shed, not queued."""
REDIRECT_WAIT_S: Final = 0.05
REDIRECTS_MAX: Final = 10_000
"""Redirected clicks that may wait for the log after their answer: some 10 MB."""


class Appender:
    """The one way of events into the log.

    Records of this process carry its session and a sequence. Both are stamped in the same turn
    of the event loop in which the writer queues them, so that the sequence grows in log order.
    """

    def __init__(self, writer: LogWriter, keys: Keys) -> None:
        self._writer = writer
        self._keys = keys
        self._producer = secrets.token_hex(8)
        self._sequence = 0
        self._waiting_bytes = 0
        self._clicks: set[asyncio.Task[bool]] = set()
        self.appended = 0  # records, for the metrics

    async def append(self, events: Sequence[EventRecord]) -> None:
        """Make `events` durable.

        Errors: TrackerError LOG_UNAVAILABLE or LOG_FULL; some of them may be durable then.
        """
        records = [self._stamped(event) for event in events]
        size = sum(len(record.raw) for record in records)
        if self._waiting_bytes + size > WAITING_BYTES_MAX:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"{self._waiting_bytes} bytes of events already wait for the log: send them again.",
            )
        self._waiting_bytes += size
        try:
            async with asyncio.timeout(APPEND_DEADLINE_S):
                await self._writer.append(records)
        except TimeoutError as error:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"The log did not answer within {APPEND_DEADLINE_S:.0f} s: send the events again.",
            ) from error
        finally:
            self._waiting_bytes -= size
        self.appended += len(records)

    def _stamped(self, event: EventRecord) -> Unappended:
        self._sequence += 1
        raw = encode_stamped(event, self._producer, self._sequence)
        return Unappended(partition_of(self._keys, event), raw)

    async def append_click(self, event: EventRecord) -> asyncio.Task[bool] | None:
        """Append `event`, but wait REDIRECT_WAIT_S at most: a redirect beats its record.

        The append goes on afterwards. The task tells whether it came through; None when so many
        clicks are waiting already that this one is given up.
        """
        if len(self._clicks) >= REDIRECTS_MAX:
            return None
        task = asyncio.create_task(self._try(event))
        self._clicks.add(task)
        task.add_done_callback(self._clicks.discard)
        await asyncio.wait({task}, timeout=REDIRECT_WAIT_S)
        return task

    async def _try(self, event: EventRecord) -> bool:
        try:
            await self.append((event,))
        except TrackerError:
            return False
        return True

    async def drain(self) -> None:
        """Wait for the clicks that are still on their way."""
        if self._clicks:
            await asyncio.wait(self._clicks, timeout=APPEND_DEADLINE_S)
