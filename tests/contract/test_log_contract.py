"""The contract of `tracker.ports.log`, on every back end."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from log_backends import (
    BACKENDS,
    DEADLINE_S,
    SMALL,
    Backend,
    read_all,
    read_until,
    start_process,
)

from tracker.backends.append_socket import AppendClient
from tracker.backends.file_log import open_reader, open_writer
from tracker.errors import Code, TrackerError
from tracker.ports.log import RECORD_BYTES_MAX, LogBatch, LogReader, Unappended


@pytest.fixture(params=BACKENDS)
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    backend = BACKENDS[request.param]()
    await backend.start(tmp_path)
    yield backend
    await backend.stop()


@pytest.fixture
async def reader(log: Backend) -> AsyncIterator[LogReader]:
    opened = await log.reader()
    yield opened
    await opened.close()


def records(numbers: Iterable[int], partitions: int = 4) -> list[Unappended]:
    return [Unappended(n % partitions, f"record {n} {'x' * 100}".encode()) for n in numbers]


def flat(batches: Iterable[LogBatch]) -> list[tuple[int, int]]:
    return sorted((batch.partition, r.offset) for batch in batches for r in batch.records)


async def test_what_was_appended_is_read_in_the_order_given(
    log: Backend, reader: LogReader
) -> None:
    writer = await log.writer()
    for start in range(0, 1000, 50):
        await writer.append(records(range(start, start + 50)))
    expected = {p: [r.raw for r in records(range(1000)) if r.partition == p] for p in range(32)}
    assert await read_all(reader) == expected
    assert list(reader.ends()) == [250] * 4 + [0] * 28


async def test_an_append_of_nothing_is_durable_at_once(log: Backend, reader: LogReader) -> None:
    await (await log.writer()).append([])
    assert sum(reader.ends()) == 0


async def test_a_read_gives_at_most_what_was_asked_for_and_goes_on_from_there(
    log: Backend, reader: LogReader
) -> None:
    await (await log.writer()).append(records(range(100)))
    for records_max in (1, 2, 7):
        batches = await reader.read(
            dict.fromkeys(range(4), 0), records_max=records_max, wait_ms=100
        )
        assert len(flat(batches)) == records_max
    got = await read_until(
        reader,
        dict.fromkeys(range(4), 0),
        lambda read: sum(map(len, read.values())) == 100,
        records_max=7,
    )
    assert [len(got[p]) for p in range(4)] == [25] * 4


async def test_a_read_gives_only_the_partitions_asked_for(log: Backend, reader: LogReader) -> None:
    await (await log.writer()).append(records(range(100)))
    batches = await reader.read({2: 0, 9: 0}, records_max=1000, wait_ms=100)
    assert flat(batches) == [(2, offset) for offset in range(25)]
    batches = await reader.read({1: 20}, records_max=1000, wait_ms=100)
    assert flat(batches) == [(1, offset) for offset in range(20, 25)]


async def test_an_idle_read_returns_nothing_after_its_wait(log: Backend, reader: LogReader) -> None:
    await (await log.writer()).append(records(range(4)))
    started = time.monotonic()
    assert not await reader.read(dict.fromkeys(range(4), 1), records_max=10, wait_ms=60)
    assert 0.05 < time.monotonic() - started < DEADLINE_S


async def test_a_waiting_read_returns_soon_after_the_append(
    log: Backend, reader: LogReader
) -> None:
    writer = await log.writer()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        read = tasks.create_task(reader.read({0: 0}, records_max=10, wait_ms=60_000))
        await writer.append(records([0]))
    assert flat(read.result()) == [(0, 0)]


async def test_positions_that_were_set_back_are_read_again(log: Backend, reader: LogReader) -> None:
    await (await log.writer()).append(records(range(400)))
    await (await log.writer()).append(records(range(400, 800)))
    positions = dict.fromkeys(range(4), 0)
    first = await read_until(reader, positions, lambda got: all(len(got[p]) == 200 for p in got))
    positions = dict.fromkeys(range(4), 150)
    again = await read_until(reader, positions, lambda got: all(len(got[p]) == 50 for p in got))
    assert again == {p: first[p][150:] for p in range(4)}


async def test_one_position_set_back_repeats_nothing_of_the_others(
    log: Backend, reader: LogReader
) -> None:
    writer = await log.writer()
    await writer.append(records(range(800)))
    positions = dict.fromkeys(range(4), 0)
    first = await read_until(reader, positions, lambda got: all(len(got[p]) == 200 for p in got))
    positions[3] = 10
    await writer.append(records(range(800, 840)))
    again = await read_until(
        reader, positions, lambda got: len(got[3]) == 200 and len(got[0]) == 10, records_max=9
    )
    assert again[3][:190] == first[3][10:]
    assert [len(again[p]) for p in range(3)] == [10] * 3


async def test_any_mix_of_appends_and_positions_reads_what_memory_says(
    log: Backend, reader: LogReader
) -> None:
    choose = random.Random(3)
    writer = await log.writer()
    model: list[list[bytes]] = [[] for _ in range(32)]
    positions = dict.fromkeys(range(32), 0)
    for step in range(150):
        batch = [
            Unappended(choose.randrange(32), f"{step}-{index}-".encode() * choose.randrange(1, 9))
            for index in range(choose.randrange(12))
        ]
        await writer.append(batch)
        for record in batch:
            model[record.partition].append(record.raw)
        if choose.random() < 0.2:
            for partition in choose.sample(range(32), choose.randrange(1, 32)):
                positions[partition] = choose.randrange(len(model[partition]) + 1)
        asked = {p: positions[p] for p in choose.sample(range(32), choose.randrange(1, 33))}
        got = await reader.read(asked, records_max=choose.randrange(1, 40), wait_ms=0)
        for part in got:
            start = asked[part.partition]
            found = [record.raw for record in part.records]
            assert found == model[part.partition][start : start + len(found)]
            assert part.next_position == start + len(found)
            positions[part.partition] = part.next_position
        waiting = any(asked[p] < len(model[p]) for p in asked)
        assert bool(got) == waiting
    assert await read_all(reader) == dict(enumerate(model))


async def test_concurrent_appends_each_stand_once_and_whole(
    log: Backend, reader: LogReader
) -> None:
    writers = [await log.writer() for _ in range(3)]

    async def append(worker: int) -> None:
        for number in range(20):
            batch = [Unappended(5, f"{worker} {number} {i}".encode()) for i in range(3)]
            await writers[worker % 3].append(batch)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for worker in range(30):
            tasks.create_task(append(worker))
    got = (await read_all(reader))[5]
    assert Counter(got) == Counter(
        f"{w} {n} {i}".encode() for w in range(30) for n in range(20) for i in range(3)
    )
    assert [raw[-1:] for raw in got] == [b"0", b"1", b"2"] * 600


async def test_the_largest_record_fits_and_one_byte_more_is_refused(
    log: Backend, reader: LogReader
) -> None:
    writer = await log.writer()
    largest = b"x" * RECORD_BYTES_MAX
    await writer.append([Unappended(0, largest)])
    with pytest.raises(TrackerError) as refused:
        await writer.append([Unappended(0, largest + b"x")])
    assert refused.value.code == Code.INVALID
    assert (await read_all(reader))[0] == [largest]


async def test_a_partition_that_does_not_exist_is_refused(log: Backend, reader: LogReader) -> None:
    with pytest.raises(TrackerError) as refused:
        await (await log.writer()).append([Unappended(0, b"a"), Unappended(32, b"b")])
    assert refused.value.code == Code.INVALID
    assert sum(reader.ends()) == 0


async def test_a_closed_writer_says_so(log: Backend) -> None:
    writer = await log.writer()
    assert writer.unready() is None
    await writer.append(records([0]))
    await writer.close()
    assert "closed" in (writer.unready() or "")
    with pytest.raises(TrackerError) as refused:
        await writer.append(records([0]))
    assert refused.value.code == Code.LOG_UNAVAILABLE


async def test_all_readers_of_a_log_name_it_alike(log: Backend, reader: LogReader) -> None:
    other = await log.reader()
    assert reader.identity == other.identity != ""
    await other.close()


async def test_a_reader_in_another_process_sees_everything_while_a_writer_appends(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "log"
    process = await start_process("follow", directory, Path("3000"))
    writer = await open_writer(directory, SMALL)
    for start in range(0, 3000, 10):
        await writer.append(records(range(start, start + 10), partitions=32))
    async with asyncio.timeout(DEADLINE_S):
        printed, _ = await process.communicate()
    seen = Counter(tuple(line.split(" ", 1)) for line in printed.decode().splitlines())
    assert seen == Counter((str(r.partition), r.raw.decode()) for r in records(range(3000), 32))
    await writer.close()


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_writer_loses_nothing_that_it_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    directory, oracle = tmp_path / "log", tmp_path / "acknowledged"
    before: dict[int, list[bytes]] = {}
    for round_ in range(2):
        process = await start_process("write", directory, oracle)
        enough = random.Random(seed).randrange(1000, 30_000) * (round_ + 1)
        await wait_for_size(oracle, enough)
        process.kill()
        await process.wait()
        # The lock died with the process, and the log opens at once.
        writer = await open_writer(directory, SMALL)
        reader = await open_reader(directory)
        got = await read_all(reader)
        acknowledged = oracle.read_bytes().splitlines()
        stored = Counter(raw for part in got.values() for raw in part)
        assert set(acknowledged) <= stored.keys()
        assert all(got[p][: len(known)] == known for p, known in before.items())
        before = got
        await reader.close()
        await writer.close()


async def append_until_refused(client: AppendClient, first: int, done: list[int]) -> None:
    for number in itertools.count(first):
        try:
            await client.append(records([number]))
        except TrackerError as error:
            if error.code != Code.LOG_UNAVAILABLE:
                raise
            return
        done.append(number)


async def test_a_killed_server_loses_nothing_and_the_client_finds_the_next_one(
    tmp_path: Path,
) -> None:
    directory, path = tmp_path / "log", tmp_path / "run" / "append.sock"
    client = AppendClient(path)
    acknowledged: list[int] = []
    for round_ in range(2):
        process = await start_process("serve", directory, path)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        enough = len(acknowledged) + 200
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for worker in range(4):
                first = (round_ * 4 + worker) * 100_000
                tasks.create_task(append_until_refused(client, first, acknowledged))
            while len(acknowledged) < enough:
                await client.append(records([9_999_999]))
            process.kill()
        await process.wait()
        assert client.unready() is not None
    await client.close()
    writer = await open_writer(directory, SMALL)
    reader = await open_reader(directory)
    stored = {raw for part in (await read_all(reader)).values() for raw in part}
    assert {record.raw for record in records(acknowledged)} <= stored
    await reader.close()
    await writer.close()


async def test_a_second_writer_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    first = await open_writer(tmp_path, SMALL)
    with pytest.raises(TrackerError) as refused:
        await open_writer(tmp_path, SMALL)
    assert refused.value.code == Code.LOG_LOCKED
    assert "stop it" in refused.value.message
    await first.append(records([0]))
    await first.close()
    await (await open_writer(tmp_path, SMALL)).close()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def wait_for_size(path: Path, size: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while size_of(path) < size:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.002)
