from __future__ import annotations

import asyncio
import time

import pytest
from counted_pages import Counted, TestClock, until

from tracker.backends.memory_store import MemoryStore
from tracker.errors import Code, TrackerError
from tracker.model.cell import NAMES, TOTAL, Audience, name_field
from tracker.model.record import OTHER
from tracker.model.window import DAY_MS, Granularity
from tracker.query import mirror as mirror_module
from tracker.query.mirror import Mirror
from tracker.query.pages import GroupKey

DAY = 20_000
NOON_MS = DAY * DAY_MS + DAY_MS // 2
AT = (NOON_MS, DAY)
SITE = GroupKey(Granularity.DAY, DAY, "shop", Audience.PEOPLE, TOTAL)
CAMPAIGNS = GroupKey(Granularity.DAY, DAY, "shop", Audience.PEOPLE, "utm_campaign")


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def clock() -> TestClock:
    return TestClock(NOON_MS)


async def cells(mirror: Mirror, key: GroupKey) -> dict[str, dict[str, int]]:
    groups = await mirror.groups([key])
    found = groups[0].cells if groups else {}
    return {column: counts for column, counts in found.items() if counts}


async def becomes(mirror: Mirror, key: GroupKey, expected: dict[str, dict[str, int]]) -> None:
    deadline = time.monotonic() + 5
    while (found := await cells(mirror, key)) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.002)


async def test_partitions_with_other_numbers_are_merged_by_text(counted, clock):
    counted.count(0, AT, "utm_campaign=spring", views=3)
    counted.count(0, AT, "utm_campaign=autumn", views=1)
    counted.count(5, AT, "utm_campaign=autumn", clicks=2, views=10)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        assert await cells(mirror, CAMPAIGNS) == {
            "views": {"spring": 3, "autumn": 11},
            "clicks": {"autumn": 2},
        }


async def test_a_value_beyond_the_first_page_is_found(counted, clock):
    for number in range(200):
        counted.count(1, AT, f"utm_campaign=c{number}", views=number + 1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        found = await cells(mirror, CAMPAIGNS)
    assert found["views"] == {f"c{number}": number + 1 for number in range(200)}


async def test_a_commit_is_seen_with_its_new_names_and_columns(counted, clock):
    counted.count(0, AT, views=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        assert await cells(mirror, SITE) == {"views": {"": 1}}
        counted.count(0, AT, views=1, clicks=1)
        counted.count(3, AT, "utm_campaign=new", views=7)
        await counted.commit()
        await becomes(mirror, SITE, {"views": {"": 2}, "clicks": {"": 1}})
        await becomes(mirror, CAMPAIGNS, {"views": {"new": 7}})


async def test_a_count_that_falls_to_nothing_leaves_no_trace(counted, clock):
    counted.count(0, AT, views=1, orders=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        assert await cells(mirror, SITE) == {"views": {"": 1}, "orders": {"": 1}}
        counted.count(0, AT, orders=-1)
        await counted.commit()
        await becomes(mirror, SITE, {"views": {"": 1}})
        counted.count(0, AT, views=-1)
        await counted.commit()
        await becomes(mirror, SITE, {})


async def test_a_container_that_was_dropped_is_empty(counted, clock):
    counted.count(0, AT, views=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        await cells(mirror, SITE)
        await counted.store.wipe()
        await becomes(mirror, SITE, {})


async def test_numbers_that_stand_for_other_texts_after_a_rebuild_are_merged_anew(counted, clock):
    counted.count(0, AT, "utm_campaign=spring", views=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        assert await cells(mirror, CAMPAIGNS) == {"views": {"spring": 1}}
        counted.put(0, NAMES, name_field("shop", "utm_campaign", 1), b"summer")
        await counted.commit()
        await counted.store.take_over(0)  # the next notice has another epoch: all is read again
        counted.count(0, AT, "utm_campaign=spring", clicks=1)
        await counted.commit()
        await becomes(mirror, CAMPAIGNS, {"views": {"summer": 1}, "clicks": {"summer": 1}})


async def test_other_is_told_per_partition(counted, clock):
    counted.count(0, AT, f"utm_campaign={OTHER}", views=1)
    counted.count(1, AT, "utm_campaign=spring", views=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        groups = await mirror.groups([CAMPAIGNS])
        assert groups[0].folded == {0}
        assert groups[0].cells == {"views": {OTHER: 1, "spring": 1}}
        assert mirror.names.knows(1, "shop", "utm_campaign", "spring")
        assert not mirror.names.knows(0, "shop", "utm_campaign", "spring")


async def test_metas_never_run_ahead_of_what_is_held(counted, clock):
    async with counted.mirror(clock) as mirror:
        for done in range(1, 60):
            counted.count(done % 3, AT, views=1)
            await counted.commit()
            found = await cells(mirror, SITE)
            assert found.get("views", {}).get("", 0) >= sum(m.position for m in mirror.metas)
        await becomes(mirror, SITE, {"views": {"": 59}})
        assert sum(meta.position for meta in mirror.metas) == 59


class DeafStore(MemoryStore):
    """A store whose notices never arrive, but for the first None."""

    async def notices(self):
        yield None
        await asyncio.Event().wait()


async def test_lost_notices_are_found_by_looking(counted, clock, monkeypatch):
    monkeypatch.setattr(mirror_module, "BEAT_S", 0.02)
    counted.store = DeafStore()
    async with counted.mirror(clock) as mirror:
        await becomes(mirror, SITE, {})
        counted.count(0, AT, views=4)
        await counted.commit()
        await beating(mirror, clock, {"views": {"": 4}})


async def beating(mirror: Mirror, clock: TestClock, expected: dict[str, dict[str, int]]) -> None:
    deadline = time.monotonic() + 5
    while await cells(mirror, SITE) != expected:
        assert time.monotonic() < deadline
        clock.monotonic += 20
        await asyncio.sleep(0.002)


class FlakyStore(MemoryStore):
    """A store that can be away, or silent."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.is_silent = False

    async def metas(self):
        await self._answer()
        return await super().metas()

    async def load_all(self, partition, containers):
        await self._answer()
        return await super().load_all(partition, containers)

    async def _answer(self) -> None:
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_away:
            raise TrackerError(Code.STORE_UNAVAILABLE, "the store is away")


async def test_before_anything_was_read_there_is_an_error_within_a_second(counted, clock):
    counted.store = FlakyStore()
    counted.store.is_silent = True
    async with counted.mirror(clock) as mirror:
        began = time.monotonic()
        with pytest.raises(TrackerError) as caught:
            await mirror.ready()
        assert caught.value.code is Code.STORE_UNAVAILABLE
        assert time.monotonic() - began < 1.2


async def test_while_the_store_is_away_the_last_numbers_are_shown_and_then_none(
    counted, clock, monkeypatch
):
    monkeypatch.setattr(mirror_module, "BEAT_S", 0.02)
    counted.store = FlakyStore()
    counted.count(0, AT, views=4)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        await becomes(mirror, SITE, {"views": {"": 4}})
        assert not mirror.is_stale()
        counted.store.is_away = True
        clock.monotonic += 3_000
        await until(mirror.is_stale)
        assert await cells(mirror, SITE) == {"views": {"": 4}}
        clock.monotonic += 3_000
        with pytest.raises(TrackerError, match="has not answered for") as caught:
            await mirror.groups([SITE])
        assert caught.value.retryable
        counted.store.is_away = False
        await until(lambda: not mirror.is_stale())
        assert await cells(mirror, SITE) == {"views": {"": 4}}


async def test_what_was_not_asked_for_lately_is_let_go_at_the_cap(counted, clock, monkeypatch):
    monkeypatch.setattr(mirror_module, "PAGES_MAX", 2 * mirror_module.CONTAINER_PAGES + 2)
    months = [
        GroupKey(Granularity.DAY, DAY + 32 * n, *("shop", Audience.PEOPLE, TOTAL)) for n in range(4)
    ]
    for key in months:
        counted.count(0, (key.bucket * DAY_MS, key.bucket), views=key.bucket)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        for key in (*months, *months):
            assert await cells(mirror, key) == {"views": {"": key.bucket}}
            assert mirror.held()[0] <= 2
        assert len(await mirror.groups(months)) == 4


async def test_names_that_are_not_known_yet_are_read_before_an_answer(counted, clock):
    counted.count(0, AT, "utm_campaign=spring", views=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        await mirror.ready()
        mirror.names.replace(0, {})
        assert await cells(mirror, CAMPAIGNS) == {"views": {"spring": 1}}


async def test_a_page_whose_names_are_nowhere_is_no_answer(counted, clock):
    counted.count(0, AT, "utm_campaign=spring", views=1)
    counted.put(0, NAMES, name_field("shop", "utm_campaign", 1), None)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        with pytest.raises(TrackerError) as caught:
            await mirror.groups([CAMPAIGNS])
    assert caught.value.code is Code.STORE_UNAVAILABLE


async def test_definitions_and_ledgers_are_followed(counted, clock):
    counted.define({"shop": {}})
    counted.fate(0, "shop", applied=1)
    await counted.commit()
    async with counted.mirror(clock) as mirror:
        await mirror.ready()
        assert mirror.known.site("shop").currency == "USD"
        counted.define({"shop": {"currency": "EUR"}}, number=2)
        counted.fate(0, "shop", applied=2)
        await counted.commit()
        await until(lambda: mirror.known.number == 2)
        assert mirror.known.site("").currency == "EUR"
        assert mirror.ledgers()[0] == {"shop": {"applied": 2}}


async def test_a_torn_partition_is_named(counted, clock):
    counted.store.tear(7, "batch")
    async with counted.mirror(clock) as mirror:
        await until(lambda: mirror.torn == [7])
