"""Sites, funnels and links as values, read from `tracker.toml` or from the log.

`parse_sites` never raises and never stops at the first mistake: it returns what it understood and
every problem it found, in the words of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from tracker.model.money import CURRENCIES
from tracker.model.record import DIMENSIONS, EventType
from tracker.model.window import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

FUNNEL_STEPS_MIN = 2
FUNNEL_STEPS_MAX = 10
DIMENSIONS_MAX = 24
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Of sites, funnels and links: they stand in URLs, keys and command lines."""

DEFAULT_DIMENSIONS = (
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_content",
    "source",
    "channel",
    "landing_page",
    "country",
    "device",
)
DEFAULT_WITHIN_MS = 7 * DAY_MS
WITHIN_MAX_MS = 30 * DAY_MS
"""Visitor state lives for the longest look-back, 30 days; a longer funnel would lose entrants."""

_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SITE_KEYS = frozenset(
    "domains currency timezone conversions dimensions cubes secret payment_providers "
    "lowercase_utm gpc funnel alert link".split()
)
_LATER = frozenset({"cubes", "alert"})
"""Understood as part of the file, not counted by this version."""


def parse_duration_ms(text: object) -> int | None:
    """Return the milliseconds that "90s", "15m", "24h" or "7d" mean, None for anything else."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) * _UNITS_MS[match[2]] if match else None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a funnel: an event type, and a name where it matters."""

    type: EventType
    name: str = ""  # empty: any

    def label(self) -> str:
        """Return the step as the file writes it."""
        return f"{self.type}:{self.name}" if self.name else str(self.type)


@dataclass(frozen=True, slots=True)
class Funnel:
    """A closed funnel in loose order."""

    name: str
    steps: tuple[Step, ...]
    within_ms: int = DEFAULT_WITHIN_MS  # from the first step, inclusive


@dataclass(frozen=True, slots=True)
class Link:
    """An ad link: `/c/{name}` redirects to `target`."""

    name: str
    target: str
    utm: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site as configured."""

    key: str
    domains: tuple[str, ...] = ()
    currency: str = "USD"
    timezone: str = "UTC"
    conversions: tuple[str, ...] = ("purchase",)
    dimensions: tuple[str, ...] = DEFAULT_DIMENSIONS
    secret: str = ""  # "env:NAME" or the key itself
    payment_providers: tuple[str, ...] = ()
    lowercase_utm: bool = False
    gpc: str = "aggregate"
    funnels: tuple[Funnel, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def zone(self) -> ZoneInfo:
        """Return the zone in which this site's days are cut."""
        return ZoneInfo(self.timezone)


DEFAULT_FUNNELS: dict[str, dict[str, object]] = {
    "checkout": {
        "within": "24h",
        "steps": ["view", "conversion:add_to_cart", "conversion:purchase"],
    },
    "purchase": {"within": "24h", "steps": ["view", "conversion:purchase"]},
}
"""What a site has that nobody described: one that an import creates, and the default `shop`."""


@dataclass(slots=True)
class _Problems:
    """Everything wrong with one table, each with its place in the file."""

    place: str
    found: list[str] = field(default_factory=list)

    def add(self, key: str, sentence: str) -> None:
        self.found.append(f"{self.place}.{key}: {sentence}")


def parse_sites(tables: Mapping[str, object]) -> tuple[dict[str, Site], list[str]]:
    """Return the sites of a `[site]` table and every problem in it.

    Shape: site key → its table, as TOML or JSON gives it.
    """
    sites: dict[str, Site] = {}
    problems: list[str] = []
    for key, table in tables.items():
        found = _Problems(f"site.{key}")
        if not NAME_PATTERN.fullmatch(key):
            found.add("", "a site's key has letters, digits, '-', '_' and '.', at most 64.")
        elif not isinstance(table, Mapping):
            found.add("", "a site is a table.")
        else:
            sites[key] = _site(key, table, found)
        problems += found.found
    return sites, problems


def merge_layers(lower: Mapping[str, object], upper: Mapping[str, object]) -> dict[str, object]:
    """Return `lower` with everything that `upper` says put over it, table by table."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge_layers(below, value)
        else:
            merged[key] = value
    return merged


def postponed(tables: Mapping[str, object]) -> list[str]:
    """Return the places in a `[site]` table that this version keeps but does not count."""
    return [
        f"site.{key}.{name}"
        for key, table in tables.items()
        if isinstance(table, Mapping)
        for name in sorted(_LATER & table.keys())
    ]


def _site(key: str, table: Mapping[str, Any], problems: _Problems) -> Site:
    unknown = sorted(table.keys() - _SITE_KEYS)
    for name in unknown:
        problems.add(name, f"no such setting; a site has {', '.join(sorted(_SITE_KEYS))}.")
    default = Site(key=key)
    dimensions = _texts(table, "dimensions", default.dimensions, problems)
    for name in dimensions:
        if name not in DIMENSIONS:
            problems.add("dimensions", f"{name!r} is none of {', '.join(DIMENSIONS)}.")
    if len(dimensions) > DIMENSIONS_MAX:
        problems.add("dimensions", f"at most {DIMENSIONS_MAX}.")
    return Site(
        key=key,
        domains=_texts(table, "domains", (), problems),
        currency=_currency(table, problems),
        timezone=_timezone(table, problems),
        conversions=_texts(table, "conversions", default.conversions, problems),
        dimensions=tuple(name for name in dict.fromkeys(dimensions) if name in DIMENSIONS),
        secret=_text(table, "secret", "", problems),
        payment_providers=_texts(table, "payment_providers", (), problems),
        lowercase_utm=_flag(table, "lowercase_utm", problems),
        gpc=_choice(table, "gpc", ("aggregate", "ignore"), problems),
        funnels=tuple(_funnels(table.get("funnel", {}), problems)),
        links=tuple(_links(table.get("link", {}), problems)),
    )


def _currency(table: Mapping[str, Any], problems: _Problems) -> str:
    currency = _text(table, "currency", "USD", problems)
    if currency not in CURRENCIES:
        problems.add("currency", f"{currency!r} is no code of ISO 4217.")
    return currency


def _timezone(table: Mapping[str, Any], problems: _Problems) -> str:
    name = _text(table, "timezone", "UTC", problems)
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        problems.add("timezone", f"{name!r} is no time zone of the IANA database.")
        return "UTC"
    return name


def _text(table: Mapping[str, Any], key: str, default: str, problems: _Problems) -> str:
    value = table.get(key, default)
    if isinstance(value, str):
        return value
    problems.add(key, "is a text.")
    return default


def _texts(
    table: Mapping[str, Any], key: str, default: tuple[str, ...], problems: _Problems
) -> tuple[str, ...]:
    value = table.get(key, default)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    problems.add(key, "is a list of texts.")
    return default


def _flag(table: Mapping[str, Any], key: str, problems: _Problems) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        problems.add(key, "is true or false.")
    return value is True


def _choice(
    table: Mapping[str, Any], key: str, choices: tuple[str, ...], problems: _Problems
) -> str:
    value = table.get(key, choices[0])
    if value in choices:
        return str(value)
    problems.add(key, f"is one of {', '.join(choices)}.")
    return choices[0]


def _named_tables(
    tables: object, kind: str, problems: _Problems
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(tables, Mapping):
        problems.add(kind, "is a table of tables.")
        return
    for name, table in tables.items():
        if not NAME_PATTERN.fullmatch(name) or not isinstance(table, Mapping):
            problems.add(f"{kind}.{name}", "needs a plain name and a table.")
        else:
            yield name, table


def _funnels(tables: object, problems: _Problems) -> Iterable[Funnel]:
    for name, table in _named_tables(tables, "funnel", problems):
        place = f"funnel.{name}"
        for key in sorted(table.keys() - {"steps", "within"}):
            problems.add(f"{place}.{key}", "a funnel here has steps and within.")
        within = parse_duration_ms(table.get("within", "7d"))
        if within is None or not 0 < within <= WITHIN_MAX_MS:
            problems.add(f"{place}.within", "is a time like '24h', at most 30d.")
            within = DEFAULT_WITHIN_MS
        raw = table.get("steps")
        if not isinstance(raw, list) or not FUNNEL_STEPS_MIN <= len(raw) <= FUNNEL_STEPS_MAX:
            problems.add(f"{place}.steps", "is a list of 2 to 10 steps.")
            continue
        steps = [parse_step(step) for step in raw]
        for step, text in zip(steps, raw, strict=True):
            if step is None:
                problems.add(
                    f"{place}.steps",
                    f"{text!r} is no step; 'view', 'click' or 'conversion:NAME' is one.",
                )
        known = tuple(step for step in steps if step is not None)
        if len(known) == len(raw):
            yield Funnel(name, known, within)


def parse_step(text: object) -> Step | None:
    """Return the step that "view" or "conversion:purchase" names, None for anything else."""
    if not isinstance(text, str):
        return None
    kind, _, name = text.partition(":")
    if kind not in set(EventType) or (name and kind not in ("conversion", "click")):
        return None
    return Step(EventType(kind), name)


def _links(tables: object, problems: _Problems) -> Iterable[Link]:
    for name, table in _named_tables(tables, "link", problems):
        target = table.get("target")
        if not isinstance(target, str) or not is_link_target(target):
            problems.add(f"link.{name}.target", "is a full http or https URL of a host.")
            continue
        utm = []
        for key, value in table.items():
            if key == "target":
                continue
            if key.startswith("utm_") and isinstance(value, str):
                utm.append((key, value))
            else:
                problems.add(f"link.{name}.{key}", "a link has a target and utm_* texts.")
        yield Link(name, target, tuple(utm))


def is_link_target(url: str) -> bool:
    """Tell whether `url` may be redirected to: absolute, http(s), a host, nothing hidden in it."""
    if len(url) > 2_048 or any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        return False
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and "\\" not in url
        and port_is_fine
    )
