"""Funnels: closed, in loose order, one attempt a visitor at a time."""

from __future__ import annotations

import pytest
from folding import (
    CONVERSION,
    DAY,
    DAY0,
    HOUR,
    IMPRESSION,
    MINUTE,
    Bench,
    at,
    bought,
    distinct,
    last_since,
    reached,
)

from tracker.model.cell import funnel_unique
from tracker.model.record import EventRecord, Trust


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.define()
    return made


def cart(t: int, **said: object) -> EventRecord:
    return at(t, CONVERSION, name="cart", **said)


async def test_each_step_counts_the_visitors_that_reached_it(bench: Bench) -> None:
    await bench.send(*(at(0, visitor=who) for who in "abc"))
    await bench.send(*(cart(1, visitor=who) for who in "ab"), bought(2, "", 5, visitor="a"))
    assert reached(await bench.cells(), "checkout") == [3, 2, 1]


async def test_a_later_step_without_the_one_before_counts_nothing(bench: Bench) -> None:
    await bench.send(at(0), bought(1, "", 5), cart(2))
    assert reached(await bench.cells(), "checkout") == [1, 1, 0]


async def test_who_does_not_take_the_first_step_is_not_in_the_funnel(bench: Bench) -> None:
    await bench.send(cart(0), bought(1, "", 5))
    assert reached(await bench.cells(), "checkout") == [0, 0, 0]


async def test_other_events_may_come_between(bench: Bench) -> None:
    await bench.send(at(0), at(1, IMPRESSION), at(2), at(3, CONVERSION, name="lead"), cart(4))
    assert reached(await bench.cells(), "checkout") == [1, 1, 0]


@pytest.mark.parametrize(("after", "bought_in_time"), [(DAY, 1), (DAY + 1, 0)])
async def test_within_is_inclusive_to_the_millisecond(
    bench: Bench, after: int, bought_in_time: int
) -> None:
    await bench.send(at(0), cart(1), bought(after, "", 5))
    assert reached(await bench.cells(), "checkout", stop=DAY0 + 1)[2] == bought_in_time


async def test_within_counts_from_the_first_of_many_first_steps(bench: Bench) -> None:
    await bench.send(at(0), at(30 * MINUTE), at(HOUR + 1, CONVERSION, name="lead"))
    assert reached(await bench.cells(), "quick") == [1, 0, 0]


async def test_a_step_may_have_the_time_of_the_one_before(bench: Bench) -> None:
    await bench.send(at(0), cart(0, event_id="a"), bought(0, "", 5, event_id="b"))
    assert reached(await bench.cells(), "checkout") == [1, 1, 1]


async def test_one_event_satisfies_one_step(bench: Bench) -> None:
    await bench.define({"funnel": {"twice": {"steps": ["view", "view"]}}})
    await bench.send(at(0))
    assert reached(await bench.cells(), "twice", since=2) == [1, 0, 0]
    await bench.send(at(1))
    assert reached(await bench.cells(), "twice", since=2) == [1, 1, 0]


async def test_the_next_attempt_begins_when_the_last_step_was_reached(bench: Bench) -> None:
    await bench.send(at(0), at(1, CONVERSION, name="lead"), at(14 * HOUR))
    cells = await bench.cells()
    # The first attempt is over, so that the view of the next day enters anew.
    assert reached(cells, "quick", first=DAY0, stop=DAY0 + 1) == [1, 1, 0]
    assert reached(cells, "quick", first=DAY0 + 1) == [1, 0, 0]


async def test_in_a_range_a_visitor_counts_once_with_its_furthest_step(bench: Bench) -> None:
    for day in range(4):
        await bench.send(at(day * DAY, received=day * DAY))
    await bench.send(at(4 * DAY), at(4 * DAY + 1, CONVERSION, name="lead"))
    await bench.send(at(5 * DAY))
    cells = await bench.cells()
    assert reached(cells, "quick") == [1, 1, 0]
    assert reached(cells, "quick", first=DAY0 + 1, stop=DAY0 + 4) == [1, 0, 0]
    assert reached(cells, "quick", first=DAY0 + 5) == [1, 0, 0]
    entered = funnel_unique("quick", 1, 1, 0)
    assert last_since(cells, entered, DAY0 + 5) == 1
    assert last_since(cells, entered, DAY0) == 1


async def test_a_step_counts_in_the_bucket_of_the_entry(bench: Bench) -> None:
    await bench.send(at(13 * HOUR), cart(15 * HOUR))
    cells = await bench.cells()
    assert reached(cells, "checkout", first=DAY0, stop=DAY0 + 1) == [1, 1, 0]
    assert reached(cells, "checkout", first=DAY0 + 1) == [0, 0, 0]


@pytest.mark.parametrize(("after", "elapsed"), [(MINUTE, 0), (MINUTE + 1, 1), (6 * HOUR + 1, 5)])
async def test_a_step_is_kept_by_the_time_it_took(bench: Bench, after: int, elapsed: int) -> None:
    await bench.send(at(0), cart(after))
    assert distinct(await bench.cells(), funnel_unique("checkout", 1, 2, elapsed)) == 1


async def test_a_late_step_is_sorted_in(bench: Bench) -> None:
    await bench.send(at(0), bought(20 * MINUTE, "", 5))
    assert reached(await bench.cells(), "checkout") == [1, 0, 0]
    await bench.send(cart(10 * MINUTE, received=21 * MINUTE))
    assert reached(await bench.cells(), "checkout") == [1, 1, 1]


async def test_a_late_first_step_takes_the_later_ones_with_it(bench: Bench) -> None:
    await bench.send(cart(10 * MINUTE), bought(20 * MINUTE, "", 5))
    await bench.send(at(0, received=21 * MINUTE))
    assert reached(await bench.cells(), "checkout") == [1, 1, 1]


async def test_a_servers_event_takes_its_visitors_step(bench: Bench) -> None:
    await bench.send(at(0), cart(1), bought(2, "O", 5, trust=Trust.SECRET))
    assert reached(await bench.cells(), "checkout") == [1, 1, 1]


async def test_by_a_dimension_a_visitor_counts_in_each_row_that_it_entered_under(
    bench: Bench,
) -> None:
    await bench.send(at(0, source="a"), at(2 * DAY, source="b"), cart(2 * DAY + 1))
    cells = await bench.cells()
    assert reached(cells, "checkout") == [1, 1, 0]
    assert reached(cells, "checkout", utm_source="a") == [1, 0, 0]
    assert reached(cells, "checkout", utm_source="b") == [1, 1, 0]


async def test_an_attempt_counts_under_the_values_of_its_sessions_first_event(
    bench: Bench,
) -> None:
    await bench.send(at(0, CONVERSION, name="lead", source="a"), at(1, source="b"))
    assert reached(await bench.cells(), "checkout", utm_source="a") == [1, 0, 0]


async def test_the_attempts_that_are_kept_say_who_reached_each_step(bench: Bench) -> None:
    # One pass to the end, then more attempts than are kept: a second pass is no second visitor.
    await bench.send(at(0), at(1, CONVERSION, name="lead"))
    for hour in range(2, 60, 2):
        await bench.send(at(hour * HOUR))
    await bench.send(at(60 * HOUR), at(60 * HOUR + 1, CONVERSION, name="lead"))
    assert reached(await bench.cells(), "quick") == [1, 1, 0]
