"""Who sent a request, and who is meant by an event: consent, trust, visitor, cookie.

The first answer that applies decides; the order stands in `identify`. Nothing here counts or
stores; ids that may not be kept are dropped here, before anything else sees them.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tracker.collect.addresses import address_prefix
from tracker.collect.fields import ID_CHARS_MAX
from tracker.collect.traffic import Own
from tracker.model.definition import Site
from tracker.model.keys import ClickId, Keys
from tracker.model.record import Consent, EventRecord, IdentifiedBy, Trust
from tracker.model.rejection import Reason, Rejection
from tracker.model.window import MINUTE_MS

COOKIE = "_tv"
COOKIE_MAX_AGE_S = 395 * 24 * 3600
"""13 months, the longest that European regulators accept for audience measurement."""
ADOPTION_MS = 30 * MINUTE_MS
"""A click is followed at once; an older link was copied, and would merge two people."""
_COOKIE_CHARS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:@|+/="
)
"""What a cookie may hold without quotes and without harm in any header."""
_ENVIRONMENT = "env:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """What connection and headers say about whoever sent a request, once per request."""

    received_at_ms: int
    address: str = ""  # empty: unknown, as in a file
    user_agent: str = ""
    languages: str = ""  # Accept-Language
    country: str = ""  # as a trusted proxy says
    page: str = ""  # Referer
    site: str = ""  # X-Site or ?site=, for events that name none
    key: str | None = None  # of `Authorization: Bearer`
    cookie: str = ""
    is_gpc: bool = False
    is_prefetch: bool = False
    is_import: bool = False  # the operator's own file: no key, no age limit


@dataclass(frozen=True, slots=True)
class Known:
    """A site with what intake derives from it once."""

    site: Site
    own: Own
    secret: str


def know(site: Site, environ: Mapping[str, str]) -> Known:
    """Return `site` as intake uses it; `env:NAME` secrets are looked up in `environ`."""
    secret = site.secret
    if secret.startswith(_ENVIRONMENT):
        secret = environ.get(secret.removeprefix(_ENVIRONMENT), "")
    own = Own(site.domains, site.payment_providers, site.lowercase_utm)
    return Known(site, own, secret)


def trust_of(sender: Sender, known: Known) -> Trust | Rejection:
    """Return who vouches for an event; compares keys in constant time."""
    if sender.is_import:
        return Trust.IMPORT
    if sender.key is None:
        return Trust.PUBLIC
    offered = sender.key.encode("utf-8", "surrogatepass")
    if known.secret and hmac.compare_digest(offered, known.secret.encode()):
        return Trust.SECRET
    return Rejection(Reason.BAD_SECRET)


def consent_of(sender: Sender, known: Known, *, is_denied: bool) -> Consent:
    """Return whether an event may be tied to a person."""
    if is_denied:
        return Consent.DENIED
    if sender.is_gpc and known.site.gpc != "ignore":
        return Consent.GPC
    return Consent.GRANTED


@dataclass(frozen=True, slots=True)
class Claim:
    """What an event brings along to find its visitor."""

    visitor_id: str
    click: ClickId | None  # one of ours, verified
    day: int


def identify(
    claim: Claim, sender: Sender, known: Known, keys: Keys, trust: Trust
) -> tuple[str, IdentifiedBy]:
    """Return the visitor and how they were found: sent, cookie, click, estimate, nobody."""
    if claim.visitor_id:
        return claim.visitor_id, IdentifiedBy.SENT
    if trust is Trust.SECRET:
        return "", IdentifiedBy.NOBODY
    if sender.cookie:
        return sender.cookie, IdentifiedBy.COOKIE
    click = claim.click
    if click is not None and click.visitor_id:
        age_ms = sender.received_at_ms - click.clicked_at_ms
        if age_ms < ADOPTION_MS:
            return click.visitor_id, IdentifiedBy.CLICK
    if not sender.address and not (sender.is_import and sender.user_agent):
        return "", IdentifiedBy.NOBODY
    prefix = address_prefix(sender.address)
    estimated = keys.estimate(known.site.key, claim.day, prefix, sender.user_agent)
    return estimated, IdentifiedBy.ESTIMATE


def is_cookie_safe(visitor_id: str) -> bool:
    """Tell whether `visitor_id` can stand in a cookie."""
    return 0 < len(visitor_id) <= ID_CHARS_MAX and _COOKIE_CHARS.issuperset(visitor_id)


def read_cookie(value: str) -> str:
    """Return the visitor that a cookie names, empty when it is none that we would have set."""
    return value if is_cookie_safe(value) else ""


def cookie_after(events: Iterable[EventRecord]) -> str:
    """Return the visitor id to set as a cookie after a request, empty for none.

    A request that speaks of several people, or that somebody may not be tied to, sets none.
    """
    found = ""
    for event in events:
        if event.consent is not Consent.GRANTED or event.trust is not Trust.PUBLIC:
            return ""
        if event.visitor_id != found:
            if found:
                return ""
            found = event.visitor_id
    return found if is_cookie_safe(found) else ""


@dataclass(frozen=True, slots=True)
class CookiePlan:
    """How the visitor cookie is set; readable by the tag, so that one id is one person."""

    domain: str = ""

    def header(self, visitor_id: str, *, is_https: bool) -> str:
        """Return the value of Set-Cookie."""
        parts = [f"{COOKIE}={visitor_id}; Max-Age={COOKIE_MAX_AGE_S}; Path=/; SameSite=Lax"]
        if self.domain:
            parts.append(f"Domain={self.domain}")
        if is_https:
            parts.append("Secure")
        return "; ".join(parts)
