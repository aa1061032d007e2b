"""Segments on disk, from the writer's side: recover, append a group, rotate, abandon.

Everything here blocks and runs in one thread, `tracker.backends.file_log` puts the queue in front.

Two rules keep what was acknowledged. A segment is left (full, or after a failed sync) by writing
its good length into the next header; from then on it is never written again, whatever happens. And
a failed sync is never repeated on the same pages, because the system may have dropped them and
would say yes: the segment is abandoned at its last good end instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracker.backends.file_segment import (
    ENTRY,
    FORMAT_VERSION,
    FRAME_BYTES,
    HEADER_BYTES,
    SLOT_BYTES,
    Disk,
    Ends,
    Framing,
    Header,
    Label,
    entries_of,
    owner_of,
    read_label,
    segment_numbers,
    segment_path,
    unpack_ends,
    unpack_header,
)
from tracker.errors import Code, TrackerError
from tracker.model.clock import Clock
from tracker.model.keys import PARTITIONS
from tracker.ports.log import Unappended

SEGMENT_BYTES = 64 << 20
"""Some 140,000 events of 450 bytes: a seek or a recovery reads a tenth of a second of them."""

AHEAD_BYTES = 8 << 20
"""Zeros written ahead: overwriting them costs half of what growing the file does per sync."""

LARGE_BYTES = 256 << 10
"""A group of this size pays for its own growth: writing it twice would cost more."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PAGE_BYTES = 4096
_NO_FILE = -1


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds."""

    header: Header | None
    raw: bytes
    end: int  # after the last sound frame
    following: Sequence[int] | None  # next offsets; None where no frame tells
    damaged: int  # places inside where no sound frame stands


class SegmentWriter:
    """The log's files, for the one process that holds the lock."""

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int) -> None:
        self.identity = ""
        self.truncated_bytes = 0
        self.damaged_places = 0
        self.abandoned_segments = 0
        self.full_bytes = 0  # what an append lacked when the disk was full, 0 when it is not
        self._directory = directory
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._next: list[int] = [0] * PARTITIONS
        self._number = 0
        self._end = 0
        self._reserved = 0  # the file is this long; zeros between the end and here
        self._file = _NO_FILE
        self._framing = Framing("", 0)
        self._sequence = 0
        self._ends_file = _NO_FILE

    def open(self, clock: Clock) -> None:
        """Find or create the log, cut a torn tail, publish the ends.

        Errors: TrackerError CONFIGURATION for another format; LOG_FULL, LOG_UNAVAILABLE.
        """
        try:
            self.identity = self._label(clock).identity
            published = self._open_ends()
            self._recover(published)
            self._publish()
        except OSError as error:
            raise self._failure(error, 0, f"open the log in {self._directory}") from error

    def append(self, groups: Sequence[Sequence[Unappended]]) -> None:
        """Write the records of `groups` as one frame and make it durable.

        Errors: TrackerError LOG_FULL or LOG_UNAVAILABLE; the writer stays usable.
        """
        offsets = self._next.copy()
        parts: list[bytes] = [bytes(FRAME_BYTES)]
        put, pack = parts.append, ENTRY.pack
        for records in groups:
            for record in records:
                partition, raw = record.partition, record.raw
                offset = offsets[partition]
                offsets[partition] = offset + 1
                put(pack(partition, offset, len(raw)))
                put(raw)
        frame = bytearray().join(parts)
        if self._file == _NO_FILE or self._is_filled_by(len(frame)):
            self._rotate(len(frame))
        self._framing.seal(frame, self._end)
        self._write(frame)
        self._end += len(frame)
        self._next = offsets
        self.full_bytes = 0
        self._publish()

    def close(self) -> None:
        """Give back the zeros written ahead and let go of the files."""
        with contextlib.suppress(OSError):
            if self._file != _NO_FILE:
                self._disk.truncate(self._file, self._end)
                self._disk.sync(self._file)
        if self._number:
            self._publish()
        for descriptor in (self._file, self._ends_file):
            if descriptor != _NO_FILE:
                os.close(descriptor)
        self._file = self._ends_file = _NO_FILE

    def _is_filled_by(self, length: int) -> bool:
        return self._end > HEADER_BYTES and self._end + length > self._segment_bytes

    def _write(self, frame: bytearray) -> None:
        needed = self._end + len(frame)
        self._reserve(needed)
        try:
            self._disk.write(self._file, frame, self._end)
            self._reserved = max(self._reserved, needed)
        except OSError as error:
            if error.errno in _FULL:
                self._cut()
            else:
                self._abandon()
            raise self._failure(error, len(frame), "write to the log") from error
        try:
            self._disk.sync(self._file)
        except OSError as error:
            self._abandon()
            raise self._failure(error, len(frame), "make the log durable") from error

    def _reserve(self, needed: int) -> None:
        if needed <= self._reserved:
            return
        # On a small or nearly full disk the zeros would take what others need more.
        spare = self._disk.free_bytes(self._directory) // 8
        ahead = min(AHEAD_BYTES, max(self._segment_bytes - needed, 0), spare)
        if not ahead or needed - self._end > LARGE_BYTES:
            return
        # A disk too full for zeros may still have room for the frame itself, so its write decides.
        with contextlib.suppress(OSError):
            self._disk.write(self._file, bytes(needed + ahead - self._reserved), self._reserved)
        self._reserved = os.fstat(self._file).st_size

    def _cut(self) -> None:
        try:
            self._disk.truncate(self._file, self._end)
            self._reserved = self._end
        except OSError:
            self._abandon()

    def _leave(self) -> None:
        """Close the segment for good at its end; the next header will say where that is."""
        with contextlib.suppress(OSError):
            self._disk.truncate(self._file, self._end)
        os.close(self._file)
        self._file = _NO_FILE

    def _abandon(self) -> None:
        self.abandoned_segments += 1
        self._leave()

    def _rotate(self, wanted: int) -> None:
        if self._file != _NO_FILE:
            self._leave()
        try:
            self._start_segment(Header(self._number + 1, self._end, tuple(self._next)))
        except OSError as error:
            raise self._failure(error, wanted + HEADER_BYTES, "start a segment") from error

    def _start_segment(self, header: Header) -> None:
        path = segment_path(self._directory, header.number)
        # What a failed attempt left behind was never written to, and its pages are not believed.
        self._disk.unlink(path)
        descriptor = self._disk.create(path)
        try:
            self._disk.write(descriptor, header.pack(self.identity), 0)
            self._disk.sync(descriptor)
            self._disk.sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            raise
        self._use(descriptor, header.number, HEADER_BYTES)

    def _use(self, descriptor: int, number: int, end: int) -> None:
        self._file, self._number, self._end, self._reserved = descriptor, number, end, end
        self._framing = Framing(self.identity, number)

    def _failure(self, error: OSError, wanted: int, what: str) -> TrackerError:
        if error.errno in _FULL:
            self.full_bytes = wanted + 2 * _PAGE_BYTES
            return TrackerError(
                Code.LOG_FULL,
                f"no space for the log in {self._directory}: free some; nothing else is needed",
            )
        return TrackerError(
            Code.LOG_UNAVAILABLE,
            f"could not {what} in {self._directory}: {error.strerror}; look at the disk",
        )

    def _publish(self) -> None:
        self._sequence += 1
        ends = Ends(self._sequence, self._number, self._end, self._next)
        # A lost publication delays readers until the next one; the records themselves are safe.
        with contextlib.suppress(OSError):
            at = self._sequence % 2 * SLOT_BYTES
            self._disk.write(self._ends_file, ends.pack(self.identity), at)

    def _open_ends(self) -> Ends | None:
        self._ends_file = os.open(self._directory / "ends", os.O_RDWR | os.O_CREAT, 0o600)
        raw = os.pread(self._ends_file, 2 * SLOT_BYTES, 0)
        if len(raw) < 2 * SLOT_BYTES:
            self._disk.write(self._ends_file, bytes(2 * SLOT_BYTES - len(raw)), len(raw))
        published = unpack_ends(raw, self.identity)
        self._sequence = published.sequence if published else 0
        return published

    def _label(self, clock: Clock) -> Label:
        label = read_label(self._directory)
        if label is None:
            label = self._create_label(clock)
        if (label.version, label.partitions) != (FORMAT_VERSION, PARTITIONS):
            raise TrackerError(
                Code.CONFIGURATION,
                f"the log in {self._directory} has format {label.version} with"
                f" {label.partitions} partitions, this program writes format {FORMAT_VERSION} with"
                f" {PARTITIONS}: use the version that made it, or another directory",
            )
        return label

    def _create_label(self, clock: Clock) -> Label:
        label = Label(self._segments_owner(), PARTITIONS, FORMAT_VERSION, clock.now_ms())
        draft, final = self._directory / "log.json.new", self._directory / "log.json"
        self._disk.unlink(draft)
        descriptor = self._disk.create(draft)
        try:
            self._disk.write(descriptor, label.pack(), 0)
            self._disk.sync(descriptor)
        finally:
            os.close(descriptor)
        self._disk.rename(draft, final)
        self._disk.sync_directory(self._directory)
        return label

    def _segments_owner(self) -> str:
        """Return the identity in the segments' headers, a new one where there are none."""
        for number in segment_numbers(self._directory):
            with segment_path(self._directory, number).open("rb") as file:
                owner = owner_of(file.read(HEADER_BYTES))
            if owner is not None:
                return owner
        return secrets.token_hex(16)

    def _recover(self, published: Ends | None) -> None:
        for number in reversed(segment_numbers(self._directory)):
            scan = self._scan(number)
            if scan.header is None and scan.following is None:
                # The crash hit the creation: the header is durable before the first frame is.
                self.truncated_bytes += len(scan.raw.rstrip(b"\0"))
                self._disk.unlink(segment_path(self._directory, number))
                self._disk.sync_directory(self._directory)
                continue
            self._resume(number, scan, published)
            return
        self._start_segment(Header(1, 0, tuple(self._next)))

    def _scan(self, number: int) -> Scan:
        raw = segment_path(self._directory, number).read_bytes()
        header = unpack_header(raw[:HEADER_BYTES], self.identity, number)
        following = list(header.first) if header else [0] * PARTITIONS
        end, damaged, sound = HEADER_BYTES, 0, False
        for start, stop in Framing(self.identity, number).frames(raw):
            damaged += start > end
            sound, end = True, stop
            for partition, offset in entries_of(raw, start, stop):
                following[partition] = offset + 1
        return Scan(header, raw, end, following if header or sound else None, damaged)

    def _resume(self, number: int, scan: Scan, published: Ends | None) -> None:
        end, following = scan.end, list(scan.following or ())
        header = scan.header or self._lost_header(number, following)
        known = HEADER_BYTES
        if published is not None:
            # Readers saw all this; it is never given away again, even where the disk lost it.
            following = [max(pair) for pair in zip(following, published.next, strict=True)]
        if published is not None and published.segment == number:
            known = min(published.length, end)
            end = max(end, min(published.length, len(scan.raw)))
        self.damaged_places += scan.damaged
        self.truncated_bytes += max(len(scan.raw.rstrip(b"\0")) - end, 0)
        descriptor = os.open(segment_path(self._directory, number), os.O_RDWR)
        try:
            if scan.header is None:
                self._disk.write(descriptor, header.pack(self.identity), 0)
            # Written again, because a sync that failed before the crash left clean pages behind.
            self._disk.write(descriptor, scan.raw[known:end], known)
            self._disk.truncate(descriptor, end)
            self._disk.sync(descriptor)
            self._disk.sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            raise
        self._next = following
        self._use(descriptor, number, end)

    def _lost_header(self, number: int, following: list[int]) -> Header:
        """Return the header that a damaged one must have been, and complete `following`."""
        before = Scan(None, b"", 0, None, 0)
        if number - 1 in segment_numbers(self._directory):
            before = self._scan(number - 1)
        first = tuple(before.following or [0] * PARTITIONS)
        following[:] = [max(pair) for pair in zip(following, first, strict=True)]
        return Header(number, before.end, first)
