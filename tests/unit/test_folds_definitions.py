"""Definitions: numbered by partition 0, applied by all, and what a change of them does."""

from __future__ import annotations

from typing import Any

import orjson
from folding import (
    CONVERSION,
    DAY,
    DEFINED,
    HOUR,
    Bench,
    at,
    bought,
    count_in,
    distinct,
    reached,
    visitors_in,
)

from consumers.definitions import CURRENT, Definitions
from tracker.codec import encode
from tracker.model.cell import DEFINITIONS
from tracker.model.keys import PARTITIONS
from tracker.model.record import DerivedRecord, Layer, Mark, NumberedDefinition
from tracker.ports.log import Unappended

STEPS = ["view", "conversion:lead"]


def with_funnel(steps: list[str], within: str = "1h") -> dict[str, Any]:
    return DEFINED | {"funnel": {"f": {"steps": steps, "within": within}}}


async def stored(bench: Bench, partition: int) -> dict[str, Any]:
    raw = (await bench.containers(partition))[DEFINITIONS][CURRENT]
    found: dict[str, Any] = orjson.loads(raw)
    return found


async def test_every_partition_applies_the_number_that_partition_0_gave() -> None:
    bench = Bench()
    await bench.define()
    await bench.define({"currency": "USD"}, received=1)
    assert await bench.numbered() == 2
    found = [(await stored(bench, partition))["number"] for partition in range(PARTITIONS)]
    assert found == [2] * PARTITIONS


async def test_a_lower_number_is_ignored() -> None:
    numbered = [
        NumberedDefinition(number=n, layer=Layer.FILE, definitions={"shop": {"currency": c}})
        for n, c in ((2, "EUR"), (1, "USD"))
    ]
    definitions = Definitions()
    assert [definitions.apply(item, 0) for item in numbered] == [True, False]
    assert definitions.sites["shop"].currency == "EUR"


async def test_a_definition_that_is_told_twice_is_applied_once() -> None:
    bench = Bench()
    await bench.define()
    told = DerivedRecord(
        mark=Mark(0, 0, 5),
        log_id=bench.log.identity,
        received_at_ms=0,
        definition=NumberedDefinition(number=9, layer=Layer.FILE, definitions={}),
    )
    bench.log.add([Unappended(5, encode(told))])
    await bench.drain()
    # Its mark is no higher than that of the definition that went before: it is a repeat.
    assert (await stored(bench, 5))["number"] == 1


async def test_the_file_wins_on_equal_names_and_the_rest_of_both_holds() -> None:
    bench = Bench()
    await bench.define({"currency": "USD", "conversions": ["lead"]}, layer=Layer.API)
    await bench.define({"currency": "EUR"}, layer=Layer.FILE)
    await bench.send(at(0, CONVERSION, name="lead", value_micros=1))
    assert await bench.count("revenue:EUR") == 1


async def test_what_is_macro_changes_from_the_new_definition_on() -> None:
    bench = Bench()
    await bench.define()
    await bench.send(at(0, CONVERSION, name="install"))
    await bench.define(DEFINED | {"conversions": ["install"]}, received=1)
    await bench.send(at(2, CONVERSION, name="install"))
    cells = await bench.cells()
    assert count_in(cells, "conversions:install") == 2
    assert count_in(cells, "conversions") == 1


async def test_a_funnel_that_changes_counts_apart() -> None:
    bench = Bench()
    await bench.define(with_funnel(STEPS))
    await bench.send(at(0), at(1, CONVERSION, name="lead"))
    await bench.define(with_funnel(STEPS, within="2h"), received=2)
    await bench.send(at(3, visitor="w"))
    cells = await bench.cells()
    assert reached(cells, "f", since=1) == [1, 1, 0]
    assert reached(cells, "f", since=2) == [1, 0, 0]
    assert (await stored(bench, 3))["since"] == {"shop/f": 2}


async def test_a_definition_that_leaves_a_funnel_alone_keeps_its_numbers_together() -> None:
    bench = Bench()
    await bench.define(with_funnel(STEPS))
    await bench.send(at(0))
    await bench.define(with_funnel(STEPS) | {"currency": "USD"}, received=1)
    await bench.send(at(2, CONVERSION, name="lead"))
    assert reached(await bench.cells(), "f", since=1) == [1, 1, 0]


async def test_an_attempt_under_an_old_definition_counts_no_further() -> None:
    bench = Bench()
    await bench.define(with_funnel(STEPS))
    await bench.send(at(0))
    await bench.define(with_funnel(STEPS, within="2h"), received=1)
    await bench.send(at(2, CONVERSION, name="lead"))
    cells = await bench.cells()
    assert reached(cells, "f", since=1) == [1, 0, 0]
    assert reached(cells, "f", since=2) == [0, 0, 0]


async def test_a_new_funnel_says_since_when_it_counts() -> None:
    bench = Bench()
    await bench.define(with_funnel(STEPS), received=5 * HOUR)
    assert (await stored(bench, 4))["counted_from"]["shop/f"] - at(0).received_at_ms == 5 * HOUR


async def test_a_dimension_counts_from_its_definition_on() -> None:
    bench = Bench()
    await bench.define(DEFINED | {"dimensions": []})
    await bench.send(at(0, source="a"))
    await bench.define(DEFINED, received=1)
    await bench.send(at(2, source="a", visitor="w"))
    cells = await bench.cells()
    assert count_in(cells, "views", utm_source="a") == 1
    assert count_in(cells, "views") == 2
    assert distinct(cells, "visitors") == 2


async def test_events_before_any_definition_count_as_those_of_a_plain_site() -> None:
    bench = Bench()
    await bench.send(at(0), bought(1, "O", 5))
    assert await bench.count("revenue:USD") == 5_000_000
    assert await bench.count("orders") == 1


async def test_visitors_of_all_partitions_count_by_the_same_definition() -> None:
    bench = Bench()
    await bench.define()
    people = [visitors_in(partition, 1)[0] for partition in range(PARTITIONS)]
    await bench.send(*(at(0, visitor=who, source="a") for who in people))
    await bench.send(*(at(DAY, CONVERSION, name="lead", visitor=who) for who in people))
    cells = await bench.cells()
    assert count_in(cells, "views", utm_source="a") == PARTITIONS
    assert count_in(cells, "conversions") == PARTITIONS
