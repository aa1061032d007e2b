"""`tracker up --demo`: the traffic of a small shop, sent over HTTP as browsers would.

A few events a second, until stopped. It is a client like any other: it knows the address and the
site, nothing of what is inside. Its numbers mean nothing; they only make every chart move.
"""

from __future__ import annotations

import http.client
import random
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import orjson

from tracker.units import bind_to_supervisor

EVENTS_PER_S = 5.0
VISITORS_AT_ONCE = 12
RECONNECT_S = 1.0
DEADLINE_S = 10.0
SHOP = "https://shop.example"

Event = dict[str, object]


@dataclass(frozen=True, slots=True)
class Campaign:
    """One campaign, and how well it does: probabilities of each next step."""

    source: str
    medium: str
    name: str
    click: float
    cart: float
    purchase: float

    def marks(self) -> dict[str, str]:
        """Return the campaign's UTM values; direct visits have none."""
        if not self.source:
            return {}
        return {"utm_source": self.source, "utm_medium": self.medium, "utm_campaign": self.name}


CAMPAIGNS = (
    Campaign("google", "cpc", "brand", 0.30, 0.35, 0.60),
    Campaign("google", "cpc", "spring-sale", 0.12, 0.22, 0.45),
    Campaign("facebook", "paid_social", "spring-sale", 0.06, 0.15, 0.30),
    Campaign("newsletter", "email", "april", 0.25, 0.30, 0.50),
    Campaign("", "", "", 1.0, 0.18, 0.40),
)
PRODUCTS = (
    ("kettle", "39.90"),
    ("toaster", "54.00"),
    ("grinder", "89.50"),
    ("espresso-machine", "349.00"),
    ("mug", "9.80"),
)
BROWSERS = (
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/126.0.0.0 Safari/537.36"
    ),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like "
        "Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
    ),
    (
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/126.0.0.0 Mobile Safari/537.36"
    ),
)


def visit(chance: random.Random, site: str) -> Iterator[Event]:
    """Yield the events of one visitor: ads first, then the shop, perhaps an order."""
    campaign = chance.choice(CAMPAIGNS)
    product, price = chance.choice(PRODUCTS)
    visitor = "demo-" + secrets.token_hex(8)
    person: Event = {"site": site, "visitor_id": visitor}
    marks = campaign.marks()
    if marks:
        yield {**person, "type": "impression", **marks}
        if chance.random() > campaign.click:
            return
        yield {**person, "type": "click", **marks}
    query = "?" + urlencode(marks) if marks else ""
    yield {**person, "type": "view", "url": f"{SHOP}/{query}", "title": "Shop"}
    if chance.random() < 0.35:
        return
    page = f"{SHOP}/products/{product}"
    yield {**person, "type": "view", "url": page, "title": product}
    if chance.random() > campaign.cart:
        return
    cart: Event = {"type": "conversion", "name": "add_to_cart", "url": page, "value": price}
    yield {**person, **cart}
    yield {**person, "type": "view", "url": f"{SHOP}/checkout", "title": "Checkout"}
    if chance.random() > campaign.purchase:
        return
    order: Event = {"order_id": "demo-" + secrets.token_hex(6), "value": price}
    yield {**person, "type": "conversion", "name": "purchase", "url": f"{SHOP}/thanks", **order}


def traffic(chance: random.Random, site: str) -> Iterator[tuple[Event, str]]:
    """Yield events of many visitors, mixed, each with its browser's name; without an end."""
    here: list[tuple[Iterator[Event], str]] = []
    while True:
        while len(here) < VISITORS_AT_ONCE:
            here.append((visit(chance, site), chance.choice(BROWSERS)))
        place = chance.randrange(len(here))
        events, browser = here[place]
        event = next(events, None)
        if event is None:
            del here[place]
        else:
            yield {**event, "event_id": secrets.token_hex(16)}, browser


def play(url: str, site: str) -> None:
    """Send traffic until the process is stopped; what the server refuses is let go."""
    parts = urlsplit(url)
    chance = random.Random()  # noqa: S311 - a play, not a secret
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE_S)
    for event, browser in traffic(chance, site):
        headers = {"Content-Type": "application/json", "User-Agent": browser}
        try:
            connection.request("POST", "/v1/events", orjson.dumps(event), headers)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()  # and the next request connects again
            time.sleep(RECONNECT_S)
        time.sleep(chance.expovariate(EVENTS_PER_S))


if __name__ == "__main__":
    bind_to_supervisor()
    play(sys.argv[1], sys.argv[2])
