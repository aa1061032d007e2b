"""Where a visit came from: UTM values, click id and referrer made into dimensions.

Pure: the same texts give the same answer. Whether a click id is one of ours needs the
installation's key and is decided in `tracker.collect.admit`. Addresses are kept without what may
name a person: of a query only UTM values and click ids, of a referrer only host and path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, unquote_plus

from tracker.collect.channels import CLICK_SOURCES, channel_of, organic_channel, site_of_host
from tracker.collect.fields import (
    CLICK_ID_CHARS_MAX,
    CLICK_NETWORKS,
    DIMENSION_CHARS_MAX,
    UTM_FIELDS,
    plain,
)
from tracker.model.record import DIMENSION_DEFAULTS, NO_VALUE

OUR_CLICK_ID = "click_id"
_MARKS: Final = frozenset((*UTM_FIELDS, *CLICK_NETWORKS, OUR_CLICK_ID))
CACHED_CHARS_MAX = 512
"""4,096 entries of two such addresses and what is made of them stay below 10 MB."""
KEPT_URL_CHARS_MAX = 2_048


@dataclass(frozen=True, slots=True)
class Place:
    """An address, taken apart. `marks` are its UTM values and click ids, decoded once."""

    host: str
    path: str
    marks: Mapping[str, str]
    kept: str  # what is stored of it


_NOWHERE = Place("", "", {}, "")


def read_place(url: str) -> Place:
    """Take `url` (absolute, or a path) apart; what is no address has no host and no path."""
    rest = url.partition("#")[0]
    address, _, query = rest.partition("?")
    marks, kept_query = _marks(query) if query else ({}, "")
    scheme, separator, after = address.partition("://")
    if separator:
        authority, _, path = after.partition("/")
        authority = authority.rpartition("@")[2]
        host, path = _host(authority), "/" + path
        kept = f"{scheme}://{authority}{path}"
    elif address.startswith("/"):
        host, path, kept = "", address, address
    else:
        host, path, kept = "", "", ""
    if kept_query:
        kept = f"{kept}?{kept_query}"
    if "%" in path:
        path = unquote(path)
    return Place(host, plain(path, DIMENSION_CHARS_MAX), marks, kept[:KEPT_URL_CHARS_MAX])


def _host(authority: str) -> str:
    if authority.startswith("["):
        return authority.partition("]")[0] + "]"
    return authority.partition(":")[0].rstrip(".").lower()


def _marks(query: str) -> tuple[dict[str, str], str]:
    """Return the UTM values and click ids of `query`, and the part of it that holds them."""
    marks: dict[str, str] = {}
    kept = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if "%" in name:
            name = unquote(name)
        if name not in _MARKS or not value:
            continue
        if name in marks:
            continue  # the first one counts, as in URLSearchParams.get
        if name.startswith("utm_"):
            text = plain(unquote_plus(value), DIMENSION_CHARS_MAX)
        else:
            text = unquote(value)
            if len(text) > CLICK_ID_CHARS_MAX:
                continue  # cut it would be another click
        if text:
            marks[name] = text
            kept.append(pair)
    return marks, "&".join(kept)


@dataclass(frozen=True, slots=True)
class Own:
    """What a site calls its own: referrers from there are no arrival."""

    domains: tuple[str, ...] = ()
    payment_providers: tuple[str, ...] = ()
    lowercase_utm: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """What address, referrer and stated fields say about where somebody came from.

    `dims` holds only what differs from the defaults. `click_id` is the address's own.
    """

    dims: Mapping[str, str]
    click_id: str
    click_network: str
    is_arrival: bool
    url: str
    referrer: str
    host: str


Stated = tuple[tuple[str, str], ...]
"""UTM fields of the event itself; they override what its address says."""


def read_traffic(url: str, referrer: str, stated: Stated, network: str, own: Own) -> Traffic:
    """Resolve one event's origin; `network` is that of a click id which the event states."""
    if len(url) <= CACHED_CHARS_MAX and len(referrer) <= CACHED_CHARS_MAX:
        return _cached(url, referrer, stated, network, own)
    return _resolve(url, referrer, stated, network, own)


def _resolve(url: str, referrer: str, stated: Stated, network: str, own: Own) -> Traffic:
    place = read_place(url) if url else _NOWHERE
    origin = read_place(referrer) if referrer else _NOWHERE
    click_id, found_network = _click(place.marks)
    network = network or found_network
    utm = {name: place.marks[name] for name in UTM_FIELDS if name in place.marks}
    utm.update(stated)
    if own.lowercase_utm:
        utm = {name: value.lower() for name, value in utm.items()}
    foreign = "" if is_own(origin.host, place.host, own) else origin.host
    dims = dict(utm)
    dims.update(_resolved(utm, network, foreign))
    if network:
        dims["click_network"] = network
    if foreign:
        dims["referrer_domain"] = foreign.removeprefix("www.")[:DIMENSION_CHARS_MAX]
    if place.path:
        dims["landing_page"] = place.path
    return Traffic(
        dims={name: text for name, text in dims.items() if text != DIMENSION_DEFAULTS[name]},
        click_id=click_id,
        click_network=found_network,
        is_arrival=bool(utm or network or click_id or foreign),
        url=place.kept,
        referrer=origin.kept.partition("?")[0],
        host=place.host,
    )


_cached = lru_cache(maxsize=4_096)(_resolve)


def _click(marks: Mapping[str, str]) -> tuple[str, str]:
    """Return (click id, network) of an address; the network of `click_id` itself is not known."""
    if OUR_CLICK_ID in marks:
        return marks[OUR_CLICK_ID], ""
    for network in CLICK_NETWORKS:
        if network in marks:
            return marks[network], network
    return "", ""


def _resolved(utm: Mapping[str, str], network: str, foreign: str) -> dict[str, str]:
    """Return source, medium and channel: UTM values say most, then the click id, the referrer."""
    campaign = utm.get("utm_campaign", "")
    if "utm_source" in utm or "utm_medium" in utm:
        source = utm.get("utm_source", NO_VALUE)
        medium = utm.get("utm_medium", NO_VALUE)
        return {"source": source, "medium": medium, "channel": channel_of(source, medium, campaign)}
    if network in CLICK_SOURCES:
        source, medium = CLICK_SOURCES[network]
        return {"source": source, "medium": medium, "channel": channel_of(source, medium, campaign)}
    if foreign:
        source, kind = site_of_host(foreign)
        return {
            "source": source[:DIMENSION_CHARS_MAX],
            "medium": str(kind),
            "channel": organic_channel(kind),
        }
    return {}


def is_own(referring: str, page: str, own: Own) -> bool:
    """Tell whether a referring host is the site itself or one of its payment providers."""
    if not referring:
        return True
    bare = referring.removeprefix("www.")
    if page and bare == page.removeprefix("www."):
        return True
    return is_within(bare, own.domains) or is_within(bare, own.payment_providers)


def is_within(host: str, domains: tuple[str, ...]) -> bool:
    """Tell whether `host` is one of `domains` or lies below one."""
    for domain in domains:
        wanted = domain.lower().removeprefix("www.")
        if host == wanted or host.endswith("." + wanted):
            return True
    return False
