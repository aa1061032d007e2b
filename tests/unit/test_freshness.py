from __future__ import annotations

import pytest
from counted_pages import Counted, TestClock

from tracker.backends.memory_log import MemoryLog, MemoryLogReader
from tracker.errors import Code, TrackerError
from tracker.model.window import DAY_MS, HOUR_MS
from tracker.ports.log import Unappended
from tracker.query.freshness import read_freshness
from tracker.query.ledger import ledger
from tracker.query.ranges import iso
from tracker.query.report import report

DAY = 20_000  # 2024-10-04
NOW_MS = DAY * DAY_MS + 12 * HOUR_MS
AT = (NOW_MS, DAY)


@pytest.fixture
async def counted() -> Counted:
    """A site, and in partitions 0 and 1 records received an hour and two hours ago."""
    counted = Counted()
    counted.define({"shop": {}})
    await counted.commit()
    for partition, hours in ((0, 1), (1, 2)):
        counted.watermark_ms = NOW_MS - hours * HOUR_MS
        counted.count(partition, AT, views=1)
        await counted.commit()
    return counted


async def ask(counted: Counted, **given: str):
    clock = TestClock(NOW_MS)
    async with counted.mirror(clock) as mirror:
        listed = {key.rstrip("_"): [value] for key, value in given.items()}
        return await report(mirror, counted.reader, clock, listed)


async def test_when_all_was_read_an_answer_is_as_of_now(counted):
    answer = await ask(counted, window="1h")
    assert answer["as_of"] == iso(NOW_MS)
    assert answer["complete"] is True


async def test_a_partition_that_lags_holds_as_of_back_and_idle_ones_do_not(counted):
    counted.log.add([Unappended(0, b"{}")])
    answer = await ask(counted, window="1h")
    assert answer["as_of"] == iso(NOW_MS - HOUR_MS)
    assert answer["complete"] is False
    counted.log.add([Unappended(1, b"{}")])
    assert (await ask(counted, window="1h"))["as_of"] == iso(NOW_MS - 2 * HOUR_MS)


async def test_a_range_that_every_partition_has_passed_is_complete_while_one_lags(counted):
    counted.log.add([Unappended(0, b"{}")])
    assert (await ask(counted, from_="2024-10-03", to="2024-10-04"))["complete"] is True
    assert (await ask(counted, from_="2024-10-03", to="2024-10-04T12:00"))["complete"] is False


async def test_a_range_that_is_not_over_is_not_complete(counted):
    answer = await ask(counted, from_="2024-10-04", to="2024-10-05")
    assert answer["as_of"] == iso(NOW_MS)
    assert answer["complete"] is False


async def test_a_partition_of_which_nothing_live_was_read_leaves_as_of_open(counted):
    counted.log.add([Unappended(7, b"{}")])
    counted.log.add([Unappended(7, b"{}")])
    metas = await counted.store.metas()
    assert metas[7].watermark_ms == 0
    answer = await ask(counted, window="1h")
    assert answer["as_of"] is None
    assert answer["complete"] is False


@pytest.mark.parametrize(("site", "complete"), [("shop", False), ("", False), ("blog", True)])
async def test_a_quarantined_record_of_the_site_or_of_no_known_one_is_incomplete(
    counted, site, complete
):
    counted.fate(3, site, quarantined=1)
    await counted.commit()
    assert (await ask(counted, window="1h"))["complete"] is complete


async def test_the_epoch_grows_when_a_partition_changes_hands(counted):
    before = (await ask(counted))["epoch"]
    await counted.store.take_over(5)
    assert (await ask(counted))["epoch"] == before + 1


async def test_counters_of_another_log_are_no_answer(counted):
    counted.reader = MemoryLogReader(MemoryLog())
    with pytest.raises(TrackerError) as caught:
        await ask(counted)
    assert caught.value.code is Code.LOG_CHANGED


async def test_lags_are_told_by_partition(counted):
    counted.log.add([Unappended(2, b"{}")] * 3)
    clock = TestClock(NOW_MS)
    async with counted.mirror(clock) as mirror:
        await mirror.ready()
        fresh = read_freshness(mirror, counted.reader, clock, "shop")
    assert fresh.lags[:4] == (0, 0, 3, 0)


async def ask_ledger(counted: Counted, **given: str):
    clock = TestClock(NOW_MS)
    async with counted.mirror(clock) as mirror:
        listed = {key: [value] for key, value in given.items()}
        return await ledger(mirror, counted.reader, clock, listed)


async def test_the_ledger_adds_up_over_partitions_and_sites(counted):
    refused = {"future": 2, "bad_type": 1}
    counted.fate(0, "shop", applied=10, duplicate=3, conflict=1, late=2, quarantined=0)
    counted.fate(4, "shop", applied=1, behind=1, unmatched=2, rejected=refused)
    counted.fate(0, "", rejected={"unknown_site": 5}, shed={"overload": 4}, quarantined=1)
    counted.fate(9, "blog", applied=100)
    await counted.commit()
    counted.log.add([Unappended(0, b"{}")] * 6)
    found = await ask_ledger(counted, site="shop")
    assert found == {
        "site": "shop",
        "received": 16 + 6 + 3,
        "accepted": 16 + 6,
        "rejected": refused,
        "shed": {},
        "applied": 11,
        "duplicate": 3,
        "late": 2,
        "quarantined": 0,
        "in_flight": 6,
        "conflict": 1,
        "behind": 1,
        "unmatched": 2,
        "as_of": iso(NOW_MS - 2 * HOUR_MS),
    }
    everything = await ask_ledger(counted)
    assert everything["applied"] == 111
    assert everything["rejected"] == {"unknown_site": 5, "future": 2, "bad_type": 1}
    assert everything["shed"] == {"overload": 4}
    assert everything["accepted"] == 111 + 3 + 2 + 1 + 6
    assert everything["received"] == everything["accepted"] + 8 + 4


async def test_the_ledger_of_a_site_that_was_never_heard_of_is_empty(counted):
    found = await ask_ledger(counted, site="new")
    assert found["received"] == found["accepted"] == found["in_flight"] == 0
