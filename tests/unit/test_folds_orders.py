"""Orders, their copies and their refunds: one test a sentence of SEMANTICS, money."""

from __future__ import annotations

from itertools import permutations

import pytest
from folding import (
    CONVERSION,
    DAY,
    HOUR,
    MINUTE,
    Bench,
    at,
    bought,
    count_in,
    distinct,
    order_elsewhere,
    reached,
    refunded,
)

from tracker.model.record import EventRecord, Trust
from tracker.model.window import Granularity

ORDER = order_elsewhere("v")
"""Owned by another partition than its visitor's, as nearly every order is."""


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.define()
    return made


async def money(bench: Bench, **where: object) -> dict[str, int]:
    """Return what is not zero of the counters of orders, by day."""
    cells = await bench.cells()
    columns = ("orders", "conversions", "refunds", "order_revenue:EUR", "revenue:EUR")
    counts = {name: count_in(cells, name, **where) for name in (*columns, "refunded:EUR")}
    return {name: count for name, count in counts.items() if count}


ONE = {"orders": 1, "conversions": 1, "order_revenue:EUR": 20_000_000, "revenue:EUR": 20_000_000}


async def test_an_order_counts_once_however_often_it_is_sent(bench: Bench) -> None:
    await bench.send(*(bought(n, ORDER, 20) for n in range(5)))
    assert await money(bench) == ONE
    assert await bench.count("conversions:purchase") == 1


@pytest.mark.parametrize("turn", range(2))
async def test_pixel_and_server_in_either_order_are_one_order(bench: Bench, turn: int) -> None:
    pixel = bought(DAY - MINUTE, ORDER, 19, received=DAY)
    server = bought(DAY, ORDER, 20, visitor="", trust=Trust.SECRET)
    await bench.send(at(DAY - 9 * MINUTE, source="ad"))
    for event in (pixel, server)[:: -1 if turn else 1]:
        await bench.send(event)
    # The time of the earlier, the value of the server, the credit of the visitor.
    assert await money(bench, utm_source="ad") == ONE
    assert await money(bench) == ONE
    quarter = pixel.occurred_at_ms // (15 * MINUTE)
    assert await bench.count("orders", granularity=Granularity.QUARTER, bucket=quarter) == 1


async def test_an_order_that_only_the_server_knows_is_credited_to_nobody(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20, visitor="", trust=Trust.SECRET))
    assert await money(bench, utm_source="(none)") == ONE


async def test_copies_of_two_visitors_are_one_order(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20, visitor="a"), bought(1, ORDER, 20, visitor="b"))
    assert await money(bench) == ONE


async def test_a_second_copy_is_no_conversion_and_so_makes_no_converter(bench: Bench) -> None:
    await bench.send(bought(13 * HOUR, ORDER, 20), bought(15 * HOUR, ORDER, 20, trust=Trust.SECRET))
    cells = await bench.cells()
    day = at(15 * HOUR).day
    assert distinct(cells, "converters", first=day, stop=day + 1) == 0
    assert distinct(cells, "converters") == 1


async def test_a_second_copy_satisfies_no_funnel_step(bench: Bench) -> None:
    tables = {"funnel": {"twice": {"steps": ["conversion:purchase", "conversion:purchase"]}}}
    await bench.define(tables)
    await bench.send(bought(0, ORDER, 20), bought(1, ORDER, 20))
    assert reached(await bench.cells(), "twice", since=2) == [1, 0, 0]
    await bench.send(bought(2, "another", 20))
    assert reached(await bench.cells(), "twice", since=2) == [1, 1, 0]


async def test_purchases_without_an_order_id_are_orders_of_their_own(bench: Bench) -> None:
    await bench.send(bought(0, "", 20), bought(1, "", 20))
    assert (await money(bench))["orders"] == 2


async def test_a_purchase_without_a_value_is_an_order_worth_nothing(bench: Bench) -> None:
    await bench.send(bought(0, ORDER), bought(1))
    assert await money(bench) == {"orders": 2, "conversions": 2}


async def test_other_macro_conversions_bring_revenue_and_no_order(bench: Bench) -> None:
    await bench.send(at(0, CONVERSION, name="lead", value_micros=3_000_000))
    assert await money(bench) == {"conversions": 1, "revenue:EUR": 3_000_000}


async def test_a_macro_conversion_with_an_order_id_is_one_a_name_and_order_id(
    bench: Bench,
) -> None:
    lead = {"name": "lead", "order_id": ORDER, "value_micros": 3_000_000}
    await bench.send(at(0, CONVERSION, **lead), at(1, CONVERSION, **lead), bought(2, ORDER, 20))
    await bench.send(refunded(3, ORDER, 20))
    cells = await bench.cells()
    assert count_in(cells, "conversions:lead") == 1
    assert count_in(cells, "conversions:purchase") == 1
    assert count_in(cells, "revenue:EUR") == 3_000_000
    assert count_in(cells, "orders") == 0


async def test_money_is_kept_in_the_currency_sent_and_else_in_the_sites(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20, currency="USD"), bought(1, "", 5))
    assert await bench.count("revenue:USD") == 20_000_000
    assert await bench.count("revenue:EUR") == 5_000_000


# -- refunds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("euros", "left", "orders"),
    [(None, 0, 0), (20, 0, 0), (25, 0, 0), (5, 15, 1), (19.999999, 0.000001, 1)],
)
async def test_a_refund_takes_back_its_part_and_a_full_one_the_order(
    bench: Bench, euros: float | None, left: float, orders: int
) -> None:
    await bench.send(bought(0, ORDER, 20), refunded(HOUR, ORDER, euros))
    cells = await bench.cells()
    for column in ("revenue:EUR", "order_revenue:EUR"):
        assert count_in(cells, column) == round(left * 1_000_000)
    assert count_in(cells, "refunded:EUR") == 20_000_000 - round(left * 1_000_000)
    assert count_in(cells, "orders") == orders
    # Conversions count what happened.
    assert count_in(cells, "conversions") == count_in(cells, "refunds") == 1
    assert distinct(cells, "converters") == 1


async def test_partial_refunds_add_up_to_a_full_one(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20), refunded(1, ORDER, 12), refunded(2, ORDER, 8))
    cells = await bench.cells()
    assert count_in(cells, "orders") == 0
    assert count_in(cells, "refunds") == 2
    assert count_in(cells, "refunded:EUR") == 20_000_000


async def test_refunds_above_the_orders_value_are_the_orders_value(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20), refunded(1, ORDER, 12), refunded(2, ORDER, 12))
    cells = await bench.cells()
    assert count_in(cells, "revenue:EUR") == count_in(cells, "orders") == 0
    assert count_in(cells, "refunded:EUR") == 20_000_000


async def test_a_refund_that_is_sent_again_counts_once(bench: Bench) -> None:
    refund = refunded(1, ORDER, 5)
    await bench.send(bought(0, ORDER, 20), refund, refund)
    assert await bench.count("refunds") == 1
    assert await bench.count("refunded:EUR") == 5_000_000


async def test_a_refund_counts_in_the_buckets_and_rows_of_the_order(bench: Bench) -> None:
    await bench.send(at(0, source="ad"), bought(1, ORDER, 20), refunded(3 * DAY, ORDER, 5))
    cells = await bench.cells()
    where = {"bucket": at(0).day, "utm_source": "ad"}
    assert count_in(cells, "refunds", **where) == 1
    assert count_in(cells, "revenue:EUR", **where) == 15_000_000


async def test_a_refund_before_its_order_waits_for_it(bench: Bench) -> None:
    await bench.send(refunded(0, ORDER, 5))
    assert (await bench.ledger())["unmatched"] == 1
    assert await money(bench) == {}
    await bench.send(bought(1, ORDER, 20))
    assert "unmatched" not in await bench.ledger()
    assert await bench.count("revenue:EUR") == 15_000_000


async def test_a_refund_in_another_currency_waits(bench: Bench) -> None:
    await bench.send(bought(0, ORDER, 20), refunded(1, ORDER, 5, currency="USD"))
    assert (await bench.ledger())["unmatched"] == 1
    assert await money(bench) == ONE


async def test_a_refund_without_an_order_id_is_unmatched(bench: Bench) -> None:
    await bench.send(refunded(0, "", 5))
    assert (await bench.ledger())["unmatched"] == 1


async def test_a_refund_opens_no_session_and_makes_no_visitor(bench: Bench) -> None:
    await bench.send(refunded(0, ORDER, 5, visitor="v", trust=Trust.PUBLIC))
    cells = await bench.cells()
    assert count_in(cells, "sessions") == 0
    assert distinct(cells, "visitors") == 0
    assert count_in(cells, "conversions") == 0


async def test_copies_and_refunds_count_the_same_in_every_order_of_arrival() -> None:
    def said() -> list[EventRecord]:
        return [
            bought(0, ORDER, 19, event_id="pixel", received=MINUTE),
            bought(1, ORDER, 20, event_id="server", visitor="", trust=Trust.SECRET),
            refunded(2, ORDER, 5, event_id="some"),
            refunded(3, ORDER, 6, event_id="more"),
        ]

    found = []
    for order in permutations(said()):
        bench = Bench()
        await bench.define()
        for event in order:
            await bench.send(event)
        found.append(await money(bench))
    wanted = ONE | {"refunds": 2, "refunded:EUR": 11_000_000}
    wanted |= dict.fromkeys(("revenue:EUR", "order_revenue:EUR"), 9_000_000)
    assert found == [wanted] * 24
