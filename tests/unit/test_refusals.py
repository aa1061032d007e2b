"""What was not taken is counted until it stands in the log, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tracker.backends.memory_log import MemoryLog, MemoryLogReader, MemoryLogWriter
from tracker.codec import decode
from tracker.collect import appender as appending
from tracker.collect.admit import partition_of
from tracker.collect.appender import Appender
from tracker.collect.parse import Refused
from tracker.collect.refusals import Refusals
from tracker.errors import Code, TrackerError
from tracker.model.clock import SystemClock
from tracker.model.keys import PARTITIONS, Keys
from tracker.model.record import EventRecord, EventType, MarkerRecord, Record
from tracker.model.rejection import Reason, Rejection
from tracker.ports.log import Unappended

KEYS = Keys(b"k" * 32)
CLOCK = SystemClock()
GONE = TrackerError(Code.LOG_UNAVAILABLE, "gone")


class GatedWriter(MemoryLogWriter):
    """A memory log that waits, or fails, when told to."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: TrackerError | None = None

    async def append(self, records: Sequence[Unappended]) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error
        await super().append(records)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def writer(log: MemoryLog) -> GatedWriter:
    return GatedWriter(log)


async def records(log: MemoryLog) -> list[Record]:
    reader = MemoryLogReader(log)
    positions = dict.fromkeys(range(PARTITIONS), 0)
    batches = await reader.read(positions, records_max=10_000, wait_ms=0)
    return [decode(record.raw) for batch in batches for record in batch.records]


def event(number: int = 0) -> EventRecord:
    return EventRecord(
        site="shop",
        type=EventType.CLICK,
        event_id=f"e{number}",
        occurred_at_ms=1,
        received_at_ms=1,
        day=0,
        visitor_id=f"v{number}",
    )


# --- refusals -------------------------------------------------------------------------------


async def test_counts_are_kept_by_site_and_reason_and_leave_once(
    log: MemoryLog, writer: GatedWriter
) -> None:
    refusals = Refusals()
    refusals.reject(Refused("shop", Rejection(Reason.BAD_TYPE)))
    refusals.reject(Refused("shop", Rejection(Reason.TOO_MANY), 501))
    refusals.reject(Refused("", Rejection(Reason.UNKNOWN_SITE)))
    refusals.shed("shop", Code.LOG_FULL, 3)
    assert await refusals.flush(writer, CLOCK)
    assert await refusals.flush(writer, CLOCK)
    (marker,) = await records(log)
    assert isinstance(marker, MarkerRecord)
    assert marker.rejected == {
        "": {"unknown_site": 1},
        "shop": {"bad_type": 1, "too_many": 501},
    }
    assert marker.shed == {"shop": {"log_full": 3}}
    assert refusals.rejected_total["shop", "too_many"] == 501


async def test_a_failed_append_leaves_the_counts_for_the_next(
    log: MemoryLog, writer: GatedWriter
) -> None:
    refusals = Refusals()
    refusals.reject(Refused("shop", Rejection(Reason.BAD_TYPE)))
    writer.error = GONE
    assert not await refusals.flush(writer, CLOCK)
    refusals.reject(Refused("shop", Rejection(Reason.BAD_TYPE)))
    writer.error = None
    assert await refusals.flush(writer, CLOCK)
    (marker,) = await records(log)
    assert isinstance(marker, MarkerRecord)
    assert marker.rejected == {"shop": {"bad_type": 2}}


async def test_stopping_writes_what_is_left(log: MemoryLog, writer: GatedWriter) -> None:
    refusals = Refusals()
    stop = asyncio.Event()
    running = asyncio.create_task(refusals.run(writer, CLOCK, stop))
    refusals.shed("shop", "redirect_lost")
    stop.set()
    async with asyncio.timeout(5):
        await running
    (marker,) = await records(log)
    assert isinstance(marker, MarkerRecord)
    assert marker.shed == {"shop": {"redirect_lost": 1}}


# --- the appender ---------------------------------------------------------------------------


async def test_events_are_stamped_in_log_order_and_lie_where_they_belong(
    log: MemoryLog, writer: GatedWriter
) -> None:
    appender = Appender(writer, KEYS)
    await asyncio.gather(*(appender.append([event(n), event(n + 50)]) for n in range(50)))
    reader = MemoryLogReader(log)
    positions = dict.fromkeys(range(PARTITIONS), 0)
    seen = set()
    for batch in await reader.read(positions, records_max=10_000, wait_ms=0):
        stored = [decode(record.raw) for record in batch.records]
        assert all(partition_of(KEYS, item) == batch.partition for item in stored)
        sequences = [item.sequence for item in stored]
        assert sequences == sorted(sequences)
        seen.update((item.producer, item.sequence) for item in stored)
    assert len(seen) == 100
    assert appender.appended == 100


async def test_too_much_waiting_is_shed_at_once(
    writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender = Appender(writer, KEYS)
    size = sum(len(item.raw) for item in [appender._stamped(event())])
    monkeypatch.setattr(appending, "WAITING_BYTES_MAX", 2 * size + 10)
    writer.gate.clear()
    waiting = [asyncio.create_task(appender.append([event(n)])) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TrackerError) as raised:
        await appender.append([event(2)])
    assert raised.value.code is Code.LOG_UNAVAILABLE
    writer.gate.set()
    await asyncio.gather(*waiting)
    await appender.append([event(3)])


async def test_a_log_that_does_not_answer_is_given_up(
    writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "APPEND_DEADLINE_S", 0.01)
    writer.gate.clear()
    with pytest.raises(TrackerError) as raised:
        await Appender(writer, KEYS).append([event()])
    assert raised.value.retryable


async def test_a_click_is_appended_after_its_answer(log: MemoryLog, writer: GatedWriter) -> None:
    appender = Appender(writer, KEYS)
    writer.gate.clear()
    async with asyncio.timeout(1):
        task = await appender.append_click(event())
    assert task is not None
    assert not task.done()
    writer.gate.set()
    await appender.drain()
    assert task.result()
    assert len(await records(log)) == 1


async def test_only_so_many_clicks_may_wait(
    writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "REDIRECTS_MAX", 2)
    appender = Appender(writer, KEYS)
    writer.gate.clear()
    given = await asyncio.gather(*(appender.append_click(event(n)) for n in range(3)))
    assert [task is None for task in given] == [False, False, True]
    writer.gate.set()
    await appender.drain()
    assert await appender.append_click(event(4)) is not None
