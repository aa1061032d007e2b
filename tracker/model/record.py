"""What stands in the log: one record, one JSON object, one of four kinds.

A fold reads no file, no clock and no list. So whatever could differ tomorrow (who the visitor is,
whether it is a bot, the day in the site's zone, the device) is concluded at intake and stamped
here. `tracker.codec` turns these values into bytes; golden tests hold the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """The four kinds of record."""

    EVENT = "event"  # what somebody sent
    DEFINITION = "definition"  # sites, conversions, funnels, links: one layer of them, whole
    DERIVED = "derived"  # what one partition's fold tells another partition
    MARKER = "marker"  # what the collector counted without storing: refusals


class EventType(StrEnum):
    """The four types of event, in the order that breaks ties of time."""

    IMPRESSION = "impression"
    CLICK = "click"
    VIEW = "view"
    CONVERSION = "conversion"


TYPE_RANK = {kind: rank for rank, kind in enumerate(EventType)}


OUR_NETWORK = "tracker"
"""The network of our own click ids: the redirect has counted that click already."""

PURCHASE = "purchase"
REFUND = "refund"
"""The two names of conversions that mean the same everywhere: an order, and its taking back."""


class Trust(StrEnum):
    """Who vouches for an event. Ids of different trust never meet."""

    PUBLIC = "public"  # anybody with the public site key
    SECRET = "secret"  # noqa: S105 - the site's own server
    IMPORT = "import"  # the operator, on the machine itself


class IdentifiedBy(StrEnum):
    """How the visitor was found."""

    SENT = "sent"
    COOKIE = "cookie"
    CLICK = "click"  # adopted from a signed click id of ours
    ESTIMATE = "estimate"  # keyed hash of site, day, address prefix and user agent
    NOBODY = "nobody"  # consent denied, or a server event without a visitor


class Consent(StrEnum):
    """Whether the event may be tied to a person."""

    GRANTED = "granted"
    DENIED = "denied"
    GPC = "gpc"


NO_VALUE = "(none)"
DIRECT = "(direct)"
OTHER = "__other__"
"""The row into which values over the cap are folded."""

TRAFFIC_DIMENSIONS = (
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "utm_id",
    "source",
    "medium",
    "channel",
    "click_network",
    "referrer_domain",
    "landing_page",
)
"""Where somebody came from. Views, sessions and visitors count under those of the session's first
event, conversions under those of the credited touch, impressions and clicks under their own."""

CLIENT_DIMENSIONS = (
    "country",
    "region",
    "device",
    "browser",
    "os",
    "language",
    "experiment",
    "variant",
)
"""What somebody used. Always the event's own."""

DIMENSIONS = TRAFFIC_DIMENSIONS + CLIENT_DIMENSIONS
DIMENSION_DEFAULTS = dict.fromkeys(DIMENSIONS, NO_VALUE) | {
    "source": DIRECT,
    "channel": DIRECT,
}
"""What a record that does not state a dimension means by that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One event as it stands in the log.

    Units: times in ms since the epoch, `day` in days since the epoch in the site's time zone,
    money in micros of `currency` (an integer, at most 10^9 units).
    """

    site: str
    type: EventType
    event_id: str
    occurred_at_ms: int  # corrected by the sender's skew
    received_at_ms: int
    day: int
    name: str = ""  # of a conversion, or of a click on a marked element
    trust: Trust = Trust.PUBLIC
    consent: Consent = Consent.GRANTED
    bot: str = ""  # the rule that says so, empty for people
    visitor_id: str = ""  # empty when nobody may or can be named
    identified_by: IdentifiedBy = IdentifiedBy.NOBODY
    customer_id: str = ""
    session_id: str = ""
    click_id: str = ""  # as sent: ours or a network's
    click_network: str = ""  # "gclid", …, "tracker" for ours
    arrival: bool = False  # it carries UTM values, a click id or a foreign referrer
    order_id: str = ""
    value_micros: int | None = None
    currency: str = ""
    dims: dict[str, str] = field(default_factory=dict)  # only what differs from the defaults
    url: str = ""
    referrer: str = ""
    title: str = ""
    properties: dict[str, str | int | float | bool] = field(default_factory=dict)
    producer: str = ""  # session of the process that appended it
    sequence: int = 0  # grows by one a record of that session


class Layer(StrEnum):
    """Where definitions come from. The file wins on equal names."""

    API = "api"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionRecord:
    """One layer of definitions, whole; partition 0 gives it a number and tells everybody."""

    layer: Layer
    definitions: dict[str, object]  # the shape of tracker.toml's [site] table, as JSON
    received_at_ms: int
    from_start: bool = False  # a rebuild said that they hold from the first record on


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Where a derived record comes from. Marks of one source grow; a target drops repeats."""

    partition: int
    offset: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedRecord:
    """What the fold of `mark.partition` tells the partition that this record stands in.

    Exactly one of the three bodies is set.
    """

    mark: Mark
    log_id: str
    received_at_ms: int
    order: OrderClaim | None = None
    refund: RefundClaim | None = None
    definition: NumberedDefinition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderClaim:
    """One copy of an order, as the visitor (or nobody) sent it; a later one of `copy` replaces it.

    `traffic` is None when no visitor is known, and so nothing can be credited.
    """

    site: str
    order_id: str
    name: str  # of the conversion: purchase, or another macro conversion with an order id
    copy: int  # keyed hash of the event that carried it
    occurred_at_ms: int
    day: int
    trust: Trust
    bot: bool
    value_micros: int | None
    currency: str
    traffic: dict[str, str] | None
    client: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundClaim:
    """One refund of an order; without a value it is a full one."""

    site: str
    order_id: str
    copy: int
    occurred_at_ms: int
    value_micros: int | None
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedDefinition:
    """A layer of definitions with the number that orders it everywhere."""

    number: int
    layer: Layer
    definitions: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerRecord:
    """Refusals since the last marker of this collector: site → reason → count.

    `site` is empty where the request named no site that we know.
    """

    received_at_ms: int
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    shed: dict[str, dict[str, int]] = field(default_factory=dict)


Record = EventRecord | DefinitionRecord | DerivedRecord | MarkerRecord
