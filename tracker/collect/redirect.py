"""Where an ad link leads, and the click that following it is.

Pure. The target is always one that the configuration holds: of the request only UTM values and
click ids of known names can reach it, URL-encoded, in its query. The click then goes through the
same admission as every other event.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from tracker.collect.fields import CLICK_ID_CHARS_MAX, CLICK_NETWORKS, UTM_FIELDS, is_denial
from tracker.collect.moments import local_day
from tracker.collect.sender import Claim, Known, Sender, consent_of, identify
from tracker.collect.traffic import OUR_CLICK_ID
from tracker.model.definition import Link
from tracker.model.keys import ClickId, Keys, make_click_id
from tracker.model.record import Consent, Trust

MACROS: Final = ("click_id", "link", "site", "timestamp")
"""`{timestamp}` is in milliseconds since the epoch."""

_PASSED_ON: Final = (*UTM_FIELDS, *CLICK_NETWORKS)
"""What an ad network adds to the link that it was given, and the landing page needs."""
_URL_SAFE: Final = "!#$%&'()*+,/:;=?@[]~-._"
"""Characters that mean something in a URL, or are encoded already."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """One answer to a click: where to, and the event as a sender would have sent it."""

    location: str
    event: dict[str, object]


def follow(
    link: Link, query: Mapping[str, object], sender: Sender, known: Known, keys: Keys
) -> Redirect:
    """Return where `link` leads for this sender, with the click that it is.

    The location's click id is signed and carries the visitor, so that the landing page can go on
    with the same one. Somebody who does not want to be followed gets neither.
    """
    click_id = _click_id(query, sender, known, keys)
    values = {
        "click_id": click_id,
        "link": link.name,
        "site": known.site.key,
        "timestamp": str(sender.received_at_ms),
    }
    address, mark, fragment = link.target.partition("#")
    added = [pair for pair in _added(link, query) if pair[0] not in _names(address)]
    is_placed = "{click_id}" in link.target or OUR_CLICK_ID in _names(address)
    if click_id and not is_placed:
        added.append((OUR_CLICK_ID, click_id))
    filled = _with_query(_filled(address, values), added)
    location = _ascii(filled + mark + _filled(fragment, values))
    event: dict[str, object] = {
        "site": known.site.key,
        "type": "click",
        "url": filled,
        "referrer": sender.page,
        "click_id": click_id,
        "properties": {"link": link.name},
        "consent": query.get("consent"),
    }
    return Redirect(location, event)


def _click_id(query: Mapping[str, object], sender: Sender, known: Known, keys: Keys) -> str:
    is_denied = is_denial(query.get("consent"))
    if consent_of(sender, known, is_denied=is_denied) is not Consent.GRANTED:
        return ""
    now = sender.received_at_ms
    claim = Claim("", None, local_day(now, known.site.timezone))
    visitor_id, _ = identify(claim, sender, known, keys, Trust.PUBLIC)
    return make_click_id(keys, ClickId(now, secrets.randbits(64), visitor_id))


def _added(link: Link, query: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    """Yield what the link adds to its target, then what the request brought that it does not."""
    configured = dict(link.utm)
    yield from link.utm
    for name in _PASSED_ON:
        value = query.get(name)
        if name not in configured and isinstance(value, str) and value:
            yield name, value[:CLICK_ID_CHARS_MAX]


def _names(address: str) -> frozenset[str]:
    query = address.partition("?")[2]
    return frozenset(pair.partition("=")[0] for pair in query.split("&") if pair)


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name in MACROS:
        text = text.replace("{" + name + "}", quote(values[name], safe=""))
    return text


def _with_query(address: str, added: Iterable[tuple[str, str]]) -> str:
    pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in added)
    if not pairs:
        return address
    if "?" not in address:
        return f"{address}?{pairs}"
    joint = "" if address.endswith(("?", "&")) else "&"
    return f"{address}{joint}{pairs}"


def _ascii(url: str) -> str:
    """Return `url` as a header can carry it: international names and characters encoded."""
    if url.isascii():
        return quote(url, safe=_URL_SAFE)
    parts = urlsplit(url)
    try:
        netloc = parts.netloc.encode("idna").decode()
    except UnicodeError:
        netloc = parts.netloc
    return quote(urlunsplit(parts._replace(netloc=netloc)), safe=_URL_SAFE)
