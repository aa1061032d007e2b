"""Mappings: how one row of somebody's file becomes the fields of an event.

A mapping is a small TOML file (deploy/docs/mappings.md explains every key). This module reads
its tables and turns rows into the fields that INTERFACE section 3 names; whether those make a good
event is for `tracker.collect.importer`, which applies intake's own rules. It opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from tracker.model.money import CURRENCIES
from tracker.model.record import EventType
from tracker.model.rejection import Reason, Rejection

EVENT_FIELDS = (
    "type",
    "name",
    "event_id",
    "visitor_id",
    "customer_id",
    "session_id",
    "occurred_at",
    "url",
    "referrer",
    "title",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "utm_id",
    "click_id",
    "value",
    "currency",
    "order_id",
    "experiment",
    "variant",
)
"""The event fields of INTERFACE section 3 that a row may fill; the site comes from `--site`."""

REQUEST_FIELDS = ("address", "user_agent", "language")
"""What a browser's request would have told intake: the visitor's estimate, device and bots."""

KNOWN_FIELDS = EVENT_FIELDS + REQUEST_FIELDS
KNOWN_KEYS = (
    "format",
    "delimiter",
    "time_format",
    "timezone",
    "currency",
    "base_url",
    "id",
    "dedupe",
    "fields",
    "constants",
    "events",
    "properties",
)
EPOCH_SECONDS_MAX = 10**11
"""Seconds reach this in the year 5138; what is larger counts milliseconds (1973 and later)."""

_EPOCH = re.compile(r"-?[0-9]{9,16}(\.[0-9]{1,9})?")

MISSING = object()


class Format(StrEnum):
    """The formats of file that we read; all of them also gzipped."""

    CSV = "csv"
    JSONL = "jsonl"
    COMBINED = "combined"  # Apache's and nginx' access log


COMBINED_COLUMNS = (
    "address",
    "user",
    "time",
    "method",
    "url",
    "protocol",
    "status",
    "bytes",
    "referrer",
    "agent",
)
"""What the columns of an access log are called in a mapping."""


@dataclass(frozen=True, slots=True)
class EventValue:
    """What one value of the event column means: constants and fields of its own."""

    constants: Mapping[str, str]
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMapping:
    """One mapping, checked."""

    format: Format
    delimiter: str = ","
    time_format: str = ""
    timezone: str = "UTC"
    currency: str = ""
    base_url: str = ""
    id: tuple[str, ...] = ()
    dedupe_rows: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    event_column: str = ""
    event_values: Mapping[str, EventValue] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()
    properties: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> tuple[str, ...]:
        """Return every column that the mapping names, once, in its order."""
        named = [*self.id, *self.fields.values(), *self.properties.values()]
        if self.event_column:
            named.append(self.event_column)
        for meaning in self.event_values.values():
            named += meaning.fields.values()
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class RowFields:
    """What a row says: event fields, the facts of its request, and properties."""

    event: dict[str, object]
    request: dict[str, str]
    properties: dict[str, object]


def parse_mapping(tables: Mapping[str, Any]) -> tuple[RowMapping | None, list[str]]:
    """Return the mapping that `tables` (a TOML file) describes, and every problem in it."""
    reader = _Reader(tables)
    mapping = reader.mapping()
    return (None if reader.problems else mapping), reader.problems


def map_row(mapping: RowMapping, row: Mapping[str, object]) -> RowFields | Rejection | None:
    """Return the fields that `row` states, None when the mapping skips it.

    Shape: `row` is column → value; an empty text means that the column states nothing.
    """
    constants, fields = mapping.constants, mapping.fields
    if mapping.event_column:
        value = str(_cell(row, mapping.event_column))
        if value in mapping.skip:
            return None
        meaning = mapping.event_values.get(value)
        if meaning is None:
            return Rejection(
                Reason.BAD_ROW, f"The mapping knows no {mapping.event_column} {value[:40]!r}."
            )
        constants = {**constants, **meaning.constants}
        fields = {**fields, **meaning.fields}
    stated: dict[str, object] = dict(constants)
    for name, column in fields.items():
        found = _cell(row, column)
        if found != "":
            stated[name] = _as_text(name, found)
    request = {name: str(stated.pop(name)) for name in REQUEST_FIELDS if name in stated}
    if mapping.base_url and str(stated.get("url", "")).startswith("/"):
        stated["url"] = mapping.base_url + str(stated["url"])
    if "value" in stated and mapping.currency:
        stated.setdefault("currency", mapping.currency)
    properties = {
        name: cell
        for name, column in mapping.properties.items()
        if (cell := _cell(row, column)) != ""
    }
    return RowFields(stated, request, properties)


def _as_text(name: str, value: object) -> object:
    """Return `value` as intake wants it: JSON files write ids as numbers."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and name != "value" else value


def _cell(row: Mapping[str, object], column: str) -> object:
    found = find_column(row, column)
    return "" if found is MISSING or found is None else found


def find_column(row: Mapping[str, object], column: str) -> object:
    """Return the value of `column`, MISSING without one; `user.id` reaches into nested objects."""
    if column in row:
        return row[column]
    inner: object = row
    for key in column.split("."):
        if not isinstance(inner, Mapping) or key not in inner:
            return MISSING
        inner = inner[key]
    return inner


def parse_time_ms(value: object, mapping: RowMapping) -> int | None:
    """Return the instant that a row's time means, ms since the epoch; None when it is none.

    With `time_format` only that; else ISO 8601, "2019-10-01 00:00:00 UTC", epoch seconds or
    milliseconds. A time without a zone is in the mapping's `timezone`.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not text or len(text) > 64:
        return None
    try:
        if mapping.time_format:
            moment = datetime.strptime(text, mapping.time_format)  # noqa: DTZ007 - zoned below
            return _instant_ms(moment, mapping)
        if _EPOCH.fullmatch(text):
            number = float(text)
            return int(number if abs(number) >= EPOCH_SECONDS_MAX else round(number * 1000))
        return _instant_ms(datetime.fromisoformat(_with_offset(text)), mapping)
    except (ValueError, OverflowError):
        return None


def _with_offset(text: str) -> str:
    for zone in (" UTC", " GMT", " Z"):
        if text.endswith(zone):
            return text.removesuffix(zone) + "+00:00"
    return text


def _instant_ms(moment: datetime, mapping: RowMapping) -> int:
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(mapping.timezone))
    since = zoned.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


class _Reader:
    """Reads the tables of one mapping, gathering problems instead of stopping at the first."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.tables = tables
        self.problems: list[str] = []

    def mapping(self) -> RowMapping | None:
        self._known("", self.tables, KNOWN_KEYS)
        file_format = self._format()
        fields = self._texts("fields", self.tables.get("fields", {}), KNOWN_FIELDS)
        constants = self._texts("constants", self.tables.get("constants", {}), KNOWN_FIELDS)
        column, values, skip = self._events()
        if "type" not in fields and "type" not in constants and not column:
            self.problems.append(
                "events: the mapping does not say what a row is; give [events], or "
                "type in [fields] or [constants]."
            )
        self._check_type("constants", constants)
        if "occurred_at" not in fields:
            self.problems.append("fields.occurred_at: names the column of the event's time.")
        return RowMapping(
            format=file_format,
            delimiter=self._delimiter(),
            time_format=self._text("time_format"),
            timezone=self._timezone(),
            currency=self._currency(),
            base_url=self._text("base_url").rstrip("/"),
            id=self._columns("id", self.tables.get("id", [])),
            dedupe_rows=self._dedupe(),
            fields=fields,
            constants=constants,
            event_column=column,
            event_values=values,
            skip=skip,
            properties=self._texts("properties", self.tables.get("properties", {}), None),
        )

    def _known(self, place: str, keys: Iterable[str], known: Iterable[str]) -> None:
        listed = ", ".join(known)
        for key in keys:
            if key not in known:
                self.problems.append(f"{place}{key}: no such key; known are {listed}.")

    def _text(self, key: str) -> str:
        value = self.tables.get(key, "")
        if isinstance(value, str):
            return value
        self.problems.append(f"{key}: is a text.")
        return ""

    def _format(self) -> Format:
        value = self.tables.get("format", Format.CSV)
        if value in set(Format):
            return Format(value)
        self.problems.append(f"format: is one of {', '.join(Format)}.")
        return Format.CSV

    def _delimiter(self) -> str:
        value = self._text("delimiter") or ","
        if len(value) != 1:
            self.problems.append("delimiter: is one character.")
        return value

    def _dedupe(self) -> bool:
        value = self.tables.get("dedupe", "")
        if value not in ("", "row"):
            self.problems.append('dedupe: is "row", or is left out.')
        if value and self.tables.get("id"):
            self.problems.append('dedupe: "row" and id name the same thing twice; give one.')
        return bool(value == "row")

    def _timezone(self) -> str:
        name = self._text("timezone") or "UTC"
        try:
            ZoneInfo(name)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            self.problems.append(f"timezone: {name!r} is no time zone of the IANA database.")
            return "UTC"
        return name

    def _currency(self) -> str:
        currency = self._text("currency")
        if currency and currency not in CURRENCIES:
            self.problems.append(f"currency: {currency!r} is no code of ISO 4217.")
        return currency

    def _columns(self, place: str, value: object) -> tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.problems.append(f"{place}: is a list of texts.")
        return ()

    def _texts(self, place: str, table: object, known: tuple[str, ...] | None) -> dict[str, str]:
        if not isinstance(table, Mapping):
            self.problems.append(f"{place}: is a table.")
            return {}
        if known is not None:
            self._known(f"{place}.", table, known)
        wrong = [key for key, value in table.items() if not isinstance(value, str)]
        self.problems += [f"{place}.{key}: is a text." for key in wrong]
        return {key: value for key, value in table.items() if isinstance(value, str)}

    def _events(self) -> tuple[str, dict[str, EventValue], frozenset[str]]:
        table = self.tables.get("events", {})
        if not isinstance(table, Mapping):
            self.problems.append("events: is a table.")
            return "", {}, frozenset()
        self._known("events.", table, ("column", "values", "skip"))
        column, values = table.get("column", ""), table.get("values", {})
        if not isinstance(column, str) or (table and not column):
            self.problems.append("events.column: names the column that says what a row is.")
            column = ""
        if not isinstance(values, Mapping):
            self.problems.append("events.values: is a table of tables.")
            values = {}
        skip = self._columns("events.skip", table.get("skip", []))
        return (
            column,
            {key: self._value(key, item) for key, item in values.items()},
            frozenset(skip),
        )

    def _value(self, key: str, table: object) -> EventValue:
        place = f"events.values.{key}"
        if not isinstance(table, Mapping):
            self.problems.append(f"{place}: is a table.")
            return EventValue({}, {})
        fields = self._texts(f"{place}.fields", table.get("fields", {}), KNOWN_FIELDS)
        rest = {name: value for name, value in table.items() if name != "fields"}
        constants = self._texts(place, rest, KNOWN_FIELDS)
        if "type" not in constants and "type" not in fields:
            self.problems.append(f"{place}.type: is one of {', '.join(EventType)}.")
        self._check_type(place, constants)
        return EventValue(constants, fields)

    def _check_type(self, place: str, constants: Mapping[str, str]) -> None:
        if "type" in constants and constants["type"] not in set(EventType):
            self.problems.append(f"{place}.type: is one of {', '.join(EventType)}.")
