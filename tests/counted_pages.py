"""Counters written by hand: what a consumer would have committed, cell by cell.

The read side's tests fill a MemoryStore with it, through the layout of `tracker.model.cell` alone,
so that they know every number without any fold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from tracker.backends.memory_log import MemoryLog, MemoryLogReader
from tracker.backends.memory_store import MemoryStore
from tracker.model.cell import (
    COLUMNS,
    DEFINITIONS,
    LEDGER,
    NAMES,
    PAGE_VALUES,
    TOTAL,
    Audience,
    PageKey,
    counters_container,
    encode_page,
    name_field,
)
from tracker.model.keys import PARTITIONS
from tracker.model.record import OTHER
from tracker.model.window import Granularity, bucket_of
from tracker.ports.log import Unappended
from tracker.ports.store import Changes, Commit, Outcome
from tracker.query.mirror import Mirror

DEADLINE_S = 5.0


@dataclass(slots=True)
class TestClock:
    """A clock that stands still unless told."""

    __test__ = False
    now: int
    monotonic: int = 1_000_000

    def now_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.monotonic


async def until(done: Callable[[], bool]) -> None:
    """Wait until `done`, letting everybody else run; fail after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.002)


class Counted:
    """A store, its log, and a hand that counts into them."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.log = MemoryLog()
        self.reader = MemoryLogReader(self.log)
        self.watermark_ms = 0
        self._numbers: dict[tuple[int, str, str], dict[str, int]] = {}
        self._pages: dict[tuple[int, str, bytes], dict[int, int]] = {}
        self._puts: dict[int, dict[str, dict[bytes, bytes | None]]] = {}
        self._ledgers: dict[tuple[int, str], dict[str, object]] = {}
        self._commits = 0

    def put(self, partition: int, container: str, field: bytes, raw: bytes | None) -> None:
        self._puts.setdefault(partition, {}).setdefault(container, {})[field] = raw

    def define(self, sites: dict[str, object], **more: object) -> None:
        """Make these sites known, in every partition."""
        current = {
            "number": 1,
            "initial": 0,
            "layers": {"api": {}, "file": sites},
            "since": {},
            "counted_from": {},
        }
        for partition in range(PARTITIONS):
            self.put(partition, DEFINITIONS, b"current", orjson.dumps(current | more))

    def fate(self, partition: int, site: str, **counts: object) -> None:
        """Set what a partition's ledger says of a site."""
        self._ledgers[partition, site] = counts
        self.put(partition, LEDGER, site.encode(), orjson.dumps(counts))

    def number(self, partition: int, site: str, space: str, text: str) -> int:
        if text in (TOTAL, OTHER) and space != COLUMNS:
            return 0
        numbers = self._numbers.setdefault((partition, site, space), {})
        if text not in numbers:
            # Columns from 0 and values from 1, and in each partition other numbers.
            numbers[text] = len(numbers) + (space != COLUMNS) + partition * 7 * (space == COLUMNS)
            self.put(partition, NAMES, name_field(site, space, numbers[text]), text.encode())
        return numbers[text]

    def cell(self, partition: int, key: PageKey, granularity: Granularity, **counts: int) -> None:
        """Add to cells of a page; `key.page` is ignored, the value stands in `key.dimension`."""
        dimension, _, value = key.dimension.partition("=")
        number = self.number(partition, key.site, dimension, value)
        placed = PageKey(key.site, key.audience, dimension, key.bucket, number // PAGE_VALUES)
        container = counters_container(granularity, key.bucket)
        page = self._pages.setdefault((partition, container, placed.field()), {})
        for column, count in counts.items():
            at = self.number(partition, "", COLUMNS, column) * PAGE_VALUES + number % PAGE_VALUES
            page[at] = page.get(at, 0) + count
            if not page[at]:
                del page[at]
        self.put(partition, container, placed.field(), encode_page(page) if page else None)

    def count(self, partition: int, at: tuple[int, int], grain: str = TOTAL, **counts: int) -> None:
        """Add events at (t_ms, day) in every granularity; `grain` is "" or "dimension=value"."""
        self.count_for("shop", Audience.PEOPLE, (partition, *at), grain, **counts)

    def count_for(
        self, site: str, audience: Audience, at: tuple[int, int, int], grain: str, **counts: int
    ) -> None:
        partition, t_ms, day = at
        for granularity in Granularity:
            bucket = bucket_of(granularity, t_ms, day)
            self.cell(partition, PageKey(site, audience, grain, bucket, 0), granularity, **counts)

    async def commit(self, records: int = 1, *, appended: int | None = None) -> None:
        """Commit what was counted since, as `records` records a partition of the log."""
        metas = await self.store.metas()
        for partition in range(PARTITIONS):
            puts = self._puts.pop(partition, {})
            if not puts:
                continue
            meta = metas[partition]
            self._commits += 1
            added = records if appended is None else appended
            self.log.add([Unappended(partition, b"{}")] * added)
            outcome = await self.store.commit(
                [
                    Commit(
                        partition=partition,
                        expected=meta.position,
                        position=meta.position + records,
                        epoch=meta.epoch,
                        log_id=self.log.identity,
                        token=f"batch {self._commits}",
                        watermark_ms=self.watermark_ms,
                        horizon_ms=self.watermark_ms,
                        changes=Changes(puts=puts),
                    )
                ]
            )
            assert list(outcome) == [Outcome.APPLIED]

    @asynccontextmanager
    async def mirror(self, clock: TestClock):
        """Run a mirror of the store."""
        mirror = Mirror(self.store, clock)
        task = asyncio.create_task(mirror.run())
        try:
            yield mirror
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
