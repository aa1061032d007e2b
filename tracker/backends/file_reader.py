"""The log's files from a reader's side, in the writer's process or another.

A reader follows what the writer published as durable and never looks beyond it. It opens files
for reading only, and must not care who else reads or writes.

All partitions share one physical sequence. A reader keeps one place in it; as long as it is asked
for what comes next it goes on from there, and skips what lies below the positions asked for. When
a position was set back before that place, it starts again at the last segment whose header says
that nothing asked for comes earlier.
"""

from __future__ import annotations

import asyncio
import bisect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tracker.backends.file_segment import (
    ENTRY,
    ENTRY_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    SLOT_BYTES,
    Ends,
    Framing,
    Header,
    read_label,
    segment_numbers,
    segment_path,
    unpack_ends,
    unpack_header,
)
from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.log import LogBatch, LogRecord

CHUNK_BYTES = 1 << 20
"""Read at once: some 2,000 events, a fraction of a millisecond from the page cache."""

POLL_FIRST_S = 0.005
POLL_LAST_S = 0.02
"""Idle polls are one small read each: 50 a second cost nothing, and add 20 ms at most."""

_OPEN_POLL_S = 0.02
_NO_FILE = -1
_NEVER = 1 << 64  # above every offset: a partition that nobody asked for
_LOST = b""  # stands for a record that the disk lost: no codec reads it, so it is set aside


async def open_reader(directory: Path, timeout_s: float = 10.0) -> FileLogReader:
    """Open the log in `directory`, waiting for a writer to create it.

    Errors: TrackerError LOG_UNAVAILABLE when there is none after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        label = read_label(directory)
        if label is not None:
            reader = FileLogReader(directory, label.identity)
            if reader.is_ready():
                return reader
            await reader.close()
        if time.monotonic() >= deadline:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"there is no log in {directory} yet: start the collector, which creates it",
            )
        await asyncio.sleep(_OPEN_POLL_S)


class _Place:
    """A place in the physical sequence: a segment, and the sound frame that is read there."""

    def __init__(self, directory: Path, identity: str) -> None:
        self.number = 0
        self.raw = b""
        self.entry = 0  # index into `raw` of the next entry of the frame
        self.stop = 0  # and of the frame's end
        self.damaged = 0
        self._directory = directory
        self._identity = identity
        self._file = _NO_FILE
        self._framing = Framing("", 0)
        self._left: int | None = None  # good length of a segment that the writer has left
        self._base = 0  # where `raw` begins in the segment
        self._at = 0  # where the next frame begins in the segment

    def enter(self, number: int) -> None:
        """Go to the start of segment `number`."""
        path = segment_path(self._directory, number)
        descriptor = os.open(path, os.O_RDONLY)
        self.close()
        self._file, self.number = descriptor, number
        self._framing = Framing(self._identity, number)
        self._left = None
        self.raw, self._base, self._at = b"", HEADER_BYTES, HEADER_BYTES
        self.entry = self.stop = 0

    def close(self) -> None:
        """Let go of the file."""
        if self._file != _NO_FILE:
            os.close(self._file)
            self._file = _NO_FILE

    def find_frame(self, ends: Ends) -> bool:
        """Make the next sound frame the current one; tell whether this segment has any more."""
        if self.entry < self.stop:
            return True
        limit = self._limit(ends)
        while self._at < limit:
            self._load(FRAME_BYTES, limit)
            length = self._framing.length(self.raw, self._at - self._base)
            if length is not None:
                self._load(length, limit)
                index = self._at - self._base
                stop = self._framing.stop(self.raw, index, self._at)
                if stop is not None:
                    self.entry, self.stop = index + FRAME_BYTES, stop
                    self._at += length
                    return True
            self._skip_damage(limit)
        return False

    def _limit(self, ends: Ends) -> int:
        if self.number == ends.segment:
            return ends.length
        if self._left is None:
            following = read_header(self._directory, self._identity, self.number + 1)
            size = segment_path(self._directory, self.number).stat().st_size
            self._left = following.previous_length if following else size
        return self._left

    def _load(self, length: int, limit: int) -> None:
        if self._at - self._base + length > len(self.raw):
            self._read(min(max(length, CHUNK_BYTES), limit - self._at))

    def _read(self, length: int) -> None:
        self.raw = os.pread(self._file, length, self._at)
        self._base = self._at

    def _skip_damage(self, limit: int) -> None:
        self.damaged += 1
        self._read(limit - self._at)
        found = self._framing.find(self.raw, 1, self._at + 1)
        self._at = limit if found is None else self._at + found


def read_header(directory: Path, identity: str, number: int) -> Header | None:
    """Return the header of segment `number`, or None when it is damaged or missing."""
    try:
        with segment_path(directory, number).open("rb", buffering=0) as file:
            return unpack_header(file.read(HEADER_BYTES), identity, number)
    except FileNotFoundError:
        return None


@dataclass(slots=True)
class _Request:
    """What one call of `read` still wants, and what it got."""

    want: list[int]
    room: int
    found: dict[int, list[LogRecord]] = field(default_factory=dict)

    def fill(self, partition: int, stop: int) -> None:
        """Deliver the lost records of `partition` before `stop` as unreadable ones."""
        start = self.want[partition]
        stop = min(stop, start + self.room)
        if stop > start:
            lost = [LogRecord(offset, _LOST) for offset in range(start, stop)]
            self.found.setdefault(partition, []).extend(lost)
            self.want[partition] = stop
            self.room -= stop - start

    def batches(self) -> Sequence[LogBatch]:
        """Return what was found, a batch a partition."""
        return [
            LogBatch(partition, records, records[-1].offset + 1)
            for partition, records in self.found.items()
        ]


class FileLogReader:
    """A LogReader of a directory that `tracker.backends.file_log` writes."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity
        self._ends_file: int | None = None
        self._ends: Ends | None = None
        self._place = _Place(directory, identity)
        self._passed = [_NEVER] * PARTITIONS  # offsets below lie before the place

    @property
    def identity(self) -> str:
        """Name the log."""
        return self._identity

    @property
    def damaged_places(self) -> int:
        """Count the places where no sound frame stood."""
        return self._place.damaged

    def is_ready(self) -> bool:
        """Tell whether the writer has published something."""
        try:
            return self._poll() is not None
        except OSError:
            return False

    def ends(self) -> Sequence[int]:
        """Return the end of every partition, as of now.

        Errors: TrackerError LOG_UNAVAILABLE.
        """
        return self._durable().next

    async def read(
        self, positions: Mapping[int, int], *, records_max: int, wait_ms: int
    ) -> Sequence[LogBatch]:
        """Return the next records of the partitions in `positions`, in the order of the log.

        Shape: one batch per partition. A record that the disk lost is delivered with no bytes.
        Errors: TrackerError LOG_UNAVAILABLE; NOT_FOUND below the oldest segment kept.
        """
        want = [_NEVER] * PARTITIONS
        for partition, position in positions.items():
            want[partition] = position
        request = _Request(want, records_max)
        deadline = time.monotonic() + wait_ms / 1000
        pause = POLL_FIRST_S
        while request.room > 0:
            ends = self._durable()
            has_news = any(map(int.__lt__, want, ends.next))
            is_partway = has_news and not self._advance(request, ends)
            if is_partway and time.monotonic() < deadline:
                # A long way to skip must not hold up everything else in this process.
                await asyncio.sleep(0)
                continue
            if request.found or time.monotonic() >= deadline:
                break
            await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(pause * 2, POLL_LAST_S)
        return request.batches()

    async def close(self) -> None:
        """Let go of the files."""
        self._place.close()
        self._passed = [_NEVER] * PARTITIONS
        if self._ends_file is not None:
            os.close(self._ends_file)
            self._ends_file = None

    def _poll(self) -> Ends | None:
        if self._ends_file is None:
            self._ends_file = os.open(self._directory / "ends", os.O_RDONLY)
        raw = os.pread(self._ends_file, 2 * SLOT_BYTES, 0)
        self._ends = unpack_ends(raw, self._identity) or self._ends
        return self._ends

    def _durable(self) -> Ends:
        try:
            ends = self._poll()
        except OSError as error:
            raise self._failure(error) from error
        if ends is None:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"the log in {self._directory} has published nothing: start the collector",
            )
        return ends

    def _failure(self, error: OSError) -> TrackerError:
        return TrackerError(
            Code.LOG_UNAVAILABLE,
            f"could not read the log in {self._directory}: {error}; look at the disk",
        )

    def _advance(self, request: _Request, ends: Ends) -> bool:
        """Deliver what comes next, up to a chunk; tell whether it is all that is durable."""
        place, passed_bytes = self._place, 0
        try:
            if any(map(int.__lt__, request.want, self._passed)):
                self._seek(request.want, ends)
            while request.room > 0 and passed_bytes < CHUNK_BYTES:
                if place.find_frame(ends):
                    start = place.entry
                    self._deliver(request)
                    passed_bytes += place.entry - start
                elif place.number < ends.segment:
                    place.enter(place.number + 1)
                else:
                    for partition, end in enumerate(ends.next):
                        request.fill(partition, end)
                    return True
        except OSError as error:
            raise self._failure(error) from error
        return False

    def _deliver(self, request: _Request) -> None:
        """Pass the entries of the current frame as far as there is room."""
        place, want, passed, found = self._place, request.want, self._passed, request.found
        raw, at, stop, unpack = place.raw, place.entry, place.stop, ENTRY.unpack_from
        room = request.room
        while at < stop and room > 0:
            partition, offset, length = unpack(raw, at)
            wanted = want[partition]
            if offset > wanted:
                request.room = room
                request.fill(partition, offset)
                room = request.room
                continue
            at += ENTRY_BYTES + length
            passed[partition] = offset + 1
            if offset == wanted:
                record = LogRecord(offset, raw[at - length : at])
                if partition in found:
                    found[partition].append(record)
                else:
                    found[partition] = [record]
                want[partition] = offset + 1
                room -= 1
        place.entry, request.room = at, room

    def _seek(self, want: Sequence[int], ends: Ends) -> None:
        """Go to the last segment before which nothing lies that is wanted."""
        numbers = [n for n in segment_numbers(self._directory) if n <= ends.segment]
        after = bisect.bisect_left(numbers, 1, key=lambda number: self._is_late(number, want))
        number = numbers[max(after - 1, 0)] if numbers else 1
        header = read_header(self._directory, self._identity, number)
        first = header.first if header else (0,) * PARTITIONS
        if (header is None and number > 1) or any(map(int.__lt__, want, first)):
            raise TrackerError(
                Code.NOT_FOUND,
                f"the log in {self._directory} no longer has the records asked for, its oldest"
                f" segment is {number}: rebuild from a checkpoint",
            )
        self._place.enter(number)
        self._passed = list(first)

    def _is_late(self, number: int, want: Sequence[int]) -> int:
        header = read_header(self._directory, self._identity, number)
        return header is None or any(map(int.__lt__, want, header.first))
