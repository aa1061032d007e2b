"""Reading the file log: across segments, past damage, beside the writer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tracker.backends.file_log import FileLogOptions, FileLogWriter, open_reader, open_writer
from tracker.backends.file_segment import (
    SLOT_BYTES,
    Ends,
    Framing,
    segment_numbers,
    segment_path,
    unpack_ends,
)
from tracker.errors import Code, TrackerError
from tracker.ports.log import LogRecord, Unappended

SEGMENT_BYTES = 4096
"""Some thirty records of this page."""


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[FileLogWriter]:
    opened = await open_writer(tmp_path, FileLogOptions(segment_bytes=SEGMENT_BYTES))
    yield opened
    await opened.close()


async def append(writer: FileLogWriter, numbers: range) -> None:
    for number in numbers:
        await writer.append([Unappended(number % 3, f"{number} ".encode().ljust(100, b"x"))])


async def test_a_reader_starts_in_the_segment_that_holds_its_position(
    tmp_path: Path, writer: FileLogWriter
) -> None:
    await append(writer, range(300))
    last = segment_numbers(tmp_path)[-1]
    assert last > 5
    for number in range(1, last - 1):
        # What lies before is not even opened.
        segment_path(tmp_path, number).rename(tmp_path / f"{number}.away")
    reader = await open_reader(tmp_path)
    batches = await reader.read({0: 98, 1: 98}, records_max=10, wait_ms=0)
    assert [(b.partition, b.next_position) for b in batches] == [(0, 100), (1, 100)]
    with pytest.raises(TrackerError) as refused:
        await reader.read({0: 1}, records_max=10, wait_ms=0)
    assert refused.value.code == Code.NOT_FOUND
    assert (await reader.read({2: 99}, records_max=10, wait_ms=0))[0].next_position == 100
    await reader.close()


async def test_a_missing_segment_in_the_middle_is_an_error_and_no_loss(
    tmp_path: Path, writer: FileLogWriter
) -> None:
    await append(writer, range(100))
    segment_path(tmp_path, 2).rename(tmp_path / "away")
    reader = await open_reader(tmp_path)
    positions = dict.fromkeys(range(3), 0)

    async def read_on() -> None:
        while batches := await reader.read(positions, records_max=7, wait_ms=0):
            for batch in batches:
                positions[batch.partition] = batch.next_position

    with pytest.raises(TrackerError, match=segment_path(tmp_path, 2).name) as refused:
        await read_on()
    assert refused.value.code == Code.LOG_UNAVAILABLE
    (tmp_path / "away").rename(segment_path(tmp_path, 2))
    await read_on()
    assert positions == {0: 34, 1: 33, 2: 33}
    await reader.close()


async def test_a_lost_segment_is_delivered_as_unreadable_records(
    tmp_path: Path, writer: FileLogWriter
) -> None:
    await append(writer, range(100))
    path = segment_path(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:512].ljust(path.stat().st_size, b"\xee"))
    reader = await open_reader(tmp_path)
    got: list[LogRecord] = []
    while batches := await reader.read({1: len(got)}, records_max=4, wait_ms=0):
        got += batches[0].records
    assert [record.offset for record in got] == list(range(33))
    lost = [record.offset for record in got if not record.raw]
    assert 5 < len(lost) < 15
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert reader.damaged_places == 1
    await reader.close()


async def test_a_frame_inside_a_record_is_never_taken_for_one(
    tmp_path: Path, writer: FileLogWriter
) -> None:
    await append(writer, range(3))
    whole = segment_path(tmp_path, 1).read_bytes()[512:]
    await writer.append([Unappended(0, whole[:400])])
    path = segment_path(tmp_path, 1)
    raw = bytearray(path.read_bytes())
    marker = Framing(writer.identity, 1).marker
    frames = [at for at in range(512, len(raw)) if raw.startswith(marker, at)]
    assert len(frames) > 4
    raw[frames[3]] ^= 1
    path.write_bytes(raw)
    reader = await open_reader(tmp_path)
    batch = (await reader.read({0: 1}, records_max=10, wait_ms=0))[0]
    assert list(batch.records) == [LogRecord(1, b"")]
    assert reader.damaged_places == 1
    await reader.close()


async def test_a_frame_larger_than_what_is_read_at_once_is_read(tmp_path: Path) -> None:
    writer = await open_writer(tmp_path)
    records = [Unappended(n % 3, f"{n} ".encode().ljust(500_000, b"x")) for n in range(9)]
    await writer.append(records)
    await writer.append(records[:3])
    reader = await open_reader(tmp_path)
    positions, count = dict.fromkeys(range(3), 0), 0
    while batches := await reader.read(positions, records_max=2, wait_ms=1000):
        for batch in batches:
            positions[batch.partition] = batch.next_position
            count += len(batch.records)
            assert all(len(record.raw) == 500_000 for record in batch.records)
        if count == 12:
            break
    assert positions == dict.fromkeys(range(3), 4)
    await reader.close()
    await writer.close()


async def test_there_being_no_log_yet_is_one_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="start the collector") as refused:
        await open_reader(tmp_path / "nowhere", 0.03)
    assert refused.value.code == Code.LOG_UNAVAILABLE


async def test_a_position_after_the_end_waits_for_it(tmp_path: Path, writer: FileLogWriter) -> None:
    await append(writer, range(3))
    reader = await open_reader(tmp_path)
    assert not await reader.read({0: 2}, records_max=10, wait_ms=0)
    await append(writer, range(3, 9))
    batch = (await reader.read({0: 2}, records_max=10, wait_ms=0))[0]
    assert (batch.records[0].offset, batch.next_position) == (2, 3)
    await reader.close()


def test_the_newest_whole_publication_counts_wherever_the_other_is_torn() -> None:
    identity = "0123456789abcdef" * 2
    old, new = (Ends(n, n, 512 * n, tuple(range(n, n + 32))) for n in (4, 5))
    slots = old.pack(identity) + new.pack(identity)
    assert unpack_ends(slots, identity) == new
    for cut in range(60, 320):
        torn = slots[:SLOT_BYTES] + new.pack(identity)[:cut] + old.pack(identity)[cut:]
        assert unpack_ends(torn, identity) in (old, new)
    assert unpack_ends(slots[: SLOT_BYTES + 10], identity) == old
    assert unpack_ends(slots, identity[::-1]) is None
    assert unpack_ends(bytes(2 * SLOT_BYTES), "0" * 32) is None
