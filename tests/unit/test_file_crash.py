"""The file log after a crash at every byte, and after a power cut at every system call."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tracker.backends.file_reader import FileLogReader, open_reader
from tracker.backends.file_segment import HEADER_BYTES, Disk, read_label, segment_path
from tracker.backends.file_writer import SegmentWriter
from tracker.errors import TrackerError
from tracker.model.clock import SystemClock
from tracker.ports.log import Unappended

SEGMENT_BYTES = 700
"""Three test records a segment."""

HEADER_SAID_BYTES = 8 + 16 + 8 + 8 + 32 * 8 + 4
"""The rest of a header is padding, which may hold anything."""


class HastyDisk(Disk):
    """Syncs nothing: what these tests cut off is cut off by them."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_directory(self, directory: Path) -> None:
        pass


def open_files(
    directory: Path, disk: Disk | None = None, segment_bytes: int = 1 << 20
) -> SegmentWriter:
    files = SegmentWriter(directory, disk or HastyDisk(), segment_bytes)
    files.open(SystemClock())
    return files


async def read_back(directory: Path, reader: FileLogReader | None = None) -> list[list[bytes]]:
    reader = reader or await open_reader(directory, 0)
    got: list[list[bytes]] = [[] for _ in range(32)]
    while batches := await reader.read(
        {p: len(records) for p, records in enumerate(got)}, records_max=1000, wait_ms=0
    ):
        for batch in batches:
            assert batch.records[0].offset == len(got[batch.partition])
            got[batch.partition] += [record.raw for record in batch.records]
    assert [len(records) for records in got] == list(reader.ends())
    await reader.close()
    return got


def build(directory: Path, count: int, segment_bytes: int = 1 << 20) -> list[int]:
    """Write `count` records, and return how long the last segment is after each of them."""
    directory.mkdir()
    files = open_files(directory, segment_bytes=segment_bytes)
    lengths = []
    for number in range(count):
        files.append([[Unappended(number % 2, f"record {number}".encode())]])
        lengths.append(files._end)
    files.close()
    return lengths


def expected(numbers: list[int]) -> list[list[bytes]]:
    """Give the records that `build` wrote first, and one more."""
    records: list[list[bytes]] = [[] for _ in range(32)]
    for number in numbers:
        records[number % 2].append(f"record {number}".encode())
    records[0].append(b"after the crash")
    return records


async def check_goes_on(directory: Path, numbers: list[int]) -> None:
    """Append after the recovery, recover again, and read it all."""
    files = open_files(directory)
    files.append([[Unappended(0, b"after the crash")]])
    files.close()
    again = open_files(directory)
    assert again.truncated_bytes == 0
    again.close()
    assert await read_back(directory) == expected(numbers)


TAILS = {
    "nothing": b"",
    "zeros": bytes(100),
    "garbage": random.Random(1).randbytes(100),
    "zeros and garbage": bytes(40) + b"\xff" * 8,
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
async def test_a_log_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path, tail: bytes) -> None:
    lengths = build(tmp_path / "whole", 3)
    whole = segment_path(tmp_path / "whole", 1).read_bytes()
    for cut in range(len(whole) + 1):
        directory = tmp_path / "cut"
        directory.mkdir()
        shutil.copy(tmp_path / "whole" / "log.json", directory)
        segment_path(directory, 1).write_bytes(whole[:cut] + tail)
        files = open_files(directory)
        kept = [number for number, length in enumerate(lengths) if length <= cut]
        is_begun = cut >= HEADER_SAID_BYTES and len(whole[:cut] + tail) >= HEADER_BYTES
        good = max([HEADER_BYTES, *(lengths[n] for n in kept)]) if is_begun else 0
        assert files.truncated_bytes == max(len((whole[:cut] + tail).rstrip(b"\0")) - good, 0)
        assert segment_path(directory, 1).stat().st_size == max(good, HEADER_BYTES)
        files.close()
        await check_goes_on(directory, kept)
        shutil.rmtree(directory)


async def test_a_rotation_cut_at_any_byte_keeps_all_before_it(tmp_path: Path) -> None:
    lengths = build(tmp_path / "whole", 6, SEGMENT_BYTES)
    assert segment_path(tmp_path / "whole", 2).exists()
    last = max(int(path.stem) for path in (tmp_path / "whole").glob("*.segment"))
    whole = segment_path(tmp_path / "whole", last).read_bytes()
    first = next(n for n in range(1, 6) if lengths[n] < lengths[n - 1])
    first = max(n for n in range(first, 6) if lengths[n] < lengths[n - 1])
    for cut in range(len(whole) + 1):
        directory = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", directory)
        (directory / "ends").unlink()
        segment_path(directory, last).write_bytes(whole[:cut])
        await check_goes_on(
            directory, [n for n, length in enumerate(lengths) if n < first or length <= cut]
        )
        shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["log.json", "ends"])
@pytest.mark.parametrize("tail", [b"", b"\xff" * 8], ids=["cut", "garbage"])
async def test_a_small_file_cut_at_any_byte_is_written_anew(
    tmp_path: Path, name: str, tail: bytes
) -> None:
    build(tmp_path / "whole", 3)
    whole = (tmp_path / "whole" / name).read_bytes()
    label = read_label(tmp_path / "whole")
    for cut in range(0, len(whole), 3):
        directory = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", directory)
        (directory / name).write_bytes(whole[:cut] + tail)
        await check_goes_on(directory, [0, 1, 2])
        again = read_label(directory)
        assert label is not None
        assert again is not None
        assert again.identity == label.identity
        shutil.rmtree(directory)


async def test_a_bit_flipped_anywhere_in_a_frame_costs_that_frame_only(tmp_path: Path) -> None:
    lengths = build(tmp_path / "whole", 3)
    whole = segment_path(tmp_path / "whole", 1).read_bytes()
    for at in range(lengths[0], lengths[1]):
        directory = tmp_path / "flipped"
        shutil.copytree(tmp_path / "whole", directory)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        segment_path(directory, 1).write_bytes(damaged)
        reader = await open_reader(directory, 0)
        assert (await read_back(directory, reader))[:2] == [[b"record 0", b"record 2"], [b""]]
        assert reader.damaged_places == 1
        files = open_files(directory)
        assert (files.damaged_places, files.truncated_bytes) == (1, 0)
        files.append([[Unappended(1, b"next")]])
        files.close()
        assert (await read_back(directory))[1] == [b"", b"next"]
        shutil.rmtree(directory)


async def test_a_damaged_header_is_restored_from_what_follows_it(tmp_path: Path) -> None:
    build(tmp_path / "whole", 6, SEGMENT_BYTES)
    for at in range(0, HEADER_BYTES, 37):
        directory = tmp_path / "flipped"
        shutil.copytree(tmp_path / "whole", directory)
        path = max(directory.glob("*.segment"))
        damaged = bytearray(path.read_bytes())
        damaged[at] ^= 1
        path.write_bytes(damaged)
        await check_goes_on(directory, list(range(6)))
        shutil.rmtree(directory)


@dataclass
class PowerCutDisk(Disk):
    """Keeps, after every system call, what a power cut then would leave at least and at most."""

    directory: Path
    acknowledged: dict[tuple[int, int], bytes] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    fails: dict[int, int] = field(default_factory=dict)  # call number → errno
    calls: int = 0
    _contents: dict[int, bytes] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def _note(self) -> None:
        live = {p.name: p for p in self.directory.iterdir() if p.name not in {"lock", "ends"}}
        synced = {n: self._contents.get(p.stat().st_ino, b"") for n, p in live.items()}
        self.images.append(
            Image(
                {n: self._contents.get(inode, b"") for n, inode in self._names.items()},
                synced,
                {name: path.read_bytes() for name, path in live.items()},
                dict(self.acknowledged),
            )
        )

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.fails:
            raise OSError(self.fails[self.calls], os.strerror(self.fails[self.calls]))

    def create(self, path: Path) -> int:
        self._call()
        descriptor = super().create(path)
        self._contents[os.fstat(descriptor).st_ino] = b""
        self._note()
        return descriptor

    def write_some(self, descriptor: int, view: memoryview, at: int) -> int:
        self._call()
        written = super().write_some(descriptor, view[:300], at)
        self._note()
        return written

    def sync(self, descriptor: int) -> None:
        self._call()
        info = os.fstat(descriptor)
        self._contents[info.st_ino] = os.pread(descriptor, info.st_size, 0)
        self._note()

    def sync_directory(self, directory: Path) -> None:
        self._call()
        self._names = {path.name: path.stat().st_ino for path in directory.iterdir()}
        self._note()

    def truncate(self, descriptor: int, length: int) -> None:
        self._call()
        super().truncate(descriptor, length)
        self._note()

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        super().rename(source, target)
        self._note()

    def unlink(self, path: Path) -> None:
        self._call()
        super().unlink(path)
        self._note()


@dataclass
class Image:
    synced: dict[str, bytes]  # names and bytes that were synced
    synced_bytes: dict[str, bytes]  # all names, synced bytes
    live: dict[str, bytes]  # everything, as if all had been written back
    acknowledged: dict[tuple[int, int], bytes]

    def outcomes(self, choose: random.Random) -> Iterator[dict[str, bytes]]:
        yield self.synced
        yield self.live
        torn = {}
        for name, live in self.live.items():
            # Of what was not synced, any half-kilobyte may have reached the disk or not.
            synced = self.synced_bytes[name].ljust(len(live), b"\0")
            torn[name] = b"".join(
                choose.choice((live, synced))[at : at + 512] for at in range(0, len(live), 512)
            )
        yield torn


def open_or_retry(disk: PowerCutDisk) -> SegmentWriter:
    files = SegmentWriter(disk.directory, disk, SEGMENT_BYTES)
    try:
        files.open(SystemClock())
    except TrackerError:
        files.close()
        files = SegmentWriter(disk.directory, disk, SEGMENT_BYTES)
        files.open(SystemClock())
    return files


def work(disk: PowerCutDisk) -> int:
    """Create, append, rotate, close, open again, append; return how many appends failed."""
    failed = 0
    for round_ in range(2):
        files = open_or_retry(disk)
        for number in range(6):
            partition, raw = number % 2, f"record {round_} {number}".encode() * 5
            offset = files._next[partition]
            try:
                files.append([[Unappended(partition, raw)]])
            except TrackerError:
                failed += 1
                continue
            disk.acknowledged[partition, offset] = raw
            disk._note()
        files.close()
    return failed


def lay_out(directory: Path, outcome: dict[str, bytes]) -> None:
    directory.mkdir()
    for name, content in outcome.items():
        if name not in {"lock", "ends"}:
            (directory / name).write_bytes(content)


async def check_image(directory: Path, outcome: dict[str, bytes], image: Image) -> None:
    lay_out(directory, outcome)
    files = open_files(directory)
    files.append([[Unappended(0, b"after the cut")]])
    files.close()
    got = await read_back(directory)
    for (partition, offset), raw in image.acknowledged.items():
        assert got[partition][offset] == raw
    assert got[0][-1] == b"after the cut"
    assert all(raw for records in got for raw in records)
    shutil.rmtree(directory)


async def test_a_power_cut_after_any_system_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    disk = PowerCutDisk(tmp_path / "log")
    work(disk)
    assert len(disk.acknowledged) == 12
    choose = random.Random(5)
    for image in disk.images:
        for outcome in image.outcomes(choose):
            await check_image(tmp_path / "cut", outcome, image)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
async def test_any_system_call_may_fail_once_and_nothing_acknowledged_is_lost(
    tmp_path: Path, error: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole = PowerCutDisk(tmp_path / "whole")
    work(whole)
    choose = random.Random(7)
    for call in range(1, whole.calls + 1):
        directory = tmp_path / f"log{call}"
        directory.mkdir()
        disk = PowerCutDisk(directory, fails={call: error})
        # One failed call may cost one append, never two.
        assert work(disk) <= 1
        got = await read_back(directory)
        for (partition, offset), raw in disk.acknowledged.items():
            assert got[partition][offset] == raw
        # And the power may go at some moment after it, too.
        image = disk.images[choose.randrange(len(disk.images))]
        for outcome in image.outcomes(choose):
            await check_image(tmp_path / "cut", outcome, image)
