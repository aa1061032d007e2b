"""Which events are taken, and what is concluded about each: a list of named steps.

STEPS is the policy; reading it is reading what intake does. A step looks at one `Case`, adds to it
or refuses it; the first refusal ends the case. Pure but for the ids it makes: time, keys and sites
are given. HTTP intake, redirects and the importer all come through here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tracker.collect.agents import read_client
from tracker.collect.fields import DIMENSION_CHARS_MAX, Draft, read_fields
from tracker.collect.moments import FUTURE_MS, SECRET_MAX_AGE_MS, correct_skew, local_day
from tracker.collect.parse import Envelope, Refused
from tracker.collect.sender import Claim, Known, Sender, consent_of, identify, trust_of
from tracker.collect.traffic import Traffic, is_within, read_place, read_traffic
from tracker.model.keys import (
    ClickId,
    Keys,
    owner_of_event,
    owner_of_order,
    owner_of_visitor,
    read_click_id,
)
from tracker.model.record import (
    OUR_NETWORK,
    REFUND,
    Consent,
    EventRecord,
    EventType,
    IdentifiedBy,
    Trust,
)
from tracker.model.rejection import Reason, Rejection

PREFETCH = "prefetch"
STATED_DIMENSIONS = ("country", "region", "device", "browser", "os", "language")
"""What a server or a file may say about its visitor, because its own request says nothing."""

_NO_TRAFFIC = Traffic({}, "", "", is_arrival=False, url="", referrer="", host="")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the installation says. `sites` may change between requests."""

    keys: Keys
    sites: Mapping[str, Known]
    max_age_ms: int


@dataclass(slots=True)
class Case:
    """One event on its way through the steps."""

    draft: Draft
    sender: Sender
    rules: Rules
    known: Known
    sent_at_ms: int | None = None  # of the envelope
    type: EventType = EventType.VIEW
    trust: Trust = Trust.PUBLIC
    consent: Consent = Consent.GRANTED
    occurred_at_ms: int = 0
    day: int = 0
    traffic: Traffic = _NO_TRAFFIC
    click: ClickId | None = None
    visitor_id: str = ""
    identified_by: IdentifiedBy = IdentifiedBy.NOBODY
    bot: str = ""
    dims: dict[str, str] = field(default_factory=dict)


Step = Callable[[Case], Rejection | None]


def check_key(case: Case) -> Rejection | None:
    """Tell public events from those of the site's own server."""
    trust = trust_of(case.sender, case.known)
    if isinstance(trust, Rejection):
        return trust
    case.trust = trust
    return None


def check_type(case: Case) -> Rejection | None:
    """Require a type, and of a conversion its name."""
    if case.draft.type is None:
        return Rejection(Reason.BAD_TYPE)
    case.type = case.draft.type
    if case.type is EventType.CONVERSION and not case.draft.name:
        return Rejection(Reason.MISSING_NAME)
    return None


def settle_time(case: Case) -> Rejection | None:
    """Put the event on our clock; refuse what lies ahead, and what is too old to recognise."""
    draft, received = case.draft, case.sender.received_at_ms
    if draft.occurred_at_ms is None:
        case.occurred_at_ms = received
    else:
        sent = draft.sent_at_ms if draft.sent_at_ms is not None else case.sent_at_ms
        occurred = correct_skew(draft.occurred_at_ms, sent, received)
        if occurred > received + FUTURE_MS:
            return Rejection(Reason.FUTURE)
        limit = case.rules.max_age_ms
        if case.trust is Trust.SECRET:
            limit = max(limit, SECRET_MAX_AGE_MS)
        if case.trust is not Trust.IMPORT and occurred < received - limit:
            return Rejection(Reason.TOO_OLD)
        case.occurred_at_ms = max(occurred, 0)
    case.day = local_day(case.occurred_at_ms, case.known.site.timezone)
    return None


def settle_money(case: Case) -> Rejection | None:
    """Give an amount its currency. Only a refund may be negative, and means the amount."""
    draft = case.draft
    if draft.value_micros is None:
        draft.currency = ""
        return None
    if draft.value_micros < 0:
        if draft.name != REFUND or case.type is not EventType.CONVERSION:
            return Rejection(Reason.BAD_VALUE, "Only a refund may be negative.")
        draft.value_micros = -draft.value_micros
    draft.currency = draft.currency or case.known.site.currency
    return None


def find_origin(case: Case) -> Rejection | None:
    """Resolve campaign, source and click id from address, referrer and stated fields."""
    draft, sender = case.draft, case.sender
    url = draft.url
    if not url and sender.page and _is_own_page(case):
        url = sender.page
    if url or draft.referrer or draft.utm or draft.click_id:
        stated = tuple(draft.utm.items())
        network = draft.click_network
        case.traffic = read_traffic(url, draft.referrer, stated, network, case.known.own)
    if not draft.click_id:
        draft.click_id, draft.click_network = case.traffic.click_id, case.traffic.click_network
    if draft.click_id and not draft.click_network:
        case.click = read_click_id(case.rules.keys, draft.click_id)
        if case.click is not None:
            draft.click_network = OUR_NETWORK
    return None


def _is_own_page(case: Case) -> bool:
    """Tell whether Referer names the page that the event happened on: not with an ad elsewhere."""
    domains = case.known.own.domains
    if not domains:
        return case.type is EventType.VIEW
    return is_within(read_place(case.sender.page).host, domains)


def respect_consent(case: Case) -> Rejection | None:
    """Drop every id of somebody who does not want to be one person to us."""
    draft = case.draft
    case.consent = consent_of(case.sender, case.known, is_denied=draft.is_denied)
    if case.consent is not Consent.GRANTED:
        draft.visitor_id = draft.customer_id = draft.session_id = draft.click_id = ""
    return None


def name_visitor(case: Case) -> Rejection | None:
    """Find out whose event it is."""
    if case.consent is Consent.GRANTED:
        landing = None if case.type is EventType.CLICK else case.click
        claim = Claim(case.draft.visitor_id, landing, case.day)
        case.visitor_id, case.identified_by = identify(
            claim, case.sender, case.known, case.rules.keys, case.trust
        )
    return None


def describe_client(case: Case) -> Rejection | None:
    """Stamp what was used, by whom or by which program."""
    draft, sender = case.draft, case.sender
    dims = dict(case.traffic.dims)
    if draft.click_network == OUR_NETWORK:
        dims["click_network"] = OUR_NETWORK
    if case.trust is not Trust.SECRET:
        client = read_client(sender.user_agent, sender.languages)
        dims.update(client.dims)
        if sender.country:
            dims["country"] = sender.country
        case.bot = PREFETCH if sender.is_prefetch else client.bot
    if case.trust is not Trust.PUBLIC:
        for name in STATED_DIMENSIONS:
            stated = draft.properties.get(name)
            if isinstance(stated, str) and stated:
                dims[name] = stated[:DIMENSION_CHARS_MAX]
    if draft.experiment:
        dims["experiment"] = draft.experiment
    if draft.variant:
        dims["variant"] = draft.variant
    case.dims = dims
    return None


STEPS: Final[tuple[Step, ...]] = (
    check_key,
    check_type,
    settle_time,
    settle_money,
    find_origin,
    respect_consent,
    name_visitor,
    describe_client,
)


def admit(
    draft: Draft, sender: Sender, rules: Rules, *, sent_at_ms: int | None = None
) -> EventRecord | Refused:
    """Return the record of one event whose site is known, or why there is none."""
    site = draft.site or sender.site
    known = rules.sites.get(site)
    if known is None:
        return Refused("", Rejection(Reason.UNKNOWN_SITE))
    case = Case(draft, sender, rules, known, sent_at_ms)
    for step in STEPS:
        refused = step(case)
        if refused is not None:
            return Refused(site, refused)
    return _record(case)


def _record(case: Case) -> EventRecord:
    draft, traffic = case.draft, case.traffic
    return EventRecord(
        site=case.known.site.key,
        type=case.type,
        event_id=draft.event_id or secrets.token_hex(16),
        occurred_at_ms=case.occurred_at_ms,
        received_at_ms=case.sender.received_at_ms,
        day=case.day,
        name=draft.name,
        trust=case.trust,
        consent=case.consent,
        bot=case.bot,
        visitor_id=case.visitor_id,
        identified_by=case.identified_by,
        customer_id=draft.customer_id,
        session_id=draft.session_id,
        click_id=draft.click_id,
        click_network=draft.click_network,
        arrival=traffic.is_arrival,
        order_id=draft.order_id,
        value_micros=draft.value_micros,
        currency=draft.currency,
        dims=case.dims,
        url=traffic.url,
        referrer=traffic.referrer,
        title=draft.title,
        properties=draft.properties,
    )


def admit_raw(
    raw: object, sender: Sender, rules: Rules, *, default_type: EventType | None = None
) -> EventRecord | Refused:
    """Return the record of one event as sent; `default_type` is what a pixel means by none."""
    draft = read_fields(raw)
    if isinstance(draft, Rejection):
        return Refused(_site_of(raw, sender, rules), draft)
    if draft.type is None:
        draft.type = default_type
    return admit(draft, sender, rules)


def admit_events(envelope: Envelope, sender: Sender, rules: Rules) -> list[EventRecord | Refused]:
    """Return what became of each event of a request, in its order."""
    fates: list[EventRecord | Refused] = []
    for raw in envelope.events:
        draft = read_fields(raw, level=envelope.level)
        if isinstance(draft, Rejection):
            named = _site_of(raw, sender, rules, envelope.site)
            fates.append(Refused(named, draft))
            continue
        if not draft.site:
            draft.site = envelope.site
        fates.append(admit(draft, sender, rules, sent_at_ms=envelope.sent_at_ms))
    return fates


def _site_of(raw: object, sender: Sender, rules: Rules, enveloped: str = "") -> str:
    """Return the site under which a refusal is counted: only one that exists."""
    named = raw.get("site") if isinstance(raw, dict) else None
    site = named if isinstance(named, str) and named else enveloped or sender.site
    return site if site in rules.sites else ""


def partition_of(keys: Keys, event: EventRecord) -> int:
    """Return the partition that owns `event`: its visitor's, else its order's, customer's, own."""
    if event.visitor_id:
        owner = owner_of_visitor(event.visitor_id)
    elif event.order_id:
        owner = owner_of_order(event.order_id)
    elif event.customer_id:
        owner = "c:" + event.customer_id
    else:
        owner = owner_of_event(event.event_id)
    return keys.partition(event.site, owner)
