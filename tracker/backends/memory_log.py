"""The log in memory: what `tracker.ports.log` promises, in as few lines as that takes.

The executable specification for the other back ends, and the log of unit tests. It is durable as
long as the object lives, serves one event loop, and must never be offered to a user.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence

from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.log import RECORD_BYTES_MAX, LogBatch, LogRecord, Unappended


class MemoryLog:
    """The records. Writers and readers of one log share it.

    `refusal`, once set, is what every append fails with until it is None again.
    """

    def __init__(self, identity: str = "") -> None:
        self.identity = identity or secrets.token_hex(16)
        self.partitions: list[list[LogRecord]] = [[] for _ in range(PARTITIONS)]
        self.refusal: TrackerError | None = None
        self._news = asyncio.Event()

    def add(self, records: Sequence[Unappended]) -> None:
        """Take all of `records` or none, and wake the readers.

        Errors: TrackerError INVALID; whatever `refusal` is.
        """
        if self.refusal is not None:
            raise TrackerError(self.refusal.code, self.refusal.message)
        for record in records:
            if len(record.raw) > RECORD_BYTES_MAX or not 0 <= record.partition < PARTITIONS:
                raise TrackerError(
                    Code.INVALID,
                    f"a record of {len(record.raw)} bytes for partition {record.partition} does"
                    f" not fit the log: at most {RECORD_BYTES_MAX} bytes, partitions 0 to"
                    f" {PARTITIONS - 1}",
                )
        for record in records:
            partition = self.partitions[record.partition]
            partition.append(LogRecord(len(partition), record.raw))
        self._news.set()
        self._news = asyncio.Event()

    def next_news(self) -> asyncio.Event:
        """Return the event that the next records will set."""
        return self._news


class MemoryLogWriter:
    """A LogWriter of a MemoryLog."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._is_closed = False

    @property
    def identity(self) -> str:
        """Name the log."""
        return self._log.identity

    async def append(self, records: Sequence[Unappended]) -> None:
        """Make `records` as durable as memory is.

        Errors: TrackerError LOG_UNAVAILABLE after `close`; INVALID; what the log refuses with.
        """
        if self._is_closed:
            raise TrackerError(Code.LOG_UNAVAILABLE, "the log is closed")
        # A real log lets others run here, and a test that depends on the opposite is wrong.
        await asyncio.sleep(0)
        self._log.add(records)

    def unready(self) -> str | None:
        """Return why nothing can be appended now (one sentence), or None."""
        if self._is_closed:
            return "the log is closed"
        return self._log.refusal.message if self._log.refusal else None

    async def close(self) -> None:
        """Take no more."""
        self._is_closed = True


class MemoryLogReader:
    """A LogReader of a MemoryLog."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    @property
    def identity(self) -> str:
        """Name the log."""
        return self._log.identity

    def ends(self) -> Sequence[int]:
        """Return the end of every partition, as of now."""
        return [len(records) for records in self._log.partitions]

    async def read(
        self, positions: Mapping[int, int], *, records_max: int, wait_ms: int
    ) -> Sequence[LogBatch]:
        """Return the next records of the partitions in `positions`, at most `records_max` in all.

        Shape: one batch per partition; partitions share the room evenly.
        """
        deadline = time.monotonic() + wait_ms / 1000
        while True:
            news = self._log.next_news()
            batches = self._find(positions, records_max)
            remaining = deadline - time.monotonic()
            if batches or remaining <= 0 or records_max <= 0:
                return batches
            try:
                async with asyncio.timeout(remaining):
                    await news.wait()
            except TimeoutError:
                return self._find(positions, records_max)

    async def close(self) -> None:
        """Let go, of nothing."""

    def _find(self, positions: Mapping[int, int], records_max: int) -> Sequence[LogBatch]:
        batches = []
        room = records_max
        waiting = [p for p in positions if len(self._log.partitions[p]) > positions[p]]
        for index, partition in enumerate(waiting):
            # At least one each while there is room, so that none starves behind a busy one.
            share = -(-room // (len(waiting) - index))
            start = positions[partition]
            records = self._log.partitions[partition][start : start + share]
            room -= len(records)
            if records:
                batches.append(LogBatch(partition, records, start + len(records)))
        return batches
