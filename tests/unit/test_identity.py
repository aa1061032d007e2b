"""Who an event belongs to: consent, visitor, cookie, address."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.collect.addresses import Proxies, address_prefix
from tracker.collect.admit import Rules, admit_raw
from tracker.collect.sender import (
    ADOPTION_MS,
    CookiePlan,
    Sender,
    cookie_after,
    is_cookie_safe,
    know,
    read_cookie,
)
from tracker.model.definition import Site
from tracker.model.keys import ClickId, Keys, make_click_id
from tracker.model.record import Consent, EventRecord, IdentifiedBy
from tracker.model.window import DAY_MS, HOUR_MS

NOW = 1_767_607_200_000
KEYS = Keys(b"k" * 32)
SITES = {
    "shop": know(Site(key="shop", secret="s3cret"), {}),  # noqa: S106
    "loud": know(Site(key="loud", gpc="ignore"), {}),
}
RULES = Rules(KEYS, SITES, 72 * HOUR_MS)
SENDER = Sender(received_at_ms=NOW, address="203.0.113.5", user_agent="Some Browser")
IDS = {"visitor_id": "v", "customer_id": "c", "session_id": "s", "gclid": "g"}


def admitted(sender: Sender = SENDER, **fields: object) -> EventRecord:
    found = admit_raw({"site": "shop", "type": "view", **fields}, sender, RULES)
    assert isinstance(found, EventRecord), found
    return found


def who(sender: Sender = SENDER, **fields: object) -> tuple[str, IdentifiedBy]:
    event = admitted(sender, **fields)
    return event.visitor_id, event.identified_by


def click(age_ms: int = 1_000, visitor_id: str = "clicker", keys: Keys = KEYS) -> str:
    return make_click_id(keys, ClickId(NOW - age_ms, 1, visitor_id))


# --- the order ------------------------------------------------------------------------------


def test_a_sent_id_beats_the_cookie_the_cookie_a_click_the_click_an_estimate() -> None:
    landing = f"https://shop.example/?click_id={click()}"
    kept = replace(SENDER, cookie="kept")
    assert who(kept, visitor_id="sent", url=landing) == ("sent", IdentifiedBy.SENT)
    assert who(kept, url=landing) == ("kept", IdentifiedBy.COOKIE)
    assert who(url=landing) == ("clicker", IdentifiedBy.CLICK)
    estimated, how = who()
    assert (estimated[:2], how) == ("e.", IdentifiedBy.ESTIMATE)


def test_a_click_is_adopted_only_fresh_signed_and_from_an_address() -> None:
    def adopted(click_id: str) -> bool:
        event = admitted(url=f"/?click_id={click_id}")
        return event.identified_by is IdentifiedBy.CLICK

    assert adopted(click(ADOPTION_MS - 1))
    assert not adopted(click(ADOPTION_MS))
    assert not adopted(click(keys=Keys(b"x" * 32)))
    assert not adopted(click(visitor_id=""))
    assert not adopted("nonsense")
    assert admitted(click_id=click()).click_network == "tracker"


def test_an_estimate_is_one_browser_in_one_network_on_one_day_at_one_site() -> None:
    same, _ = who()
    assert who(replace(SENDER, address="203.0.113.99"))[0] == same
    assert who(replace(SENDER, address="203.0.114.5"))[0] != same
    assert who(replace(SENDER, user_agent="Other"))[0] != same
    assert who(replace(SENDER, received_at_ms=NOW + DAY_MS))[0] != same
    assert who(site="loud")[0] != same
    assert who(occurred_at_ms=NOW - DAY_MS)[0] != same


def test_a_retry_without_cookie_reaches_the_same_visitor() -> None:
    assert who(event_id="e1") == who(replace(SENDER, received_at_ms=NOW + 60_000), event_id="e1")


def test_a_servers_event_has_only_the_visitor_that_it_names() -> None:
    server = replace(SENDER, key="s3cret", cookie="kept")
    assert who(server) == ("", IdentifiedBy.NOBODY)
    assert who(server, url=f"/?click_id={click()}") == ("", IdentifiedBy.NOBODY)
    assert who(server, visitor_id="v") == ("v", IdentifiedBy.SENT)


def test_a_row_of_a_file_without_address_belongs_to_nobody() -> None:
    row = Sender(received_at_ms=NOW, is_import=True)
    assert who(row) == ("", IdentifiedBy.NOBODY)
    assert who(replace(row, user_agent="A"))[1] is IdentifiedBy.ESTIMATE


# --- consent --------------------------------------------------------------------------------


@pytest.mark.parametrize("consent", ["denied", "DENIED", "no", "0", "false", False])
def test_denied_consent_keeps_no_id_of_anybody(consent: object) -> None:
    event = admitted(replace(SENDER, cookie="kept"), consent=consent, order_id="o", **IDS)
    assert (event.consent, event.identified_by) == (Consent.DENIED, IdentifiedBy.NOBODY)
    assert (event.visitor_id, event.customer_id, event.session_id, event.click_id) == ("",) * 4
    assert (event.order_id, event.click_network) == ("o", "gclid")
    assert "consent" not in event.properties


def test_granted_consent_changes_nothing() -> None:
    assert admitted(consent="granted", visitor_id="v").visitor_id == "v"


def test_privacy_control_is_honoured_unless_the_site_ignores_it() -> None:
    private = replace(SENDER, is_gpc=True)
    assert admitted(private, **IDS).consent is Consent.GPC
    assert admitted(private, **IDS).visitor_id == ""
    assert admitted(private, site="loud", **IDS).visitor_id == "v"


# --- cookies --------------------------------------------------------------------------------


def test_the_cookie_is_the_one_person_of_the_request() -> None:
    assert cookie_after([admitted(visitor_id="v")] * 2) == "v"
    assert cookie_after([admitted(visitor_id="v"), admitted(visitor_id="w")]) == ""
    assert cookie_after([admitted(visitor_id="v"), admitted(consent="no")]) == ""
    assert cookie_after([admitted(replace(SENDER, key="s3cret"), visitor_id="v")]) == ""
    assert cookie_after([]) == ""


@pytest.mark.parametrize("value", ["", "a;b", "a b", 'a"b', "a,b", "a\r\nb", "é", "x" * 129])
def test_a_cookie_of_the_wrong_kind_is_neither_read_nor_set(value: str) -> None:
    assert read_cookie(value) == ""
    assert not is_cookie_safe(value)
    assert is_cookie_safe("x" * 128)


@given(st.text())
def test_no_visitor_id_can_break_out_of_its_cookie(visitor_id: str) -> None:
    if is_cookie_safe(visitor_id):
        header = CookiePlan().header(visitor_id, is_https=True)
        assert header.split(";")[0] == f"_tv={visitor_id}"
        assert header.isprintable()
        assert header.isascii()


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("203.0.113.5", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::ffff:203.0.113.5", "203.0.113.0/24"),
        ("fe80::1%eth0", "fe80::/48"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_only_the_network_of_an_address_is_used(address: str, prefix: str) -> None:
    assert address_prefix(address) == prefix


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.1", "203.0.113.5", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.5, 10.9.9.9", "203.0.113.5"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "203.0.113.5, junk, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "junk", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
        ("10.0.0.1", '"[2001:db8::1]:80"', "2001:db8::1"),
    ],
)
def test_the_client_is_the_right_most_hop_that_is_no_proxy_of_ours(
    peer: str, forwarded: str, client: str
) -> None:
    assert Proxies(("10.0.0.0/8",)).client(peer, forwarded) == client
    assert Proxies().client(peer, forwarded) == peer
