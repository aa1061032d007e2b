from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from counted_pages import Counted, TestClock

from tracker.errors import Code, TrackerError
from tracker.model.cell import funnel_unique, gap_column, last_column
from tracker.model.record import OTHER
from tracker.model.window import DAY_MS, HOUR_MS, MINUTE_MS
from tracker.ports.log import Unappended
from tracker.query.funnels import ELAPSED_NAMES, duration, funnel_list, funnel_report

DAY = 20_000  # 2024-10-04
NOW_MS = DAY * DAY_MS + 12 * HOUR_MS
SINCE = 3
SITES = {
    "shop": {
        "dimensions": ["utm_campaign"],
        "funnel": {
            "checkout": {
                "within": "24h",
                "steps": ["view", "conversion:add_to_cart", "conversion:purchase"],
            },
            "slow": {"steps": ["view", "click"]},
        },
    }
}


@pytest.fixture
def counted() -> Counted:
    counted = Counted()
    counted.define(
        SITES,
        since={"shop/checkout": SINCE, "shop/slow": 1},
        counted_from={"shop/checkout": DAY * DAY_MS, "shop/slow": 0},
    )
    return counted


def reach(step: int, elapsed: int, *, gap: int | str = "last", since: int = SINCE) -> str:
    unique = funnel_unique("checkout", since, step, elapsed)
    if gap == "last":
        return last_column(unique)
    return gap_column(unique, None if gap == "new" else int(gap))


@asynccontextmanager
async def asking(counted: Counted, *, append: int = 0):
    await counted.commit()
    counted.log.add([Unappended(0, b"{}")] * append)
    clock = TestClock(NOW_MS)
    async with counted.mirror(clock) as mirror:

        async def ask(name: str = "checkout", **given: str):
            listed = {key.rstrip("_"): [value] for key, value in given.items()}
            return await funnel_report(mirror, counted.reader, clock, name, listed)

        yield ask


def just_now(counted: Counted, grain: str = "", partition: int = 0, **counts: int) -> None:
    counted.count(partition, (NOW_MS - MINUTE_MS, DAY), grain, **counts)


async def test_steps_say_who_got_there_how_fast_and_who_left(counted):
    just_now(counted, **{reach(1, 0): 6, reach(2, 0): 3, reach(2, 4): 1, reach(3, 7): 1})
    just_now(counted, partition=9, **{reach(1, 0): 4, reach(2, 0): 1, reach(3, 0): 1})
    just_now(counted, **{reach(1, 0, since=2): 1_000})  # of an older shape of the funnel
    async with asking(counted) as ask:
        answer = await ask(window="1h")
    nobody = dict.fromkeys(ELAPSED_NAMES, 0)
    assert answer["steps"] == [
        {
            "step": 1,
            "event": "view",
            "entered": 10,
            "reached": 10,
            "step_conversion": None,
            "overall_conversion": {"value": 1.0, "numerator": 10, "denominator": 10},
            "abandonment": {"value": 0.5, "numerator": 5, "denominator": 10},
            "elapsed": nobody | {"1m": 10},
        },
        {
            "step": 2,
            "event": "conversion:add_to_cart",
            "reached": 5,
            "step_conversion": {"value": 0.5, "numerator": 5, "denominator": 10},
            "overall_conversion": {"value": 0.5, "numerator": 5, "denominator": 10},
            "abandonment": {"value": 0.6, "numerator": 3, "denominator": 5},
            "elapsed": nobody | {"1m": 4, "6h": 1},
        },
        {
            "step": 3,
            "event": "conversion:purchase",
            "reached": 2,
            "step_conversion": {"value": 0.4, "numerator": 2, "denominator": 5},
            "overall_conversion": {"value": 0.2, "numerator": 2, "denominator": 10},
            "abandonment": None,
            "elapsed": nobody | {"1m": 1, "longer": 1},
        },
    ]
    assert answer["funnel"] == "checkout"
    assert answer["within"] == "24h"
    assert answer["counted_from"] == "2024-10-04T00:00:00.000Z"
    assert answer["complete"] is True
    assert "rows" not in answer


async def test_an_empty_funnel_has_null_ratios(counted):
    async with asking(counted) as ask:
        answer = await ask("slow")
    assert answer["steps"][1]["reached"] == 0
    assert answer["steps"][1]["step_conversion"]["value"] is None
    assert answer["within"] == "7d"
    assert answer["counted_from"] is None  # from the start


async def test_by_a_dimension_each_value_has_its_steps(counted):
    just_now(counted, **{reach(1, 0): 9, reach(2, 0): 3})
    just_now(counted, "utm_campaign=a", **{reach(1, 0): 2, reach(2, 0): 1})
    just_now(counted, "utm_campaign=b", partition=4, **{reach(1, 0): 5, reach(2, 0): 2})
    just_now(counted, f"utm_campaign={OTHER}", partition=4, **{reach(1, 0): 7})
    async with asking(counted) as ask:
        answer = await ask(by="utm_campaign", window="1h")
        reached = [
            (row["utm_campaign"], row.get("at_least"), [step["reached"] for step in row["steps"]])
            for row in answer["rows"]
        ]
        assert reached == [
            ("b", None, [5, 2, 0]),
            ("a", True, [2, 1, 0]),
            (OTHER, True, [7, 0, 0]),
        ]
        assert [step["reached"] for step in answer["steps"]] == [9, 3, 0]
        assert answer["row_count"] == 3
        only = await ask(where="utm_campaign:b", window="1h")
        assert [step["reached"] for step in only["steps"]] == [5, 2, 0]
        page = await ask(by="utm_campaign", window="1h", limit="1", offset="1")
        assert [row["utm_campaign"] for row in page["rows"]] == ["a"]


async def test_past_days_count_each_visitor_once(counted):
    for day, gap, count in ((DAY - 9, "new", 4), (DAY - 8, 1, 3), (DAY - 8, 2, 2)):
        counted.count(0, (day * DAY_MS, day), **{reach(1, 0, gap=gap): count})
    async with asking(counted) as ask:
        answer = await ask(from_="2024-09-25", to="2024-09-27")
    # 4 new on the 25th; on the 26th 3 of them again, and 2 who had been there on the 24th.
    assert answer["steps"][0]["entered"] == 6
    assert answer["matured"] == 6


async def test_matured_counts_only_those_who_had_all_of_their_time(counted):
    within_ago_ms = NOW_MS - 24 * HOUR_MS
    for t_ms, count in ((within_ago_ms - 20 * MINUTE_MS, 5), (within_ago_ms + MINUTE_MS, 3)):
        counts = {reach(1, 0): count, reach(1, 0, gap="new"): count}
        counted.count(0, (t_ms, t_ms // DAY_MS), **counts)
    async with asking(counted) as ask:
        answer = await ask(window="30h")
        assert answer["steps"][0]["entered"] == 8
        assert answer["matured"] == 5
        assert (await ask(window="1h"))["matured"] == 0


async def test_while_a_partition_lags_nobody_matures_further(counted):
    counted.watermark_ms = NOW_MS - 3 * HOUR_MS
    t_ms = NOW_MS - 25 * HOUR_MS
    counted.count(0, (t_ms, t_ms // DAY_MS), **{reach(1, 0): 5, reach(1, 0, gap="new"): 5})
    async with asking(counted, append=1) as ask:
        answer = await ask(window="30h")
    assert answer["complete"] is False
    assert answer["as_of"] == "2024-10-04T09:00:00.000Z"
    assert answer["matured"] == 0


async def test_an_unknown_funnel_is_told_which_there_are(counted):
    async with asking(counted) as ask:
        with pytest.raises(TrackerError, match="'chekout'; it has checkout, slow") as caught:
            await ask("chekout")
        assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(TrackerError, match="no parameter 'metrics'"):
            await ask(metrics="views")


async def test_the_funnels_of_a_site_are_listed(counted):
    await counted.commit()
    async with counted.mirror(TestClock(NOW_MS)) as mirror:
        answer = await funnel_list(mirror, {})
    assert answer["funnels"][1] == {"name": "slow", "within": "7d", "steps": ["view", "click"]}


def test_a_length_of_time_is_written_as_people_do():
    found = [duration(t) for t in (90_000, 900_000, HOUR_MS, 24 * HOUR_MS, 36 * HOUR_MS)]
    assert found == ["90s", "15m", "1h", "24h", "36h"]
    assert ELAPSED_NAMES == ("1m", "5m", "15m", "1h", "6h", "24h", "7d", "longer")
