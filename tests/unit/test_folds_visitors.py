"""Sessions, touches, clicks and identity: one test a sentence of SEMANTICS."""

from __future__ import annotations

import pytest
from folding import (
    CLICK,
    CONVERSION,
    DAY,
    HOUR,
    IMPRESSION,
    KEYS,
    MINUTE,
    SECOND,
    SITE,
    Bench,
    at,
    bought,
    count_in,
    distinct,
    visitors_in,
)

from consumers.names import VALUES_MAX
from tracker.model.keys import owner_of_visitor
from tracker.model.record import Consent, IdentifiedBy, Trust
from tracker.model.window import Granularity


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.define()
    return made


# -- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("silence", "sessions"), [(30 * MINUTE - 1, 1), (30 * MINUTE, 2)])
async def test_thirty_minutes_of_silence_end_a_session(
    bench: Bench, silence: int, sessions: int
) -> None:
    await bench.send(at(0), at(silence))
    assert await bench.count("sessions") == sessions


async def test_a_late_event_joins_the_two_sessions_that_it_bridges(bench: Bench) -> None:
    await bench.send(at(0), at(40 * MINUTE))
    assert await bench.count("sessions") == 2
    await bench.send(at(20 * MINUTE, received=41 * MINUTE))
    assert await bench.count("sessions") == 1


async def test_a_session_id_is_authoritative_over_silence(bench: Bench) -> None:
    await bench.send(at(0, session_id="s"), at(9 * HOUR, session_id="s"))
    assert await bench.count("sessions") == 1


async def test_another_session_id_is_another_session_at_once(bench: Bench) -> None:
    await bench.send(at(0, session_id="s"), at(SECOND, session_id="t"))
    assert await bench.count("sessions") == 2


async def test_one_session_id_of_two_visitors_is_two_sessions(bench: Bench) -> None:
    await bench.send(at(0, session_id="s", visitor="a"), at(0, session_id="s", visitor="b"))
    assert await bench.count("sessions") == 2


async def test_an_event_without_a_session_id_goes_on_with_the_newest_session(bench: Bench) -> None:
    events = (
        at(0, event_id="1"),
        at(0, event_id="2", session_id="s", source="news"),
        at(MINUTE, event_id="3"),
    )
    await bench.send(*events)
    assert await bench.count("sessions") == 2
    assert await bench.count("views", utm_source="news") == 2


async def test_a_new_campaign_does_not_split_a_session(bench: Bench) -> None:
    await bench.send(at(0, source="news"), at(MINUTE, source="search"))
    assert await bench.count("sessions") == 1
    assert await bench.count("views", utm_source="news") == 2
    assert await bench.count("views", utm_source="search") == 0


async def test_a_session_counts_on_the_day_it_starts_and_its_visitor_on_every_day(
    bench: Bench,
) -> None:
    await bench.send(at(14 * HOUR - MINUTE), at(14 * HOUR + MINUTE))
    cells = await bench.cells()
    assert count_in(cells, "sessions") == 1
    first = at(0).day
    assert [distinct(cells, "visitors", first=day, stop=day + 1) for day in (first, first + 1)] == [
        1,
        1,
    ]
    assert distinct(cells, "visitors") == 1


async def test_impressions_open_and_prolong_no_session_and_make_no_visitor(bench: Bench) -> None:
    await bench.send(at(0, IMPRESSION, visitor="i"), at(0), at(20 * MINUTE, IMPRESSION))
    await bench.send(at(40 * MINUTE))
    cells = await bench.cells()
    assert count_in(cells, "impressions") == 2
    assert count_in(cells, "sessions") == 2
    assert distinct(cells, "visitors") == 1


async def test_events_with_the_secret_key_make_no_session_and_no_visitor(bench: Bench) -> None:
    await bench.send(bought(0, "O", 5, trust=Trust.SECRET))
    cells = await bench.cells()
    assert count_in(cells, "sessions") == 0
    assert distinct(cells, "visitors") == 0
    assert count_in(cells, "orders") == 1
    assert distinct(cells, "converters") == 1


# -- clicks ---------------------------------------------------------------------------------------


async def test_a_landing_with_a_network_click_id_counts_a_click_once(bench: Bench) -> None:
    landing = {"click_id": "G", "click_network": "gclid", "arrival": True, "source": "google"}
    await bench.send(at(0, **landing), at(DAY, **landing))
    await bench.send(at(DAY, **(landing | {"click_id": "g"})))
    assert await bench.count("clicks") == 2
    assert await bench.count("clicks", utm_source="google") == 2


async def test_of_landings_out_of_order_the_earliest_is_the_click(bench: Bench) -> None:
    landing = {"click_id": "G", "click_network": "gclid", "arrival": True}
    await bench.send(at(20 * MINUTE, source="b", **landing))
    await bench.send(at(0, source="a", received=21 * MINUTE, **landing))
    cells = await bench.cells()
    assert count_in(cells, "clicks", utm_source="a") == 1
    assert count_in(cells, "clicks", utm_source="b") == 0


async def test_a_landing_with_our_own_click_id_is_no_second_click(bench: Bench) -> None:
    await bench.send(at(0, CLICK, source="a"))
    await bench.send(at(SECOND, click_id="ours", click_network="tracker", arrival=True, source="a"))
    assert await bench.count("clicks") == 1


async def test_clicks_on_marked_elements_are_no_ad_clicks(bench: Bench) -> None:
    await bench.send(at(0, CLICK, name="menu"), at(1, CLICK))
    assert await bench.count("clicks") == 1
    assert await bench.count("clicks:menu") == 1


async def test_clicks_and_impressions_count_under_their_own_values(bench: Bench) -> None:
    await bench.send(at(0, source="news"), at(1, CLICK, source="ad"), at(2, IMPRESSION, source="x"))
    cells = await bench.cells()
    assert count_in(cells, "clicks", utm_source="ad") == 1
    assert count_in(cells, "impressions", utm_source="x") == 1


# -- touches --------------------------------------------------------------------------------------


async def test_the_last_touch_before_a_conversion_is_credited(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(HOUR, source="b"), bought(HOUR + 1, "", 5))
    await bench.send(at(2 * HOUR, source="c"))
    cells = await bench.cells()
    assert count_in(cells, "revenue:EUR", utm_source="b") == 5_000_000
    assert count_in(cells, "revenue:EUR") == 5_000_000


async def test_a_touch_of_the_conversions_own_instant_counts(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(HOUR, source="b"), bought(HOUR, "", 5))
    assert await bench.count("conversions", utm_source="b") == 1


async def test_a_direct_session_is_a_touch(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(HOUR), bought(HOUR + 1, "", 5))
    assert await bench.count("conversions", utm_source="(none)") == 1


async def test_a_later_landing_in_the_session_is_a_touch(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(MINUTE, source="b"), bought(2 * MINUTE, "", 5))
    assert await bench.count("conversions", utm_source="b") == 1


async def test_a_source_that_repeats_in_a_session_is_one_touch_at_its_first_arrival(
    bench: Bench,
) -> None:
    await bench.send(at(0, source="a"), at(1, source="b"), at(2, source="a"), bought(3, "", 5))
    assert await bench.count("conversions", utm_source="b") == 1


async def test_a_source_that_repeats_in_another_session_is_another_touch(bench: Bench) -> None:
    await bench.send(at(0, source="a"), at(1, source="b"), at(HOUR, source="a"))
    await bench.send(bought(HOUR + 1, "", 5))
    assert await bench.count("conversions", utm_source="a") == 1


@pytest.mark.parametrize(("after", "source"), [(30 * DAY, "a"), (30 * DAY + 1, "(none)")])
async def test_a_touch_counts_for_thirty_days(bench: Bench, after: int, source: str) -> None:
    events = at(0, source="a"), bought(after, "", 5, trust=Trust.SECRET)
    await bench.send(*events)
    assert await bench.count("conversions", utm_source=source) == 1


async def test_a_late_touch_moves_the_credit(bench: Bench) -> None:
    order = bought(50 * MINUTE, "O", 5)
    await bench.send(at(0, source="a"), order)
    assert await bench.count("orders", utm_source="(none)") == 1
    await bench.send(at(40 * MINUTE, source="b", received=51 * MINUTE))
    cells = await bench.cells()
    assert count_in(cells, "orders", utm_source="b") == 1
    assert count_in(cells, "orders", utm_source="(none)") == 0
    assert count_in(cells, "orders") == 1


async def test_credit_is_frozen_once_the_watermark_has_passed_by_the_lateness(
    bench: Bench,
) -> None:
    someone = visitors_in(7, 2)
    await bench.send(at(0, source="a", visitor=someone[0]), bought(MINUTE, "", 5, visitor="v"))
    await bench.send(bought(50 * MINUTE, "", 5, visitor=someone[0]))
    # Another visitor of the partition moves its watermark, the late touch comes after that.
    await bench.send(at(3 * HOUR, visitor=someone[1]))
    await bench.send(at(40 * MINUTE, source="b", visitor=someone[0], received=3 * HOUR))
    assert await bench.count("conversions", utm_source="b") == 0


# -- who ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("consent", [Consent.DENIED, Consent.GPC])
async def test_without_consent_an_event_moves_only_the_counts_of_its_own_values(
    bench: Bench, consent: Consent
) -> None:
    said = {"visitor": "", "consent": consent, "source": "a"}
    await bench.send(at(0, **said), at(1, CLICK, **said), bought(2, "", 5, **said))
    cells = await bench.cells()
    assert count_in(cells, "views", utm_source="a") == 1
    assert count_in(cells, "clicks", utm_source="a") == 1
    assert count_in(cells, "orders", utm_source="a") == 1
    assert count_in(cells, "sessions") == 0
    assert not [p for p in cells if p.column.startswith(("visitors", "converters", "funnel"))]


async def test_an_event_of_nobody_is_nobodys_whatever_id_it_carries(bench: Bench) -> None:
    await bench.send(at(0, visitor="v", identified_by=IdentifiedBy.NOBODY))
    cells = await bench.cells()
    assert count_in(cells, "views") == 1
    assert count_in(cells, "sessions") == 0


async def test_bots_are_counted_apart(bench: Bench) -> None:
    await bench.send(at(0), at(1, bot="list"), bought(2, "O", 5, bot="list"))
    cells = await bench.cells()
    assert count_in(cells, "views") == 1
    assert count_in(cells, "views", audience="b") == 1
    assert count_in(cells, "orders") == 0
    assert count_in(cells, "orders", audience="b") == 1
    assert distinct(cells, "visitors", audience="b") == 1


# -- copies ---------------------------------------------------------------------------------------


async def test_a_copy_counts_as_duplicate_and_one_with_other_content_also_as_conflict(
    bench: Bench,
) -> None:
    await bench.send(at(0, event_id="e"), at(0, event_id="e"), at(0, event_id="e", url="/other"))
    assert await bench.count("views") == 1
    assert await bench.ledger() == {"applied": 1, "duplicate": 2, "conflict": 1}


async def test_ids_of_public_and_of_secret_events_live_apart(bench: Bench) -> None:
    await bench.send(at(0, event_id="e"), at(0, event_id="e", trust=Trust.SECRET))
    assert (await bench.ledger())["applied"] == 2


@pytest.mark.parametrize(
    ("trust", "days"), [(Trust.PUBLIC, 3), (Trust.SECRET, 90), (Trust.IMPORT, 400)]
)
async def test_an_id_is_remembered_as_long_as_its_sender_may_retry(
    bench: Bench, trust: Trust, days: int
) -> None:
    """Also when nothing else is heard of its visitor, whose other state goes after five weeks."""
    said = {"event_id": "e", "trust": trust, "visitor": "v"}
    await bench.send(at(0, **said))
    neighbour = visitors_in(KEYS.partition(SITE, owner_of_visitor("v")), 2)
    other = next(name for name in neighbour if name != "v")
    for day in range(20, days, 20):
        await bench.send(at(day * DAY, visitor=other))
        bench.runner = bench.new_runner()  # nothing stays in memory
    await bench.send(at(0, received=days * DAY, **said))
    assert (await bench.ledger()).get("duplicate", 0) == 1


async def test_a_public_id_is_forgotten_after_three_days(bench: Bench) -> None:
    await bench.send(at(0, event_id="e"), at(3 * DAY + 2 * MINUTE, event_id="e"))
    assert (await bench.ledger()).get("duplicate", 0) == 0


# -- late -----------------------------------------------------------------------------------------


async def test_an_event_later_than_the_lateness_counts_in_its_own_bucket_alone(
    bench: Bench,
) -> None:
    await bench.send(at(3 * HOUR), at(0, received=3 * HOUR, source="a"))
    await bench.send(bought(HOUR, "", 5, received=3 * HOUR))
    cells = await bench.cells()
    quarter = at(0).occurred_at_ms // (15 * MINUTE)
    where = {"granularity": Granularity.QUARTER}
    assert count_in(cells, "views", bucket=quarter, **where) == 1
    assert count_in(cells, "revenue:EUR") == 5_000_000
    assert count_in(cells, "sessions") == 1
    assert distinct(cells, "converters") == 0


async def test_an_event_exactly_as_late_as_the_lateness_is_sorted_in(bench: Bench) -> None:
    await bench.send(at(HOUR), at(0, received=HOUR))
    assert await bench.count("sessions") == 2


async def test_lateness_is_measured_by_the_visitor_and_not_by_others(bench: Bench) -> None:
    one, other = visitors_in(3, 2)
    await bench.send(at(30 * HOUR, visitor=other))
    await bench.send(*(at(n * HOUR, visitor=one, received=30 * HOUR) for n in range(5)))
    assert await bench.count("sessions") == 6


async def test_an_import_behind_newer_live_events_moves_buckets_and_money_only(
    bench: Bench,
) -> None:
    await bench.send(at(5 * HOUR))
    said = {"trust": Trust.IMPORT, "received": 6 * HOUR}
    await bench.send(at(-40 * DAY, **said), bought(-40 * DAY, "", 7, **said))
    cells = await bench.cells()
    day = at(-40 * DAY).day
    assert count_in(cells, "views", bucket=day) == 1
    assert count_in(cells, "revenue:EUR", bucket=day) == 7_000_000
    assert count_in(cells, "sessions") == 1
    assert distinct(cells, "visitors", stop=day + 1) == 0
    assert (await bench.ledger())["behind"] == 2


# -- names and caps -------------------------------------------------------------------------------


async def test_micro_conversions_count_under_their_name_alone(bench: Bench) -> None:
    await bench.send(at(0, CONVERSION, name="cart", value_micros=1), at(1, CONVERSION, name="lead"))
    cells = await bench.cells()
    assert count_in(cells, "conversions:cart") == 1
    assert count_in(cells, "conversions") == 1
    assert count_in(cells, "revenue:EUR") == 0


async def test_a_value_over_the_cap_is_folded_away_and_the_totals_stay_exact(bench: Bench) -> None:
    shown = VALUES_MAX + 5
    await bench.send(*(at(0, IMPRESSION, campaign=f"c{n}") for n in range(shown)))
    cells = await bench.cells()
    assert count_in(cells, "impressions") == shown
    # One value was taken before: that of events without any, which counts as one.
    assert count_in(cells, "impressions", utm_campaign="__other__") == 6
    assert count_in(cells, "impressions", utm_campaign="c0") == 1
    assert (
        sum(n for p, n in cells.items() if p.dimension == "utm_campaign" and p.granularity == "1d")
        == shown
    )


async def test_sites_do_not_meet(bench: Bench) -> None:
    await bench.send(at(0), at(0, site="other"))
    cells = await bench.cells()
    assert count_in(cells, "views", site=SITE) == count_in(cells, "views", site="other") == 1
