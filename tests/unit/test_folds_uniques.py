"""Distinct visitors: exact for windows that end now and for whole days, without a sketch."""

from __future__ import annotations

import pytest
from folding import (
    DAY,
    DAY0,
    HOUR,
    MINUTE,
    SECOND,
    T0,
    Bench,
    at,
    bought,
    count_in,
    distinct,
    last_since,
    readable,
)

from tracker.model.cell import GAP_EXACT_MAX, gap_class, gap_class_max
from tracker.model.window import Granularity

PERIOD_OF_STATE = 43 * DAY
"""After at least 35 days and at most one period of 8 more, nobody is known any more."""


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.define()
    return made


async def test_a_visitor_counts_once_in_a_window_that_ends_now(bench: Bench) -> None:
    await bench.send(at(0), at(5 * MINUTE), at(10 * MINUTE), at(10 * MINUTE, visitor="w"))
    cells = await bench.cells()
    for granularity, size in ((Granularity.SECONDS, 10 * SECOND), (Granularity.MINUTE, MINUTE)):
        start = T0 // size
        assert last_since(cells, "visitors", start, granularity=granularity) == 2
        after = (T0 + 10 * MINUTE + size) // size
        assert last_since(cells, "visitors", after, granularity=granularity) == 0


async def test_a_visitor_counts_once_in_any_range_of_days(bench: Bench) -> None:
    for day in (0, 1, 3):
        await bench.send(at(day * DAY))
    await bench.send(at(3 * DAY, visitor="w"))
    cells = await bench.cells()
    spans = {(0, 1): 1, (0, 2): 1, (0, 4): 2, (1, 4): 2, (2, 3): 0, (2, 4): 2, (3, 4): 2}
    found = {
        span: distinct(cells, "visitors", first=DAY0 + span[0], stop=DAY0 + span[1])
        for span in spans
    }
    assert found == spans


async def test_a_visitor_counts_once_in_each_row(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(HOUR, source="b"), at(2 * HOUR, source="a"))
    cells = await bench.cells()
    assert distinct(cells, "visitors", utm_source="a") == 1
    assert distinct(cells, "visitors", utm_source="b") == 1
    assert distinct(cells, "visitors") == 1
    assert last_since(cells, "visitors", DAY0) == 1


async def test_a_new_row_of_one_dimension_is_known_in_the_others(bench: Bench) -> None:
    await bench.send(at(0, source="a", device="phone"), at(DAY, source="b", device="phone"))
    cells = await bench.cells()
    assert distinct(cells, "visitors", device="phone") == 1
    assert distinct(cells, "visitors", utm_source="b") == 1


async def test_converters_count_once_under_the_touch_they_are_credited_to(bench: Bench) -> None:
    await bench.send(at(0, source="a"), bought(1, "", 5), bought(2, "", 5))
    cells = await bench.cells()
    assert distinct(cells, "converters", utm_source="a") == 1
    assert count_in(cells, "conversions", utm_source="a") == 2


async def test_a_late_event_moves_the_uniques_of_the_day_it_belongs_to(bench: Bench) -> None:
    await bench.send(at(14 * HOUR + MINUTE))
    await bench.send(at(14 * HOUR - MINUTE, received=14 * HOUR + 2 * MINUTE))
    cells = await bench.cells()
    assert distinct(cells, "visitors", first=DAY0, stop=DAY0 + 1) == 1
    assert distinct(cells, "visitors", first=DAY0 + 1, stop=DAY0 + 2) == 1
    assert distinct(cells, "visitors") == 1
    assert last_since(cells, "visitors", DAY0 + 1) == 1


@pytest.mark.parametrize("quarters", [1, 63, 64, 200, 3_000])
async def test_a_gap_of_quarters_is_exact_to_63_and_then_bounded(
    bench: Bench, quarters: int
) -> None:
    await bench.send(at(0), at(quarters * 15 * MINUTE))
    cells = await bench.cells()
    first = T0 // (15 * MINUTE)
    where = {"granularity": Granularity.QUARTER, "stop": first + quarters + 1}
    assert distinct(cells, "visitors", first=first + 1, **where) == 1
    in_both = distinct(cells, "visitors", first=first, **where)
    assert in_both == 1 if quarters <= GAP_EXACT_MAX else in_both in (1, 2)
    assert gap_class(quarters) <= quarters <= gap_class_max(gap_class(quarters))
    assert gap_class_max(gap_class(quarters)) - gap_class(quarters) <= quarters / 32


async def test_a_visitor_is_forgotten_only_when_nobody_can_need_it_any_more(
    bench: Bench,
) -> None:
    await bench.send(at(0), at(35 * DAY))
    assert distinct(await bench.cells(), "visitors") == 1
    await bench.send(at(35 * DAY + PERIOD_OF_STATE))
    assert distinct(await bench.cells(), "visitors") == 2


async def test_buckets_are_kept_by_the_logs_time_and_then_dropped(bench: Bench) -> None:
    await bench.send(at(0))
    kept = {"10s": 2 * HOUR, "1m": 2 * DAY, "15m": 45 * DAY}
    for granularity, age in kept.items():
        where = {"granularity": Granularity(granularity), "bucket": T0 // _SIZES[granularity]}
        await bench.send(at(age, event_id=f"{granularity} kept"))
        assert await bench.count("views", **where) == 1
        # What is left of an expired bucket goes with the last one of its container.
        await bench.send(at(age + DAY + HOUR, event_id=f"{granularity} gone"))
        assert await bench.count("views", **where) == 0
    # Days are kept for good: the first event, and the one two hours after it.
    assert await bench.count("views", bucket=DAY0) == 2


_SIZES = {"10s": 10 * SECOND, "1m": MINUTE, "15m": 15 * MINUTE}


async def test_buckets_that_the_first_batch_outlives_are_dropped_too(bench: Bench) -> None:
    fresh = Bench()
    fresh.add(at(0), at(3 * DAY), at(4 * DAY))
    await fresh.drain()
    cells = await fresh.cells()
    horizon = T0 + 4 * DAY
    tens = {place for place in cells if place.granularity == Granularity.SECONDS}
    assert tens == {place for place in readable(cells, horizon) if place in tens}
    assert count_in(cells, "views") == 3
    assert bench.log is not fresh.log


async def test_a_late_event_counts_in_every_bucket_that_is_still_kept(bench: Bench) -> None:
    await bench.send(at(0, received=3 * HOUR))
    cells = await bench.cells()
    found = {str(place.granularity) for place in cells if place.column == "views"}
    assert found == {"1m", "15m", "1d"}
