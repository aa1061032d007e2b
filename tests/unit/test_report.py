from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from counted_pages import Counted, TestClock

from tracker.errors import Code, TrackerError
from tracker.model.cell import Audience
from tracker.model.record import OTHER
from tracker.model.window import DAY_MS, HOUR_MS, MINUTE_MS
from tracker.query.report import report

DAY = 20_000  # 2024-10-04
NOW_MS = DAY * DAY_MS + 12 * HOUR_MS
NOW = (NOW_MS - MINUTE_MS, DAY)
SITES = {
    "shop": {"dimensions": ["utm_source", "utm_campaign", "country"]},
    "blog": {"currency": "EUR", "timezone": "Europe/Berlin"},
}


class Desk:
    """Asks for reports."""

    def __init__(self, counted, mirror, clock) -> None:
        self._parts = (mirror, counted.reader, clock)

    async def ask(self, **given: str | list[str]):
        listed = {
            name.rstrip("_"): value if isinstance(value, list) else [value]
            for name, value in given.items()
        }
        return await report(*self._parts, {"site": ["shop"], **listed})

    async def totals(self, **given: str | list[str]):
        return (await self.ask(**given))["totals"]


@pytest.fixture
def counted() -> Counted:
    counted = Counted()
    counted.define(SITES)
    return counted


@asynccontextmanager
async def desk(counted: Counted, now_ms: int = NOW_MS):
    await counted.commit()
    clock = TestClock(now_ms)
    async with counted.mirror(clock) as mirror:
        yield Desk(counted, mirror, clock)


def fill(counted: Counted) -> None:
    """Two campaigns over three partitions; each number below can be added up by hand."""
    for partition, views, clicks in ((0, 100, 10), (1, 50, 0), (31, 7, 3)):
        counts = {"views": views, "impressions": views * 2} | ({"clicks": clicks} if clicks else {})
        counted.count(partition, NOW, **counts)
        counted.count(partition, NOW, f"utm_campaign={'spring' if clicks else 'a'}", **counts)
    orders = {"conversions": 3, "conversions:purchase": 3, "orders": 3, "converters.last": 2}
    money = {"revenue:USD": 100_000_000, "order_revenue:USD": 100_000_000}
    counted.count(0, NOW, **orders, **money)
    counted.count(0, NOW, "utm_campaign=spring", **orders, **money)
    counted.count(0, NOW, **{"visitors.last": 8, "conversions:add_to_cart": 5, "clicks:buy": 6})


async def test_totals_add_up_over_partitions(counted):
    fill(counted)
    async with desk(counted) as one:
        names = "views,impressions,clicks,ctr,conversions,conversions:add_to_cart,clicks:buy"
        assert await one.totals(window="1h", metrics=names) == {
            "views": 157,
            "impressions": 314,
            "clicks": 13,
            "ctr": {"value": 0.041401, "numerator": 13, "denominator": 314},
            "conversions": 3,
            "conversions:add_to_cart": 5,
            "clicks:buy": 6,
        }


async def test_ratios_name_what_they_divide(counted):
    fill(counted)
    async with desk(counted) as one:
        names = "cr,cr:add_to_cart,visitor_cr,aov,visitors,converters"
        assert await one.totals(window="1h", metrics=names) == {
            "cr": {"value": 0.230769, "numerator": 3, "denominator": 13},
            "cr:add_to_cart": {"value": 0.384615, "numerator": 5, "denominator": 13},
            "visitor_cr": {"value": 0.25, "numerator": 2, "denominator": 8},
            "aov": {
                "value": 33.333333,
                "numerator": "100.00",
                "denominator": 3,
                "currency": "USD",
            },
            "visitors": 8,
            "converters": 2,
        }


async def test_a_ratio_without_a_denominator_is_null(counted):
    async with desk(counted) as one:
        assert await one.totals(metrics="ctr,cr,visitor_cr,aov,revenue") == {
            "ctr": {"value": None, "numerator": 0, "denominator": 0},
            "cr": {"value": None, "numerator": 0, "denominator": 0},
            "visitor_cr": {"value": None, "numerator": 0, "denominator": 0},
            "aov": {"value": None, "numerator": "0.00", "denominator": 0, "currency": "USD"},
            "revenue": {"amount": "0.00", "currency": "USD"},
        }


async def test_without_metrics_there_are_the_usual_ones(counted):
    async with desk(counted) as one:
        usual = ["views", "visitors", "sessions", "conversions", "orders", "revenue", "cr"]
        assert list(await one.totals()) == usual
        elsewhere = await one.totals(tz="America/New_York", from_="2024-10-03")
        assert list(elsewhere) == [name for name in usual if name != "visitors"]


async def test_rows_come_by_the_first_metric_largest_first(counted):
    fill(counted)
    async with desk(counted) as one:
        answer = await one.ask(window="1h", by="utm_campaign", metrics="views,clicks,ctr")
    assert answer["rows"] == [
        {
            "utm_campaign": "spring",
            "views": 107,
            "clicks": 13,
            "ctr": {"value": 0.060748, "numerator": 13, "denominator": 214},
        },
        {
            "utm_campaign": "a",
            "views": 50,
            "clicks": 0,
            "ctr": {"value": 0.0, "numerator": 0, "denominator": 100},
        },
    ]
    assert answer["row_count"] == 2
    assert answer["totals"]["views"] == 157
    assert answer["site"] == "shop"


async def test_without_by_there_are_no_rows(counted):
    fill(counted)
    async with desk(counted) as one:
        assert (await one.ask(window="1h"))["rows"] == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["c", "a", "b", OTHER]),
        ({"sort": "-views"}, ["c", "a", "b", OTHER]),
        ({"sort": "views"}, ["a", "b", "c", OTHER]),
        ({"sort": "country"}, ["a", "b", "c", OTHER]),
        ({"sort": "-country"}, ["c", "b", "a", OTHER]),
        ({"sort": "-cr"}, ["b", "a", "c", OTHER]),
        ({"sort": "revenue"}, ["b", "c", "a", OTHER]),
        ({"limit": "2"}, ["c", "a"]),
        ({"limit": "2", "offset": "2"}, ["b", OTHER]),
        ({"limit": "0"}, []),
        ({"search": "B"}, ["b"]),
        ({"where": "country:b"}, ["b"]),
        ({"where": "country:nowhere"}, []),
    ],
)
async def test_rows_are_sorted_searched_and_cut(counted, asked, expected):
    counted.count(0, NOW, "country=a", views=2, clicks=4, conversions=1)
    counted.count(0, NOW, "country=a", **{"revenue:USD": 1, "revenue:EUR": 1})
    counted.count(0, NOW, "country=b", views=2, clicks=2, conversions=1)
    counted.count(0, NOW, "country=c", **{"views": 3, "revenue:USD": 5})
    counted.count(0, NOW, f"country={OTHER}", views=99)
    async with desk(counted) as one:
        answer = await one.ask(by="country", metrics="views,cr,revenue", window="1h", **asked)
    assert [row["country"] for row in answer["rows"]] == expected


async def test_where_gives_the_totals_of_that_value(counted):
    fill(counted)
    async with desk(counted) as one:
        given = {"window": "1h", "metrics": "views"}
        assert await one.totals(where="utm_campaign:spring", **given) == {"views": 107}
        both = ["utm_campaign:spring", "utm_campaign:spring"]
        assert await one.totals(where=both, by="utm_campaign", **given) == {"views": 107}
        assert await one.totals(where="utm_campaign:x", **given) == {"views": 0}


async def test_bots_are_counted_apart(counted):
    counted.count(0, NOW, views=5)
    counted.count_for("shop", Audience.BOTS, (0, *NOW), "", views=2)
    async with desk(counted) as one:
        found = [
            (await one.totals(window="1h", metrics="views", bots=bots))["views"]
            for bots in ("exclude", "include", "only")
        ]
    assert found == [5, 7, 2]


async def test_a_row_that_a_cap_folded_away_says_at_least(counted):
    counted.count(0, NOW, f"country={OTHER}", views=1)
    counted.count(0, NOW, "country=DE", views=1)
    counted.count(1, NOW, "country=DE", views=1)
    counted.count(1, NOW, "country=FR", views=1)  # partition 0 may hold some of it in __other__
    counted.count(0, NOW, "utm_source=x", views=1)
    async with desk(counted) as one:
        rows = (await one.ask(window="1h", by="country", metrics="views"))["rows"]
        assert rows == [
            {"country": "DE", "views": 2},
            {"country": "FR", "views": 1, "at_least": True},
            {"country": OTHER, "views": 1, "at_least": True},
        ]
        rows = (await one.ask(window="1h", by="utm_source", metrics="views"))["rows"]
        assert rows == [{"utm_source": "x", "views": 1}]


async def test_money_of_several_currencies_is_never_added(counted):
    counted.count(
        0,
        NOW,
        **{"revenue:USD": 1_500_000, "revenue:JPY": 7_000_000, "orders": 2},
        **{"order_revenue:USD": 1_500_000, "order_revenue:JPY": 7_000_000},
    )
    async with desk(counted) as one:
        several = {"by_currency": {"JPY": "7", "USD": "1.50"}, "missing_rates": ["JPY"]}
        assert await one.totals(window="1h", metrics="revenue,aov") == {
            "revenue": {"amount": None, "currency": None, **several},
            "aov": {
                "value": None,
                "numerator": None,
                "denominator": 2,
                "currency": None,
                **several,
            },
        }


async def test_money_of_one_foreign_currency_is_shown_in_it(counted):
    counted.count(0, NOW, **{"revenue:EUR": 59_442_630_000})
    async with desk(counted) as one:
        assert await one.totals(window="1h", metrics="revenue") == {
            "revenue": {"amount": "59442.63", "currency": "EUR"}
        }


async def test_money_that_was_taken_back_is_none(counted):
    counted.count(0, NOW, **{"revenue:EUR": 5})
    counted.count(1, NOW, **{"revenue:EUR": -5})
    async with desk(counted) as one:
        found = await one.totals(window="1h", metrics="revenue")
    assert found == {"revenue": {"amount": "0.00", "currency": "USD"}}


async def test_a_window_takes_each_part_from_buckets_of_its_own_size(counted):
    for hours, views in ((0, 1), (1, 10), (3, 100), (30, 1_000), (24 * 9, 10_000)):
        t_ms = NOW_MS - 1 - hours * HOUR_MS
        counted.count(0, (t_ms, t_ms // DAY_MS), views=views)
    async with desk(counted) as one:
        found = [
            (await one.totals(window=window, metrics="views"))["views"]
            for window in ("5m", "2h", "24h", "48h", "9d", "10d", "30d")
        ]
        assert found == [1, 11, 111, 1_111, 1_111, 11_111, 11_111]
        days = await one.totals(from_="2024-10-03", to="2024-10-04", metrics="views")
        assert days == {"views": 1_000}


async def test_people_of_past_days_are_counted_by_gaps(counted):
    day = DAY - 10
    for back, counts in ((0, {"visitors.gap:new": 5}), (1, {"visitors.gap:1": 4})):
        counted.count(0, ((day + back) * DAY_MS, day + back), **counts)
    counted.count(1, ((day + 1) * DAY_MS, day + 1), **{"visitors.gap:2": 3, "visitors.gap:new": 1})
    async with desk(counted) as one:
        # The 24th: 5. The 25th: 4 of those again, 3 of before the 24th, and 1 new.
        asked = {"metrics": "visitors", "from_": "2024-09-24"}
        assert await one.totals(to="2024-09-25", **asked) == {"visitors": 5}
        assert await one.totals(to="2024-09-26", **asked) == {"visitors": 9}
        asked["from_"] = "2024-09-25"
        assert await one.totals(to="2024-09-26", **asked) == {"visitors": 8}


async def test_people_that_are_not_known_exactly_say_so(counted):
    quarter = (NOW_MS - 10 * DAY_MS) // (15 * MINUTE_MS)
    at = quarter * 15 * MINUTE_MS
    counted.count(0, (at, at // DAY_MS), **{"visitors.gap:new": 6, "converters.gap:new": 3})
    later = at + 129 * 15 * MINUTE_MS
    counted.count(0, (later, later // DAY_MS), **{"visitors.gap:128": 4})
    async with desk(counted) as one:
        found = await one.totals(
            metrics="visitors,visitor_cr", from_=str(at), to=str(later + 60_000)
        )
    assert found == {
        "visitors": {"value": 8, "estimate": True, "error": 0.25},
        "visitor_cr": {
            "value": 0.375,
            "numerator": 3,
            "denominator": 8,
            "estimate": True,
            "error": 0.25,
        },
    }


async def test_days_are_those_of_the_sites_zone(counted):
    t_ms = DAY * DAY_MS - HOUR_MS  # the 4th already in Berlin
    counted.count_for("blog", Audience.PEOPLE, (0, t_ms, DAY), "", views=1)
    async with desk(counted) as one:
        asked = {"site": "blog", "from_": "2024-10-04", "metrics": "views"}
        assert await one.totals(to="2024-10-05", **asked) == {"views": 1}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"metrics": "views,roas"}, "no metric 'roas' here; there are impressions, clicks"),
        ({"metrics": "views:x"}, "no metric"),
        ({"metrics": ",".join(f"conversions:c{n}" for n in range(65))}, "at most 64"),
        ({"by": "utm_source,utm_campaign"}, r'cubes = \[\["utm_source", "utm_campaign"\]\]'),
        ({"by": "utm_source", "where": "country:DE"}, "cubes ="),
        ({"where": ["utm_source:a", "country:DE"]}, "cubes ="),
        ({"where": ["country:FR", "country:DE"]}, "nothing has both"),
        ({"where": "country"}, "is no filter"),
        ({"by": "device"}, r"add it to dimensions under \[site.shop\]"),
        ({"by": "colour"}, "no dimension 'colour'"),
        ({"bots": "maybe"}, "none of exclude, include, only"),
        ({"sort": "-spend"}, "none of the report's columns"),
        ({"limit": "-1"}, "whole number from 0"),
        ({"limit": "100001"}, "whole number from 0 to 100000"),
        ({"offset": "x"}, "whole number"),
        ({"window": ["1h", "2h"]}, "given 2 times"),
        ({"compare": "previous"}, "not available"),
        ({"currency": "EUR"}, "not available"),
        ({"model": "linear"}, "not available in this version: credit goes to the last touch"),
        ({"basis": "platform"}, "not available"),
        ({"colour": "red"}, "no parameter 'colour' here; there are basis, bots, by"),
    ],
)
async def test_a_question_that_cannot_be_answered_says_what_can(counted, asked, words):
    async with desk(counted) as one:
        with pytest.raises(TrackerError, match=words) as caught:
            await one.ask(**asked)
    assert caught.value.code is Code.INVALID


async def test_at_the_limits_a_report_is_still_answered(counted):
    async with desk(counted) as one:
        names = ",".join(f"conversions:c{n}" for n in range(64))
        assert len(await one.totals(metrics=names, limit="100000")) == 64
        assert await one.totals(model="last", basis="first_party")


async def test_an_unknown_site_is_told_which_there_are(counted):
    async with desk(counted) as one:
        with pytest.raises(TrackerError, match="'shpo'; there are shop, blog") as caught:
            await one.ask(site="shpo")
        assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(TrackerError, match="Say which site"):
            await one.ask(site="")


async def test_without_any_definition_the_answer_says_where_sites_come_from():
    async with desk(Counted()) as one:
        with pytest.raises(TrackerError, match=r"tracker\.toml") as caught:
            await one.ask()
    assert caught.value.code is Code.NOT_FOUND
