"""The file log on a disk that is full, fails, hangs or is taken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from tracker.backends.file_log import (
    GROUP_BYTES,
    FileLogOptions,
    FileLogWriter,
    open_reader,
    open_writer,
)
from tracker.backends.file_segment import APPEND_BYTES_MAX, ENTRY_BYTES, Disk, segment_path
from tracker.errors import Code, TrackerError
from tracker.ports.log import Unappended

DEADLINE_S = 20.0


@dataclass
class FaultyDisk(Disk):
    """A disk with `room` bytes a file, that fails or hangs when told to."""

    room: int = 1 << 40
    syncs: list[int] = field(default_factory=list)
    sync_fails: list[int] = field(default_factory=list)  # errno of the next syncs
    may_sync: threading.Event = field(default_factory=threading.Event)
    in_sync: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_sync.set()

    def write_some(self, descriptor: int, view: memoryview, at: int) -> int:
        fits = self.room - at
        if fits <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write_some(descriptor, view[:fits], at)

    def free_bytes(self, directory: Path) -> int:
        sizes = (path.stat().st_size for path in directory.glob("*.segment"))
        return max(self.room - max(sizes), 0)

    def sync(self, descriptor: int) -> None:
        self.syncs.append(os.fstat(descriptor).st_ino)
        self.in_sync.set()
        assert self.may_sync.wait(DEADLINE_S)
        if self.sync_fails:
            raise OSError(self.sync_fails.pop(0), "Input/output error")
        super().sync(descriptor)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
async def writer(tmp_path: Path, disk: FaultyDisk) -> AsyncIterator[FileLogWriter]:
    opened = await open_writer(tmp_path, FileLogOptions(disk=disk, queue_bytes_max=1000))
    yield opened
    disk.may_sync.set()
    await opened.close()


def record(number: int, size: int = 100) -> Unappended:
    return Unappended(0, f"{number} ".encode().ljust(size, b"x"))


async def stored(directory: Path) -> list[int]:
    reader = await open_reader(directory)
    numbers: list[int] = []
    while batches := await reader.read({0: len(numbers)}, records_max=100, wait_ms=0):
        numbers += [int(r.raw.split()[0]) for batch in batches for r in batch.records]
    await reader.close()
    return numbers


async def code_of(writer: FileLogWriter, *records: Unappended) -> Code | None:
    try:
        await writer.append(records)
    except TrackerError as error:
        return error.code
    return None


@contextlib.contextmanager
def small_filesystem(directory: Path) -> Iterator[Path | None]:
    """Mount 1 MB of memory there, where that is allowed."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    try:
        is_mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield directory if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    """Take all the space that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


async def test_a_full_disk_refuses_and_is_used_again_as_soon_as_it_has_room(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    with small_filesystem(tmp_path / "small") as mounted:
        # Where nothing may be mounted, a disk that plays full has to do.
        directory = mounted or tmp_path / "small"
        options = FileLogOptions(segment_bytes=65_536, disk=Disk() if mounted else disk)
        writer = await open_writer(directory, options)
        await writer.append([record(0)])
        fill(directory / "ballast") if mounted else setattr(disk, "room", 5000)
        acknowledged, number = [0], 0
        refused: Code | None = None
        while refused is None:
            number += 1
            refused = await code_of(writer, record(number, 8000))
            if refused is None:
                acknowledged.append(number)
        assert refused == Code.LOG_FULL
        assert "full" in (writer.unready() or "")
        assert await code_of(writer, record(number, 8000)) == Code.LOG_FULL
        if mounted:
            (directory / "ballast").unlink()
        disk.room = 1 << 40
        assert writer.unready() is None
        await writer.append([record(number + 1, 8000)])
        acknowledged.append(number + 1)
        assert await stored(directory) == acknowledged
        await writer.close()
        again = await open_writer(directory, options)
        assert (again.truncated_bytes, again.abandoned_segments) == (0, 0)
        await again.close()
        assert await stored(directory) == acknowledged


async def test_a_disk_without_room_to_write_ahead_takes_what_still_fits(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter
) -> None:
    disk.room = 1100
    for number in range(3):
        await writer.append([record(number)])
    assert await code_of(writer, record(3, 300)) == Code.LOG_FULL
    assert await stored(tmp_path) == [0, 1, 2]
    assert segment_path(tmp_path, 1).stat().st_size < 1100
    await writer.append([record(4)])
    assert await stored(tmp_path) == [0, 1, 2, 4]


async def test_a_disk_that_is_full_when_a_segment_ends_is_used_again(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    writer = await open_writer(tmp_path, FileLogOptions(disk=disk, segment_bytes=1000))
    for number in range(4):
        await writer.append([record(number)])
    disk.room = 100
    assert await code_of(writer, record(4)) == Code.LOG_FULL
    assert await code_of(writer, record(5)) == Code.LOG_FULL
    disk.room = 1 << 40
    await writer.append([record(6)])
    assert await stored(tmp_path) == [0, 1, 2, 3, 6]
    await writer.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
async def test_a_failed_sync_is_never_repeated_and_its_segment_is_left(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter, error: int
) -> None:
    await writer.append([record(0)])
    disk.sync_fails.append(error)
    refused = await code_of(writer, record(1))
    assert refused == (Code.LOG_UNAVAILABLE if error == errno.EIO else Code.LOG_FULL)
    failed, so_far = disk.syncs[-1], len(disk.syncs)
    assert writer.abandoned_segments == 1
    await writer.append([record(2)])
    assert failed not in disk.syncs[so_far:]
    assert segment_path(tmp_path, 2).exists()
    assert await stored(tmp_path) == [0, 2]


async def test_the_frame_of_a_failed_sync_stays_out_even_if_it_cannot_be_cut_off(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.append([record(0)])

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, f"{descriptor} {length}")

    monkeypatch.setattr(disk, "truncate", refuse)
    disk.sync_fails.append(errno.EIO)
    assert await code_of(writer, record(1)) == Code.LOG_UNAVAILABLE
    await writer.append([record(2)])
    assert b"1 xxx" in segment_path(tmp_path, 1).read_bytes()
    assert await stored(tmp_path) == [0, 2]
    await writer.close()
    again = await open_writer(tmp_path)
    await again.append([record(3)])
    await again.close()
    assert await stored(tmp_path) == [0, 2, 3]


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, DEADLINE_S)


async def test_appends_gather_while_a_sync_is_in_flight_and_share_the_next(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter
) -> None:
    await writer.append([record(0, 1)])
    before = len(disk.syncs)
    disk.may_sync.clear()
    disk.in_sync.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.append([record(1, 1)]))
        await until(disk.in_sync)
        for number in range(2, 40):
            tasks.create_task(writer.append([record(number, 1)]))
        await asyncio.sleep(0)
        disk.may_sync.set()
    assert len(disk.syncs) - before == 2
    assert await stored(tmp_path) == list(range(40))


async def test_a_full_queue_refuses_and_keeps_what_it_took(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter
) -> None:
    disk.may_sync.clear()
    disk.in_sync.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.append([record(0)]))
        await until(disk.in_sync)
        fits = 1000 // (100 + ENTRY_BYTES)
        for number in range(1, fits + 1):
            tasks.create_task(writer.append([record(number)]))
        await asyncio.sleep(0)
        assert await code_of(writer, record(99)) == Code.LOG_UNAVAILABLE
        disk.may_sync.set()
    assert await stored(tmp_path) == list(range(fits + 1))


async def test_a_hanging_disk_is_reported_and_used_again_when_it_answers(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    writer = await open_writer(tmp_path, FileLogOptions(disk=disk, sync_deadline_s=0.05))
    disk.may_sync.clear()
    async with asyncio.timeout(DEADLINE_S):
        codes = await asyncio.gather(code_of(writer, record(0)), code_of(writer, record(1)))
        assert set(codes) == {Code.LOG_UNAVAILABLE}
        assert "not answered" in (writer.unready() or "")
        assert await code_of(writer, record(2)) == Code.LOG_UNAVAILABLE
        disk.may_sync.set()
        while writer.unready():  # noqa: ASYNC110 - the thread behind it is not ours
            await asyncio.sleep(0.001)
        await writer.append([record(3)])
    # Unknown means that they may be there, as these are.
    assert await stored(tmp_path) == [0, 1, 3]
    await writer.close()


async def test_a_cancelled_append_takes_nobody_with_it(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter
) -> None:
    disk.may_sync.clear()
    disk.in_sync.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        cancelled = tasks.create_task(writer.append([record(0)]))
        tasks.create_task(writer.append([record(1)]))
        await until(disk.in_sync)
        cancelled.cancel()
        disk.may_sync.set()
    await writer.append([record(2)])
    assert await stored(tmp_path) == [0, 1, 2]


async def test_close_waits_for_what_is_queued(tmp_path: Path, disk: FaultyDisk) -> None:
    writer = await open_writer(tmp_path, FileLogOptions(disk=disk))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        appends = [tasks.create_task(writer.append([record(n)])) for n in range(5)]
        await asyncio.sleep(0)
        await writer.close()
        assert all(append.done() for append in appends)
    assert await stored(tmp_path) == list(range(5))


async def test_the_largest_append_fits_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    writer = await open_writer(tmp_path)
    sixteenth = b"0 ".ljust(APPEND_BYTES_MAX // 16 - ENTRY_BYTES)
    largest = [Unappended(0, sixteenth)] * 16
    assert APPEND_BYTES_MAX > GROUP_BYTES
    await writer.append(largest)
    over = [*largest[1:], Unappended(0, sixteenth + b"x")]
    assert await code_of(writer, *over) == Code.INVALID
    assert len(await stored(tmp_path)) == 16
    await writer.close()


async def test_a_writer_waits_for_a_predecessor_that_is_closing(
    tmp_path: Path, disk: FaultyDisk, writer: FileLogWriter
) -> None:
    disk.may_sync.clear()
    disk.in_sync.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.append([record(0)]))
        await until(disk.in_sync)
        tasks.create_task(writer.close())
        successor = tasks.create_task(open_writer(tmp_path))
        await asyncio.sleep(0)
        assert not successor.done()
        disk.may_sync.set()
    assert await stored(tmp_path) == [0]
    await successor.result().close()


@pytest.mark.parametrize(("field_", "value"), [("version", 2), ("partitions", 64)])
async def test_a_log_of_another_format_is_refused(tmp_path: Path, field_: str, value: int) -> None:
    await (await open_writer(tmp_path)).close()
    label = tmp_path / "log.json"
    label.write_bytes(orjson.dumps(orjson.loads(label.read_bytes()) | {field_: value}))
    with pytest.raises(TrackerError, match=str(value)) as refused:
        await open_writer(tmp_path)
    assert refused.value.code == Code.CONFIGURATION
    label.write_bytes(
        orjson.dumps(orjson.loads(label.read_bytes()) | {field_: 32 if value > 2 else 1})
    )
    await (await open_writer(tmp_path, FileLogOptions(lock_wait_s=1))).close()


async def test_a_directory_that_cannot_be_made_is_one_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrackerError, match="another directory") as refused:
        await open_writer(tmp_path / "file" / "log")
    assert refused.value.code == Code.LOG_UNAVAILABLE
