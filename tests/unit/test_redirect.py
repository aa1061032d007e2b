"""Ad links: where they lead, what is put on them, and that nobody can lead them elsewhere."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.collect.admit import Rules, admit_raw
from tracker.collect.parse import read_query
from tracker.collect.redirect import Redirect, follow
from tracker.collect.sender import Sender, know
from tracker.model.definition import Link, Site
from tracker.model.keys import ClickId, Keys, read_click_id
from tracker.model.record import EventRecord
from tracker.model.window import HOUR_MS

NOW = 1_767_607_200_000
KEYS = Keys(b"k" * 32)
SHOP = know(Site(key="shop"), {})
RULES = Rules(KEYS, {"shop": SHOP}, HOUR_MS)
SENDER = Sender(received_at_ms=NOW, address="203.0.113.5", user_agent="B", cookie="kept")


def led(target: str, query: str = "", sender: Sender = SENDER, **utm: str) -> Redirect:
    link = Link("spring", target, tuple(utm.items()))
    return follow(link, read_query(query), sender, SHOP, KEYS)


def marks(redirect: Redirect) -> dict[str, list[str]]:
    return parse_qs(urlsplit(redirect.location).query, keep_blank_values=True)


def test_the_targets_own_query_and_fragment_are_kept() -> None:
    location = led("https://a.example/p?x=1&y=a+b#top", utm_source="n s").location
    assert location.startswith("https://a.example/p?x=1&y=a+b&utm_source=n%20s&click_id=")
    assert location.endswith("#top")


def test_what_the_target_says_already_is_not_said_twice() -> None:
    found = marks(led("https://a.example/?utm_source=own&click_id=fixed", utm_source="link"))
    assert found == {"utm_source": ["own"], "click_id": ["fixed"]}


def test_the_request_adds_marks_that_the_link_does_not_have_and_nothing_else() -> None:
    query = "utm_source=forged&utm_term=shoes&gclid=A%2BB&evil=1&to=https://evil.example"
    found = marks(led("https://a.example/", query, utm_source="link"))
    assert (found["utm_source"], found["utm_term"], found["gclid"]) == (
        ["link"],
        ["shoes"],
        ["A+B"],
    )
    assert set(found) == {"utm_source", "utm_term", "gclid", "click_id"}


def test_macros_are_filled_and_encoded_wherever_they_stand() -> None:
    target = "https://a.example/{link}?ref={click_id}&s={site}&t={timestamp}&z={unknown}#{link}"
    redirect = led(target)
    found = marks(redirect)
    assert (found["s"], found["t"]) == (["shop"], [str(NOW)])
    assert urlsplit(redirect.location).path == "/spring"
    assert urlsplit(redirect.location).fragment == "spring"
    assert read_click_id(KEYS, found["ref"][0])
    assert "click_id" not in found


def test_the_click_id_is_signed_and_carries_the_visitor() -> None:
    for sender, visitor in ((SENDER, "kept"), (replace(SENDER, cookie=""), "e.")):
        click = read_click_id(KEYS, marks(led("https://a.example/", sender=sender))["click_id"][0])
        assert isinstance(click, ClickId)
        assert click.visitor_id.startswith(visitor)
        assert click.clicked_at_ms == NOW
    first, second = (marks(led("https://a.example/")) for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("query", "is_gpc"), [("consent=denied", False), ("", True), ("consent=0", False)]
)
def test_who_does_not_want_to_be_followed_is_led_without_an_id(query: str, *, is_gpc: bool) -> None:
    sender = replace(SENDER, is_gpc=is_gpc)
    redirect = led("https://a.example/?ref={click_id}", query, sender, utm_source="n")
    assert marks(redirect) == {"ref": [""], "utm_source": ["n"]}
    event = admit_raw(redirect.event, sender, RULES)
    assert isinstance(event, EventRecord)
    assert (event.visitor_id, event.click_id, event.dims["utm_source"]) == ("", "", "n")


def test_the_click_is_an_event_with_the_links_marks() -> None:
    redirect = led("https://a.example/p", utm_source="news", utm_campaign="c")
    event = admit_raw(redirect.event, SENDER, RULES)
    assert isinstance(event, EventRecord)
    assert (event.type, event.name, event.visitor_id) == ("click", "", "kept")
    assert (event.dims["utm_source"], event.dims["utm_campaign"]) == ("news", "c")
    assert (event.click_network, event.properties) == ("tracker", {"link": "spring"})
    assert event.dims["landing_page"] == "/p"


def test_a_networks_click_passes_through_without_being_counted_as_another() -> None:
    redirect = led("https://a.example/", "gclid=G")
    event = admit_raw(redirect.event, SENDER, RULES)
    assert isinstance(event, EventRecord)
    assert event.click_network == "tracker"
    landing = admit_raw({"site": "shop", "type": "view", "url": redirect.location}, SENDER, RULES)
    assert isinstance(landing, EventRecord)
    assert (landing.click_network, landing.click_id) == ("tracker", event.click_id)


def test_an_international_target_becomes_ascii() -> None:
    location = led("https://bücher.example/ä?ö=ü%20").location
    assert location.startswith("https://xn--bcher-kva.example/%C3%A4?%C3%B6=%C3%BC%20&click_id=")


@given(st.text(), st.sampled_from(["utm_source", "utm_id", "gclid", "to", "url", "{link}"]))
def test_no_query_changes_where_a_link_leads(value: str, name: str) -> None:
    link = Link("spring", "https://a.example/p", ())
    location = follow(link, {name: value}, SENDER, SHOP, KEYS).location
    assert location.startswith("https://a.example/p?")
    assert location.isascii()
    assert location.isprintable()
    assert "#" not in location
