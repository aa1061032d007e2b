"""The log: a durable, partitioned sequence of records. Everything that moves a number is in it.

Words
    partition   one of `tracker.model.keys.PARTITIONS` sequences, each with one order
    offset      the number of a record in its partition: 0, 1, 2, …, without gaps on one machine
    position    the offset of the next record to read
    end         the position after the last durable record of a partition
    identity    names this log for good; another identity means that offsets mean something else

Contract (tests/contract/test_log_contract.py, every back end)
    * `append` returns only when all its records are durable, and raises when it does not know.
      After an error some of them may be in the log. Records of one call and one partition stand
      in the order given.
    * A reader sees exactly the durable records, in offset order, also from another process, also
      while somebody appends.
    * Nothing that was acknowledged is ever changed or moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

RECORD_BYTES_MAX = 1_000_000
"""An event is at most some 100 kB after intake's limits; a definition may be larger."""


@dataclass(frozen=True, slots=True)
class Unappended:
    """One record on its way into the log."""

    partition: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One durable record."""

    offset: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Records of one partition, in offset order, contiguous on one machine's log.

    `next_position` is the position after the last of them.
    """

    partition: int
    records: Sequence[LogRecord]
    next_position: int


class LogWriter(Protocol):
    """The write side."""

    async def append(self, records: Sequence[Unappended]) -> None:
        """Make `records` durable.

        Errors: TrackerError LOG_UNAVAILABLE or LOG_FULL; some of the records may be durable.
        """
        ...

    def unready(self) -> str | None:
        """Return why nothing can be appended now (one sentence), or None."""
        ...

    async def close(self) -> None:
        """Finish what is in flight and let go."""
        ...


class LogReader(Protocol):
    """The read side."""

    @property
    def identity(self) -> str:
        """Name the log."""
        ...

    def ends(self) -> Sequence[int]:
        """Return the end of every partition, as of now."""
        ...

    async def read(
        self, positions: Mapping[int, int], *, records_max: int, wait_ms: int
    ) -> Sequence[LogBatch]:
        """Return the next records of the partitions in `positions`, at most `records_max` in all.

        Waits up to `wait_ms` for the first one; may return nothing. Batches of a partition start
        at the position asked for.
        Errors: TrackerError LOG_UNAVAILABLE.
        """
        ...

    async def close(self) -> None:
        """Let go."""
        ...
