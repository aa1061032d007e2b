"""What the handlers of the write side share: the parts, and what a request says about its sender.

The only translation from aiohttp's request to `tracker.collect.sender.Sender`. It decides nothing
about events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram

from tracker.collect.addresses import Proxies
from tracker.collect.admit import Rules
from tracker.collect.appender import Appender
from tracker.collect.definitions import DefinitionBook
from tracker.collect.parse import Refused
from tracker.collect.refusals import Refusals
from tracker.collect.sender import COOKIE, CookiePlan, Known, Sender, read_cookie
from tracker.collect.traffic import is_within
from tracker.model.clock import Clock
from tracker.model.keys import Keys
from tracker.model.record import EventRecord
from tracker.model.window import HOUR_MS
from tracker.ports.log import LogWriter

MAX_AGE_MS: Final = 72 * HOUR_MS
_NO_COUNTRY: Final = frozenset({"XX", "T1"})
"""What a proxy says of an unknown address, and of Tor."""
_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectParts:
    """Everything that the write side is made of."""

    writer: LogWriter
    keys: Keys
    clock: Clock
    book: DefinitionBook
    refusals: Refusals
    public_url: str = ""
    cookie_domain: str = ""
    trusted_proxies: tuple[str, ...] = ()
    max_age_ms: int = MAX_AGE_MS
    query_socket: Path | None = None  # of the query process; None: no read side here


class WriteSide:
    """The parts, ready to serve."""

    def __init__(self, parts: CollectParts) -> None:
        self.parts = parts
        self.rules = Rules(parts.keys, parts.book.known, parts.max_age_ms)
        self.appender = Appender(parts.writer, parts.keys)
        self.proxies = Proxies(parts.trusted_proxies)
        self.cookies = CookiePlan(parts.cookie_domain)
        self.is_stopping = False
        self.accepted: Counter[str] = Counter()  # events by site
        self.answers: Counter[tuple[str, int]] = Counter()  # (route, status)
        self.registry = CollectorRegistry()
        self.append_seconds = Histogram(
            "tracker_collect_append_seconds",
            "Time until the events of a request were durable.",
            registry=self.registry,
            buckets=_BUCKETS_S,
        )

    def refuse(self, refused: Refused) -> None:
        """Count a refusal under its site, if there is such a site."""
        if refused.site and refused.site not in self.rules.sites:
            refused = replace(refused, site="")
        self.parts.refusals.reject(refused)

    def shed(self, events: Iterable[EventRecord], reason: str) -> None:
        """Count good events that could not be stored now."""
        for site, count in Counter(event.site for event in events).items():
            self.parts.refusals.shed(site, reason, count)

    async def append(self, events: list[EventRecord]) -> None:
        """Make `events` durable, and measure it.

        Errors: TrackerError, after the events were counted as shed.
        """
        clock = self.parts.clock
        started_ms = clock.monotonic_ms()
        await self.appender.append(events)
        self.append_seconds.observe((clock.monotonic_ms() - started_ms) / 1000)
        if len(events) == 1:
            self.accepted[events[0].site] += 1
        else:
            self.accepted.update(event.site for event in events)

    def sender(self, request: web.Request, *, site: object = None) -> Sender:
        """Return what `request` says about its sender; `site` is the query's."""
        headers = request.headers
        find = headers.get
        peer = request.remote or ""
        forwarded = find("X-Forwarded-For", "")
        authorization = find("Authorization", "")
        purpose = find("Sec-Purpose") or find("Purpose") or find("X-Purpose") or find("X-Moz") or ""
        named = find("X-Site") or site
        return Sender(
            received_at_ms=self.parts.clock.now_ms(),
            address=self.proxies.client(peer, forwarded) if forwarded else peer,
            user_agent=_clean(find("User-Agent", "")),
            languages=_clean(find("Accept-Language", "")),
            country=self._country(request, peer),
            page=_clean(find("Referer", "")),
            site=named if isinstance(named, str) else "",
            key=_key(authorization) if authorization else None,
            cookie=_cookie(find("Cookie", "")),
            is_gpc=find("Sec-GPC") == "1",
            is_prefetch=bool(purpose) and _is_prefetch(purpose),
        )

    def _country(self, request: web.Request, peer: str) -> str:
        if not self.proxies.trusts(peer):
            return ""
        stated = request.headers.get("CF-IPCountry") or request.headers.get("X-Country") or ""
        code = stated.strip().upper()
        is_code = len(code) == 2 and code.isascii() and code.isalpha()
        return code if is_code and code not in _NO_COUNTRY else ""

    def is_https(self, request: web.Request) -> bool:
        """Tell whether the browser speaks https to us, or to a proxy in front of us."""
        if request.secure or self.parts.public_url.startswith("https:"):
            return True
        stated = request.headers.get("X-Forwarded-Proto", "")
        return stated == "https" and self.proxies.trusts(request.remote or "")

    def set_cookie(self, request: web.Request, response: web.Response, visitor_id: str) -> None:
        """Keep `visitor_id` in the browser; an empty one sets nothing."""
        if visitor_id:
            value = self.cookies.header(visitor_id, is_https=self.is_https(request))
            response.headers["Set-Cookie"] = value

    def peer_for_query(self, request: web.Request) -> str:
        """Return the address that the query process may base its trust on.

        A request that came through a proxy we do not know is nobody's: its peer may be loopback
        while the sender is anywhere.
        """
        peer = request.remote or ""
        headers = request.headers
        forwarded = headers.get("X-Forwarded-For", "")
        if self.proxies.trusts(peer):
            return self.proxies.client(peer, forwarded)
        if forwarded or "Forwarded" in headers or "X-Real-IP" in headers:
            return "unknown"
        return peer


SIDE: Final = web.AppKey("write_side", WriteSide)


def _clean(text: str) -> str:
    """Return a header without the surrogates that stand for bytes which are no UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _key(authorization: str) -> str | None:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _cookie(header: str) -> str:
    if COOKIE not in header:
        return ""
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return read_cookie(value)
    return ""


def _is_prefetch(purpose: str) -> bool:
    lower = purpose.lower()
    return "prefetch" in lower or "preview" in lower or "prerender" in lower


def is_page_of(origin: str, sites: Iterable[Known]) -> bool:
    """Tell whether `origin` (scheme://host:port) is a page of one of `sites`."""
    scheme, _, authority = origin.partition("://")
    if scheme not in ("http", "https") or not authority.isascii():
        return False
    host = authority.partition(":")[0].lower()
    return bool(host) and any(is_within(host, known.own.domains) for known in sites)


def cors(request: web.Request, sites: Iterable[Known]) -> dict[str, str]:
    """Return the headers that let a page read the answer; with cookies only a page of `sites`."""
    origin = request.headers.get("Origin")
    if origin is None:
        return {}
    exposed = {
        "Vary": "Origin",
        "Access-Control-Expose-Headers": "Retry-After, X-Tracker-Rejected",
    }
    if is_page_of(origin, sites):
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
        } | exposed
    return {"Access-Control-Allow-Origin": "*"} | exposed
