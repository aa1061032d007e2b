"""The steps of admission, one by one, and what they stamp."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tracker.codec import decode, encode, encode_stamped
from tracker.collect.admit import STEPS, Rules, admit_events, admit_raw, partition_of
from tracker.collect.parse import Envelope, Refused
from tracker.collect.sender import Sender, know
from tracker.model.definition import Site
from tracker.model.keys import Keys
from tracker.model.record import EventRecord, EventType, Trust
from tracker.model.rejection import Reason
from tracker.model.window import DAY_MS, HOUR_MS, MINUTE_MS

NOW = 1_767_607_200_000  # 2026-01-05T10:00Z
KEYS = Keys(b"k" * 32)
SHOP = Site(
    key="shop",
    currency="EUR",
    timezone="Pacific/Auckland",
    secret="s3cret",  # noqa: S106
)
RULES = Rules(KEYS, {"shop": know(SHOP, {}), "open": know(Site(key="open"), {})}, 72 * HOUR_MS)
SENDER = Sender(received_at_ms=NOW, address="203.0.113.5", user_agent="curl/8.5.0")
SERVER = replace(SENDER, key="s3cret")


def admitted(sender: Sender = SENDER, **fields: object) -> EventRecord:
    found = admit_raw({"site": "shop", "type": "view", **fields}, sender, RULES)
    assert isinstance(found, EventRecord), found
    return found


def refused(sender: Sender = SENDER, **fields: object) -> Refused:
    found = admit_raw({"site": "shop", "type": "view", **fields}, sender, RULES)
    assert isinstance(found, Refused), found
    return found


def reason(sender: Sender = SENDER, **fields: object) -> Reason:
    return refused(sender, **fields).rejection.reason


def test_the_policy_is_a_list_that_can_be_read() -> None:
    assert [step.__name__ for step in STEPS] == [
        "check_key",
        "check_type",
        "settle_time",
        "settle_money",
        "find_origin",
        "respect_consent",
        "name_visitor",
        "describe_client",
    ]
    assert all(step.__doc__ for step in STEPS)


def test_unknown_site() -> None:
    for site in ("nobody", "", None, "SHOP"):
        found = refused(site=site)
        assert (found.rejection.reason, found.site) == (Reason.UNKNOWN_SITE, "")


def test_the_site_is_the_events_own_then_the_envelopes_then_the_requests() -> None:
    def site(own: str, enveloped: str, requested: str) -> str:
        sender = replace(SENDER, site=requested)
        envelope = Envelope([{"site": own, "type": "view"}], 3, enveloped)
        (fate,) = admit_events(envelope, sender, RULES)
        return fate.site

    assert site("shop", "open", "open") == "shop"
    assert site("", "shop", "open") == "shop"
    assert site("", "", "shop") == "shop"


def test_a_refusal_is_counted_under_the_site_that_was_meant() -> None:
    assert refused(visitor_id=5).site == "shop"
    fates = admit_events(Envelope([7, {"type": 1}], 3, "shop"), SENDER, RULES)
    assert [fate.site for fate in fates] == ["shop", "shop"]
    fates = admit_events(Envelope([{"site": "nobody", "type": 1}], 3, "shop"), SENDER, RULES)
    assert [fate.site for fate in fates] == [""]


def test_missing_name() -> None:
    assert reason(type="conversion") is Reason.MISSING_NAME
    assert reason(type="conversion", name=" \t") is Reason.MISSING_NAME
    assert admitted(type="conversion", name=" sign_up ").name == "sign_up"


def test_a_type_is_required_except_of_a_pixel() -> None:
    assert reason(type=None) is Reason.BAD_TYPE
    found = admit_raw({"site": "shop"}, SENDER, RULES, default_type=EventType.VIEW)
    assert isinstance(found, EventRecord)
    assert found.type is EventType.VIEW


# --- time -----------------------------------------------------------------------------------


def test_without_a_time_it_is_the_time_of_receipt() -> None:
    assert admitted().occurred_at_ms == NOW
    assert admitted(sent_at_ms=NOW - HOUR_MS).occurred_at_ms == NOW


def test_a_clock_that_is_off_by_more_than_two_seconds_is_corrected() -> None:
    for skew, corrected in ((2_000, False), (-2_000, False), (2_001, True), (-HOUR_MS, True)):
        found = admitted(occurred_at_ms=NOW - 9_000 + skew, sent_at_ms=NOW + skew)
        assert found.occurred_at_ms == NOW - 9_000 + (0 if corrected else skew)


def test_the_envelopes_sent_at_counts_for_its_events() -> None:
    raw = {"type": "view", "occurred_at_ms": 1_000}
    (fate,) = admit_events(Envelope([raw], 3, "shop", 4_000), SENDER, RULES)
    assert isinstance(fate, EventRecord)
    assert fate.occurred_at_ms == NOW - 3_000


def test_future() -> None:
    assert admitted(occurred_at_ms=NOW + 5 * MINUTE_MS).occurred_at_ms == NOW + 5 * MINUTE_MS
    assert reason(occurred_at_ms=NOW + 5 * MINUTE_MS + 1) is Reason.FUTURE
    assert reason(occurred_at="2100-01-01T00:00:00Z") is Reason.FUTURE


def test_too_old() -> None:
    assert admitted(occurred_at_ms=NOW - 72 * HOUR_MS)
    assert reason(occurred_at_ms=NOW - 72 * HOUR_MS - 1) is Reason.TOO_OLD
    assert reason(occurred_at="1970-01-01T00:00:00Z") is Reason.TOO_OLD
    assert admitted(SERVER, occurred_at_ms=NOW - 90 * DAY_MS).trust is Trust.SECRET
    assert reason(SERVER, occurred_at_ms=NOW - 90 * DAY_MS - 1) is Reason.TOO_OLD


def test_a_file_has_no_age_limit() -> None:
    found = admitted(Sender(received_at_ms=NOW, is_import=True), occurred_at_ms=0)
    assert (found.occurred_at_ms, found.day, found.trust) == (0, 0, Trust.IMPORT)


def test_the_day_is_that_of_the_sites_zone() -> None:
    assert admitted().day == 20_458  # 23:00 in Auckland
    assert admitted(occurred_at_ms=NOW - HOUR_MS).day == 20_458
    late = replace(SENDER, received_at_ms=NOW + HOUR_MS)
    assert admitted(late).day == 20_459
    assert admitted(late, site="open").day == 20_458


# --- money ----------------------------------------------------------------------------------


def test_money_is_of_the_currency_sent_else_the_sites() -> None:
    assert admitted(value="1.5").currency == "EUR"
    assert admitted(value="1.5", currency="usd").currency == "USD"
    assert (admitted(currency="USD").currency, admitted().value_micros) == ("", None)


def test_bad_value_that_is_negative_unless_it_is_a_refund() -> None:
    assert reason(value="-1") is Reason.BAD_VALUE
    assert reason(type="conversion", name="purchase", value=-1) is Reason.BAD_VALUE
    assert admitted(type="conversion", name="refund", value=-1).value_micros == 1_000_000


# --- keys -----------------------------------------------------------------------------------


def test_bad_secret() -> None:
    for key in ("guess", "", "s3cret ", "é", "\udce9"):
        assert reason(replace(SENDER, key=key)) is Reason.BAD_SECRET
    assert reason(replace(SENDER, key=""), site="open") is Reason.BAD_SECRET
    assert admitted(SERVER).trust is Trust.SECRET


def test_a_secret_in_the_environment_is_looked_up_and_a_missing_one_opens_nothing() -> None:
    site = Site(key="shop", secret="env:KEY")  # noqa: S106
    for environ, key, accepted in (
        ({"KEY": "k"}, "k", True),
        ({}, "", False),
        ({}, "env:KEY", False),
    ):
        rules = Rules(KEYS, {"shop": know(site, environ)}, HOUR_MS)
        raw = {"site": "shop", "type": "view"}
        found = admit_raw(raw, replace(SENDER, key=key), rules)
        assert isinstance(found, EventRecord) is accepted


# --- the record -----------------------------------------------------------------------------


def test_an_event_without_id_gets_one_of_its_own() -> None:
    first, second = admitted(), admitted()
    assert len(first.event_id) == 32
    assert first.event_id != second.event_id
    assert admitted(event_id="mine").event_id == "mine"


def test_an_admitted_event_can_be_written_and_read_back() -> None:
    found = admitted(
        type="conversion",
        name="purchase",
        value="19.90",
        order_id="o1",
        url="https://shop.example/ü?utm_source=a&gclid=b",
        properties={"a": 1.0, "b": "x", "c": True, "d": 2**62},
    )
    assert decode(encode(found)) == found
    stamped = replace(found, producer="p", sequence=7)
    assert encode_stamped(found, "p", 7) == encode(stamped)


def test_an_event_lies_in_the_partition_of_its_visitor_else_order_else_customer() -> None:
    def partition(**fields: str) -> int:
        return partition_of(KEYS, admitted(SERVER, event_id="e", **fields))

    by_visitor = {partition(visitor_id="v", order_id=str(n)) for n in range(20)}
    assert by_visitor == {KEYS.partition("shop", "v:v")}
    by_order = {partition(order_id="o", customer_id=str(n)) for n in range(20)}
    assert by_order == {KEYS.partition("shop", "o:o")}
    assert partition(customer_id="c") == KEYS.partition("shop", "c:c")
    assert partition() == KEYS.partition("shop", "e:e")


@pytest.mark.parametrize("name", ["country", "device", "language"])
def test_a_server_may_say_what_its_visitor_used_and_a_page_may_not(name: str) -> None:
    assert admitted(SERVER, **{name: "stated"}).dims[name] == "stated"
    assert admitted(**{name: "stated"}).dims.get(name) != "stated"
    assert admitted(**{name: "stated"}).properties == {name: "stated"}
