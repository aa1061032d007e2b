from __future__ import annotations

import random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.errors import Code, TrackerError
from tracker.model.cell import (
    COLUMNS,
    TOTAL,
    Audience,
    encode_page,
    gap_column,
    last_column,
    name_field,
)
from tracker.model.definition import Site
from tracker.model.window import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SIZE_MS,
    Granularity,
    Piece,
    bucket_of,
    day_of,
    day_start_ms,
    is_kept,
)
from tracker.query.counts import NOBODY, Distinct, Sums
from tracker.query.pages import Group, GroupKey, Names
from tracker.query.ranges import Asked, People, Range, inwards, iso, resolve

BERLIN = Site(key="shop", timezone="Europe/Berlin")
UTC_SITE = Site(key="shop")
NOW_MS = 1_792_065_123_456  # 2026-10-15T09:12:03.456Z, 11:12 in Berlin


def ask(site: Site = UTC_SITE, *, people: bool = True, **asked: str) -> Range:
    return resolve(Asked(**asked), site, NOW_MS, with_people=people)


def shown(span: Range) -> tuple[str, str]:
    return iso(span.from_ms), iso(span.to_ms)


def test_a_window_ends_now_and_snaps_outwards_to_ten_seconds():
    span = ask(window="5m")
    assert span.from_ms % 10_000 == span.to_ms % 10_000 == 0
    assert span.from_ms <= NOW_MS - 5 * MINUTE_MS < span.from_ms + 10_000
    assert span.to_ms - 10_000 < NOW_MS <= span.to_ms
    assert span.people is People.LAST
    assert span.is_rolling


@pytest.mark.parametrize(
    ("window", "size_ms"),
    [("2h", 10_000), ("3h", MINUTE_MS), ("48h", MINUTE_MS), ("7d", 15 * MINUTE_MS)],
)
def test_a_longer_window_snaps_to_the_finest_bucket_kept_for_its_age(window, size_ms):
    span = ask(window=window)
    assert span.from_ms % size_ms == 0
    assert span.to_ms % size_ms == 0
    assert span.to_ms - NOW_MS < size_ms


def test_without_a_range_it_is_the_last_24_hours():
    assert ask() == ask(window="24h")


def test_a_date_begins_at_midnight_of_the_sites_zone():
    span = ask(BERLIN, begin="2026-10-01", end="2026-10-02")
    assert shown(span) == ("2026-09-30T22:00:00.000Z", "2026-10-01T22:00:00.000Z")
    assert span.people is People.GAPS
    assert span.people_pieces == (Piece(Granularity.DAY, 20_727, 20_728),)


def test_a_day_of_23_hours_is_one_day():
    span = ask(BERLIN, begin="2026-03-29", end="2026-03-30")
    assert span.to_ms - span.from_ms == 23 * HOUR_MS


def test_a_time_without_a_zone_is_one_of_the_sites():
    span = ask(BERLIN, begin="2026-10-14T12:00", end="2026-10-14T13:00:00")
    assert shown(span) == ("2026-10-14T10:00:00.000Z", "2026-10-14T11:00:00.000Z")


@pytest.mark.parametrize(
    "begin",
    [
        "2026-10-14T12:00:00+02:00",
        "2026-10-14T12:00:00 02:00",
        "2026-10-14T10:00Z",
        "1791972000000",
    ],
)
def test_a_time_with_a_zone_or_in_milliseconds_is_an_instant(begin):
    assert ask(BERLIN, begin=begin, end="2026-10-14T13:00").from_ms == 1_791_972_000_000


def test_a_range_without_an_end_ends_now():
    span = ask(begin="2026-10-15")
    assert span.people is People.LAST
    assert not span.is_rolling
    assert span.to_ms >= NOW_MS


def test_people_of_a_past_part_of_a_day_are_counted_in_quarters():
    span = ask(begin="2026-10-14T10:07", end="2026-10-14T11:08")
    assert shown(span) == ("2026-10-14T10:00:00.000Z", "2026-10-14T11:15:00.000Z")
    first = span.from_ms // SIZE_MS[Granularity.QUARTER]
    assert span.people_pieces == (Piece(Granularity.QUARTER, first, first + 5),)


def test_without_people_a_past_range_keeps_its_minutes():
    span = ask(people=False, begin="2026-10-14T10:07", end="2026-10-14T11:08")
    assert shown(span) == ("2026-10-14T10:07:00.000Z", "2026-10-14T11:08:00.000Z")


def test_people_of_a_time_without_quarters_are_counted_in_days():
    span = ask(begin="2026-08-01T10:00", end="2026-08-02T10:00")
    assert shown(span) == ("2026-08-01T00:00:00.000Z", "2026-08-03T00:00:00.000Z")
    assert span.people_pieces[0].granularity is Granularity.DAY


def test_another_zone_cuts_the_days_of_counts():
    span = ask(people=False, begin="2026-10-10", end="2026-10-11", tz="America/New_York")
    assert shown(span) == ("2026-10-10T04:00:00.000Z", "2026-10-11T04:00:00.000Z")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"window": "5"}, "5m, 1h, 24h or 7d"),
        ({"window": "0m"}, "no time like"),
        ({"window": "1h", "begin": "2026-10-01"}, "not both"),
        ({"end": "2026-10-01"}, "needs from="),
        ({"begin": "2026-10-02", "end": "2026-10-01"}, "empty"),
        ({"begin": "2026-10-01", "end": "2026-10-01"}, "empty"),
        ({"begin": "yesterday"}, "from=yesterday is no time"),
        ({"begin": "1969-12-31", "end": "1970-01-02"}, "from=1969-12-31 is no time"),
        ({"begin": "2026-02-30"}, "no time"),
        ({"begin": "9" * 30}, "no time"),
        ({"begin": "1970-01-01", "end": "2071-01-01"}, "100 years"),
        ({"tz": "Mars/Olympus"}, "no time zone"),
        ({"tz": "Europe/Paris"}, "zone, UTC, and of no other"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_with_what_would(asked, words):
    with pytest.raises(TrackerError, match=words) as caught:
        ask(**asked)
    assert caught.value.code is Code.INVALID


def test_another_zone_is_refused_where_only_days_are_kept():
    with pytest.raises(TrackerError, match="last 45 days"):
        ask(people=False, begin="2026-07-01", end="2026-07-02", tz="America/New_York")


def test_a_part_that_may_not_grow_is_snapped_inwards():
    hour = NOW_MS // HOUR_MS * HOUR_MS
    quarter = hour // SIZE_MS[Granularity.QUARTER]
    assert inwards(hour - 1, hour + HOUR_MS + 1, UTC_SITE, NOW_MS) == Piece(
        Granularity.QUARTER, quarter, quarter + 4
    )
    assert inwards(hour + 1, hour + 15 * MINUTE_MS, UTC_SITE, NOW_MS) is None
    day = day_of(NOW_MS, ZoneInfo("UTC")) - 100
    assert inwards(day * DAY_MS + 1, (day + 3) * DAY_MS, UTC_SITE, NOW_MS) == Piece(
        Granularity.DAY, day + 1, day + 3
    )


# People, against sets.


class Crowd:
    """Visitors that were seen at times, counted as `tracker.model.cell` describes."""

    def __init__(self, visits: list[tuple[int, int]], zone: ZoneInfo) -> None:
        self.visits = visits
        self._zone = zone
        cells: dict[tuple[Granularity, int], dict[str, int]] = {}
        last: dict[tuple[int, Granularity], int] = {}
        for t_ms, who in sorted(visits):
            for granularity in Granularity:
                if not is_kept(granularity, t_ms, NOW_MS):
                    continue
                bucket = bucket_of(granularity, t_ms, day_of(t_ms, zone))
                before = last.get((who, granularity))
                if before == bucket:
                    continue
                last[who, granularity] = bucket
                self._move(cells, granularity, before, bucket)
        self._cells = cells

    @staticmethod
    def _move(cells, granularity, before, bucket):
        here = cells.setdefault((granularity, bucket), {})
        column = last_column("visitors")
        here[column] = here.get(column, 0) + 1
        if before is not None:
            cells[granularity, before][column] -= 1
        if granularity in (Granularity.QUARTER, Granularity.DAY):
            gap = gap_column("visitors", None if before is None else bucket - before)
            here[gap] = here.get(gap, 0) + 1

    def groups(self, span: Range) -> list[Group]:
        names = Names()
        columns = sorted({name for cells in self._cells.values() for name in cells})
        names.put(0, {name_field("", COLUMNS, n): c.encode() for n, c in enumerate(columns)})
        groups = []
        for granularity, bucket in span.buckets():
            cells = self._cells.get((granularity, bucket))
            if cells:
                group = Group(GroupKey(granularity, bucket, "shop", Audience.PEOPLE, TOTAL))
                page = {columns.index(name) * 64: count for name, count in cells.items() if count}
                group.put((0, 0), encode_page(page))
                assert group.merge(names) == []
                groups.append(group)
        return groups

    def ask(self, span: Range) -> Distinct:
        return Sums(self.groups(span), span).people("visitors").get(TOTAL, NOBODY)

    def truth(self, span: Range) -> int:
        return len({who for t_ms, who in self.visits if span.from_ms <= t_ms < span.to_ms})


def crowd(seed: int, zone: ZoneInfo, days: int) -> Crowd:
    chance = random.Random(seed)
    visits = []
    for who in range(30):
        t_ms = NOW_MS - chance.randrange(days * DAY_MS)
        while t_ms <= NOW_MS:
            visits.append((t_ms, who))
            t_ms += int(chance.choice((MINUTE_MS, HOUR_MS, DAY_MS, 9 * DAY_MS)) * chance.random())
            t_ms += 1
    return Crowd(visits, zone)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_people_of_every_window_that_ends_now_are_exact(seed, timezone):
    site = Site(key="shop", timezone=timezone)
    people = crowd(seed, site.zone, 60)
    for window in ("1m", "5m", "1h", "3h", "24h", "3d", "7d", "30d", "50d"):
        span = resolve(Asked(window=window), site, NOW_MS, with_people=True)
        assert people.ask(span) == Distinct(people.truth(span)), window


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_people_of_every_range_of_whole_days_are_exact(seed, timezone):
    site = Site(key="shop", timezone=timezone)
    people = crowd(seed, site.zone, 80)
    chance = random.Random(seed)
    today = day_of(NOW_MS, site.zone)
    for _ in range(8):
        stop = today - chance.randrange(60)
        first = stop - 1 - chance.randrange(40)
        span = resolve(
            Asked(
                begin=str(day_start_ms(first, site.zone)), end=str(day_start_ms(stop, site.zone))
            ),
            site,
            NOW_MS,
            with_people=True,
        )
        assert span.people_pieces == (Piece(Granularity.DAY, first, stop),)
        assert people.ask(span) == Distinct(people.truth(span))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_people_of_a_past_part_of_days_are_within_the_stated_error(seed):
    people = crowd(seed, UTC_SITE.zone, 40)
    chance = random.Random(seed)
    for _ in range(8):
        end_ms = NOW_MS - HOUR_MS - chance.randrange(20 * DAY_MS)
        begin_ms = end_ms - 1 - chance.randrange(chance.choice((HOUR_MS, DAY_MS, 15 * DAY_MS)))
        span = resolve(
            Asked(begin=str(begin_ms), end=str(end_ms)), UTC_SITE, NOW_MS, with_people=True
        )
        found, truth = people.ask(span), people.truth(span)
        assert found.sure <= truth <= found.sure + found.unsure
        assert abs(found.value - truth) <= found.error * found.value + 1e-9
        if not found.unsure:
            assert found.value == truth


def test_a_rounded_gap_that_straddles_the_beginning_is_an_estimate():
    quarter = SIZE_MS[Granularity.QUARTER]
    start = (NOW_MS - 10 * DAY_MS) // quarter * quarter
    # 129 quarters apart: kept as the class 128 … 131, and the range begins 129 before the second.
    people = Crowd([(start - 1, 1), (start + 128 * quarter, 1)], UTC_SITE.zone)
    span = resolve(
        Asked(begin=str(start), end=str(start + 130 * quarter)), UTC_SITE, NOW_MS, with_people=True
    )
    found = people.ask(span)
    assert found == Distinct(0, 1)
    assert (found.value, found.error) == (1, 1.0)
