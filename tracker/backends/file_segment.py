"""What the log's files hold, byte for byte, and the system calls that put it there.

    log.json    names the log: identity, partitions, format version
    N.segment   a header, then frames; written by one process, read by any
    ends        how far the log is durable: a cache that the writer publishes for readers
    lock        held by the writer

    header   magic, identity, segment number, valid length of segment N-1, the first offset of
             every partition here, CRC; padded to HEADER_BYTES
    frame    marker, length, CRC-32, then entries; one frame is one group commit
    entry    partition, offset, length, then the record's bytes

This module decides nothing: it must not know when to sync, rotate or recover.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from tracker.model.keys import PARTITIONS
from tracker.ports.log import RECORD_BYTES_MAX

FORMAT_VERSION = 1
APPEND_BYTES_MAX = 16 * RECORD_BYTES_MAX
"""One append call: 16 of the largest records, or some 30,000 ordinary ones of 500 bytes."""

ENTRY = struct.Struct("<BQI")
ENTRY_BYTES = ENTRY.size
FRAME = struct.Struct("<4sII")
FRAME_BYTES = FRAME.size
FRAME_BYTES_MAX = 2 * APPEND_BYTES_MAX
"""A group is one append of the largest size or less; twice that is a damaged length field."""

HEADER_BYTES = 512
SLOT_BYTES = 512
_MAGIC = b"trackseg"
_HEADER = struct.Struct(f"<8s16sQQ{PARTITIONS}Q")
_SLOT = struct.Struct(f"<16sQQQ{PARTITIONS}Q")
_CRC = struct.Struct("<I")
_PLACE = struct.Struct("<QI")


class Disk:
    """The system calls that change the log, in one place so that tests can make them fail."""

    def create(self, path: Path) -> int:
        """Create `path`, which must not exist, and return its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, descriptor: int, raw: bytes | bytearray, at: int) -> None:
        """Write all of `raw` at `at`.

        Errors: OSError; some of it may be written.
        """
        view = memoryview(raw)
        while view:
            written = self.write_some(descriptor, view, at)
            view = view[written:]
            at += written

    def write_some(self, descriptor: int, view: memoryview, at: int) -> int:
        """Write as much as the system takes and return how much that was."""
        return os.pwrite(descriptor, view, at)

    def sync(self, descriptor: int) -> None:
        """Make a file's bytes and length durable."""
        os.fdatasync(descriptor)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in `directory` durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, directory: Path) -> int:
        """Return how much may still be written there, 0 when the system does not say."""
        try:
            space = os.statvfs(directory)
        except OSError:
            return 0
        return space.f_bavail * space.f_frsize

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file to `length`."""
        os.ftruncate(descriptor, length)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its final name."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove `path` if it is there."""
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Header:
    """The start of a segment."""

    number: int
    previous_length: int  # bytes of segment `number - 1` that count; what follows was abandoned
    first: Sequence[int]  # offset of the next record of every partition

    def pack(self, identity: str) -> bytes:
        """Return the HEADER_BYTES bytes of it."""
        body = _HEADER.pack(
            _MAGIC, bytes.fromhex(identity), self.number, self.previous_length, *self.first
        )
        return (body + _CRC.pack(zlib.crc32(body))).ljust(HEADER_BYTES, b"\0")


def unpack_header(raw: bytes, identity: str, number: int) -> Header | None:
    """Return the header in `raw`, or None when it is not that of this log and segment."""
    if len(raw) < HEADER_BYTES:
        return None
    body = raw[: _HEADER.size]
    magic, owner, found, previous_length, *first = _HEADER.unpack(body)
    if _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(body) or magic != _MAGIC:
        return None
    if owner.hex() != identity or found != number:
        return None
    return Header(number, previous_length, tuple(first))


def owner_of(raw: bytes) -> str | None:
    """Return the identity that a segment's first bytes name, or None when they are damaged."""
    if len(raw) < HEADER_BYTES:
        return None
    body = raw[: _HEADER.size]
    if _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(body):
        return None
    owner: bytes = _HEADER.unpack(body)[1]
    return owner.hex()


class Framing:
    """How frames of one segment are told from anything else.

    Marker and CRC depend on log, segment and place, so that a stale block, a copied segment or
    bytes that somebody put into a record on purpose are never taken for a frame. CRC-32 and not
    CRC-32C: zlib's is in the standard library and runs at memory speed.
    """

    __slots__ = ("_seed", "marker")

    def __init__(self, identity: str, number: int) -> None:
        digest = hashlib.blake2b(f"{identity}/{number}".encode(), digest_size=8).digest()
        # No zero byte, so that a torn marker differs from preallocated zeros.
        self.marker = bytes(byte | 1 for byte in digest[:4])
        self._seed = int.from_bytes(digest[4:], "little")

    def _crc(self, entries: memoryview, at: int) -> int:
        return zlib.crc32(entries, zlib.crc32(_PLACE.pack(at, len(entries)), self._seed))

    def seal(self, frame: bytearray, at: int) -> None:
        """Fill in the first FRAME_BYTES bytes of `frame`, which will stand at `at`."""
        entries = memoryview(frame)[FRAME_BYTES:]
        FRAME.pack_into(frame, 0, self.marker, len(entries), self._crc(entries, at))

    def length(self, raw: bytes, start: int) -> int | None:
        """Return the whole length that a frame at `start` claims; None if there is none."""
        if len(raw) - start < FRAME_BYTES:
            return None
        marker, length, _ = FRAME.unpack_from(raw, start)
        if marker != self.marker or not 0 < length <= FRAME_BYTES_MAX:
            return None
        return FRAME_BYTES + int(length)

    def stop(self, raw: bytes, start: int, at: int) -> int | None:
        """Return where the sound frame at `start` of `raw` stops; None when there is none.

        `at` is the place of `raw[start]` in the segment.
        """
        length = self.length(raw, start)
        if length is None or start + length > len(raw):
            return None
        crc = FRAME.unpack_from(raw, start)[2]
        entries = memoryview(raw)[start + FRAME_BYTES : start + length]
        return start + length if crc == self._crc(entries, at) else None

    def find(self, raw: bytes, start: int, at: int) -> int | None:
        """Return where the first sound frame at or after `start` begins, or None."""
        found = raw.find(self.marker, start)
        while found >= 0:
            if self.stop(raw, found, at + found - start) is not None:
                return found
            found = raw.find(self.marker, found + 1)
        return None

    def frames(self, raw: bytes) -> Iterator[tuple[int, int]]:
        """Yield start and stop of every sound frame of a whole segment, damage skipped."""
        start: int | None = HEADER_BYTES
        while start is not None:
            stop = self.stop(raw, start, start)
            if stop is None:
                start = self.find(raw, start + 1, start + 1)
                continue
            yield start, stop
            start = stop


def entries_of(raw: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield partition and offset of every entry of the frame at `start`."""
    at = start + FRAME_BYTES
    while at < stop:
        partition, offset, length = ENTRY.unpack_from(raw, at)
        yield partition, offset
        at += ENTRY_BYTES + length


@dataclass(frozen=True, slots=True)
class Ends:
    """How far the log is durable."""

    sequence: int  # grows with every publication
    segment: int
    length: int  # bytes of that segment
    next: Sequence[int]  # per partition: the offset after the last durable record

    def pack(self, identity: str) -> bytes:
        """Return one slot; publications alternate between two, so that one is always whole."""
        body = _SLOT.pack(
            bytes.fromhex(identity), self.sequence, self.segment, self.length, *self.next
        )
        return (body + _CRC.pack(zlib.crc32(body))).ljust(SLOT_BYTES, b"\0")


def unpack_ends(raw: bytes, identity: str) -> Ends | None:
    """Return the newest whole slot of the file `ends`, or None."""
    newest: Ends | None = None
    for start in (0, SLOT_BYTES):
        body = raw[start : start + _SLOT.size]
        stored = raw[start + _SLOT.size : start + _SLOT.size + _CRC.size]
        if len(stored) < _CRC.size or _CRC.unpack(stored)[0] != zlib.crc32(body):
            continue
        owner, sequence, segment, length, *following = _SLOT.unpack(body)
        if owner.hex() == identity and (newest is None or sequence > newest.sequence):
            newest = Ends(sequence, segment, length, tuple(following))
    return newest


def segment_path(directory: Path, number: int) -> Path:
    """Return where segment `number` lies."""
    return directory / f"{number:012d}.segment"


def segment_numbers(directory: Path) -> list[int]:
    """Return the numbers of all segments, in order."""
    names = (path.name.removesuffix(".segment") for path in directory.iterdir())
    return sorted(int(name) for name in names if len(name) == 12 and name.isdigit())


@dataclass(frozen=True, slots=True)
class Label:
    """What log.json says."""

    identity: str
    partitions: int
    version: int
    created_at_ms: int

    def pack(self) -> bytes:
        """Return the file's text."""
        return orjson.dumps(self) + b"\n"


def read_label(directory: Path) -> Label | None:
    """Return what log.json says, or None when it is missing or damaged."""
    try:
        stored = orjson.loads((directory / "log.json").read_bytes())
        label = Label(
            str(stored["identity"]),
            int(stored["partitions"]),
            int(stored["version"]),
            int(stored["created_at_ms"]),
        )
        return label if len(bytes.fromhex(label.identity)) == 16 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
