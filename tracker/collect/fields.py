"""The fields of one event as sent: names, types, lengths, and what is made of each.

`read_fields` turns one JSON object (or the parameters of one query) into a `Draft`, in one pass
over what was sent. It decides nothing about sites, people or time limits: `tracker.collect.admit`
does. The importer uses it for the rows of a file, so that a past event meets the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from tracker.collect.moments import read_epoch_ms, read_moment
from tracker.model.money import CURRENCIES, parse_micros
from tracker.model.record import EventType
from tracker.model.rejection import Reason, Rejection

ID_CHARS_MAX = 128
CLICK_ID_CHARS_MAX = 512
"""Ours carries a visitor id: (25 + 128) bytes are 204 characters; networks' reach some 250."""
DIMENSION_CHARS_MAX = 256
TITLE_CHARS_MAX = 256
URL_CHARS_MAX = 8_192
PROPERTIES_MAX = 64
PROPERTY_NAME_CHARS_MAX = 128
PROPERTY_CHARS_MAX = 1_024
"""64 properties of 1,024 characters keep an event far below the log's 1 MB a record."""
DEPTH_MAX = 8
"""Nesting of a body, counted from its outermost bracket."""
_INTEGER_MAX = 2**63
"""JSON writers and readers of the log agree on 64-bit integers; a larger one becomes a float."""

UTM_FIELDS = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "utm_id")
CLICK_NETWORKS = (
    "gclid gbraid wbraid fbclid msclkid ttclid li_fat_id twclid ScCid epik rdt_cid dclid".split()
)
"""The parameters by which ad networks mark their clicks."""

Property = str | int | float | bool

_CONTROLS = dict.fromkeys([*range(0x20), 0x7F, *range(0x80, 0xA0)])
_DENIALS = frozenset({"denied", "deny", "false", "no", "0"})


@dataclass(slots=True)
class Draft:
    """One event on its way through the steps of admission."""

    site: str = ""
    type: EventType | None = None
    name: str = ""
    event_id: str = ""
    visitor_id: str = ""
    customer_id: str = ""
    session_id: str = ""
    order_id: str = ""
    click_id: str = ""
    click_network: str = ""
    occurred_at_ms: int | None = None
    sent_at_ms: int | None = None
    url: str = ""
    referrer: str = ""
    title: str = ""
    utm: dict[str, str] = field(default_factory=dict)
    value_micros: int | None = None
    currency: str = ""
    experiment: str = ""
    variant: str = ""
    is_denied: bool = False  # consent
    properties: dict[str, Property] = field(default_factory=dict)


def plain(text: str, chars_max: int) -> str:
    """Return `text` without control characters and outer blanks, cut at `chars_max`."""
    if not text.isprintable():
        text = text.translate(_CONTROLS)
    return text.strip()[:chars_max]


Reader = Callable[[Draft, object], Rejection | None]


def _text_reader(name: str, chars_max: int, *, is_plain: bool = False) -> Reader:
    """Read a text that is refused when it is too long: an id or a name."""
    wrong = Rejection(Reason.BAD_FIELD, f"{name} must be a text.")
    long = Rejection(Reason.TOO_LONG, f"{name} is longer than {chars_max} characters.")

    def read(draft: Draft, value: object) -> Rejection | None:
        if type(value) is not str:
            return wrong
        if len(value) > chars_max:
            return long
        setattr(draft, name, plain(value, chars_max) if is_plain else value)
        return None

    return read


def _shown_reader(name: str, chars_max: int) -> Reader:
    """Read a text that is cut when it is too long: an event is not lost for a long title."""
    wrong = Rejection(Reason.BAD_FIELD, f"{name} must be a text.")

    def read(draft: Draft, value: object) -> Rejection | None:
        if type(value) is not str:
            return wrong
        setattr(draft, name, plain(value, chars_max))
        return None

    return read


def _utm_reader(name: str) -> Reader:
    wrong = Rejection(Reason.BAD_FIELD, f"{name} must be a text.")

    def read(draft: Draft, value: object) -> Rejection | None:
        if type(value) is not str:
            return wrong
        if stated := plain(value, DIMENSION_CHARS_MAX):
            draft.utm[name] = stated
        return None

    return read


def _network_reader(network: str) -> Reader:
    wrong = Rejection(Reason.BAD_FIELD, f"{network} must be a text.")
    long = Rejection(Reason.TOO_LONG, f"{network} is longer than {CLICK_ID_CHARS_MAX} characters.")

    def read(draft: Draft, value: object) -> Rejection | None:
        if type(value) is not str:
            return wrong
        if len(value) > CLICK_ID_CHARS_MAX:
            return long
        if not draft.click_id:
            draft.click_id, draft.click_network = value, network
        return None

    return read


def _click_id(draft: Draft, value: object) -> Rejection | None:
    """Read `click_id`, which says more than a network's parameter beside it."""
    refused = _read_click_id(draft, value)
    if refused is None and draft.click_id:
        draft.click_network = ""
    return refused


_read_click_id = _text_reader("click_id", CLICK_ID_CHARS_MAX)
_TYPES: Final[dict[object, EventType]] = {str(kind): kind for kind in EventType}
_BAD_TYPE = Rejection(Reason.BAD_TYPE)


def _type(draft: Draft, value: object) -> Rejection | None:
    kind = _TYPES.get(value) if type(value) is str else None
    if kind is None:
        return _BAD_TYPE
    draft.type = kind
    return None


def _moment_reader(name: str, attribute: str) -> Reader:
    read_value = read_epoch_ms if name.endswith("_ms") else read_moment
    wrong = Rejection(Reason.BAD_TIME, f"{name} is not such a time.")

    def read(draft: Draft, value: object) -> Rejection | None:
        moment = read_value(value)
        if moment is None:
            return wrong
        setattr(draft, attribute, moment)
        return None

    return read


def _value(draft: Draft, value: object) -> Rejection | None:
    micros = parse_micros(value)
    if micros is None:
        return Rejection(Reason.BAD_VALUE)
    draft.value_micros = micros
    return None


def _currency(draft: Draft, value: object) -> Rejection | None:
    if type(value) is not str:
        return Rejection(Reason.BAD_FIELD, "currency must be a text.")
    code = value.strip().upper()
    if code not in CURRENCIES:
        return Rejection(Reason.BAD_CURRENCY)
    draft.currency = code
    return None


def _consent(draft: Draft, value: object) -> Rejection | None:
    draft.is_denied = is_denial(value)
    return None


def is_denial(value: object) -> bool:
    """Tell whether a `consent` field says no."""
    return value is False or (type(value) is str and value.strip().lower() in _DENIALS)


def _properties(draft: Draft, value: object) -> Rejection | None:
    if type(value) is str:  # a query has no objects, only their JSON
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return Rejection(Reason.BAD_FIELD, "properties must be an object.")
    if not isinstance(value, dict):
        return Rejection(Reason.BAD_FIELD, "properties must be an object.")
    if len(value) > PROPERTIES_MAX:
        return Rejection(Reason.TOO_MANY_PROPERTIES, f"There are {len(value)}.")
    for name, stated in value.items():
        if stated is None:
            continue
        if len(name) > PROPERTY_NAME_CHARS_MAX:
            return Rejection(Reason.TOO_LONG, "The name of a property is too long.")
        kept = _property(stated)
        if kept is None:
            return Rejection(Reason.BAD_FIELD, "A property is a text, a number or a boolean.")
        draft.properties[name] = kept
    return None


def _property(value: object) -> Property | None:
    """Return what is kept of a property's value, None when it is no scalar that JSON has."""
    if isinstance(value, str):
        return value[:PROPERTY_CHARS_MAX]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if -_INTEGER_MAX <= value < _INTEGER_MAX:
            return value
        try:
            value = float(value)
        except OverflowError:
            return None
    if isinstance(value, float) and value - value == 0:  # neither NaN nor infinite
        return value
    return None


FIELDS: Final[dict[str, Reader]] = {
    "type": _type,
    "value": _value,
    "currency": _currency,
    "click_id": _click_id,
    "consent": _consent,
    "properties": _properties,
    "occurred_at": _moment_reader("occurred_at", "occurred_at_ms"),
    "occurred_at_ms": _moment_reader("occurred_at_ms", "occurred_at_ms"),
    "sent_at": _moment_reader("sent_at", "sent_at_ms"),
    "sent_at_ms": _moment_reader("sent_at_ms", "sent_at_ms"),
    "site": _text_reader("site", ID_CHARS_MAX),
    "name": _text_reader("name", ID_CHARS_MAX, is_plain=True),
    **{
        name: _text_reader(name, ID_CHARS_MAX)
        for name in ("event_id", "visitor_id", "customer_id", "session_id", "order_id")
    },
    "url": _shown_reader("url", URL_CHARS_MAX),
    "referrer": _shown_reader("referrer", URL_CHARS_MAX),
    "title": _shown_reader("title", TITLE_CHARS_MAX),
    "experiment": _shown_reader("experiment", DIMENSION_CHARS_MAX),
    "variant": _shown_reader("variant", DIMENSION_CHARS_MAX),
    **{name: _utm_reader(name) for name in UTM_FIELDS},
    **{network: _network_reader(network) for network in CLICK_NETWORKS},
}
"""Every field that has a meaning here; all others are properties."""

_NOT_AN_OBJECT = Rejection(Reason.NOT_AN_OBJECT)
_TOO_DEEP = Rejection(Reason.TOO_DEEP)


def read_fields(raw: object, *, level: int = 1) -> Draft | Rejection:
    """Return what `raw` (an object as JSON or a query gives it) says, or why it is refused.

    `level` is the depth at which the object stands in its body. A null or empty field is absent.
    """
    if type(raw) is not dict:
        return _TOO_DEEP if is_too_deep(raw, level) else _NOT_AN_OBJECT
    draft = Draft()
    rest: dict[str, object] | None = None
    find = FIELDS.get
    for name, value in raw.items():
        if value is None or value == "":
            continue
        kind = type(value)
        if (kind is dict or kind is list) and is_too_deep(value, level + 1):
            return _TOO_DEEP
        read = find(name)
        if read is None:
            if rest is None:
                rest = {}
            rest[name] = value
        elif (refused := read(draft, value)) is not None:
            return refused
    if rest is not None:
        _keep(draft.properties, rest)
    return draft


def _keep(properties: dict[str, Property], rest: Mapping[str, object]) -> None:
    """Add unknown fields as far as the limits go: they are never an error."""
    for name, value in rest.items():
        if len(properties) >= PROPERTIES_MAX:
            return
        if len(name) > PROPERTY_NAME_CHARS_MAX or name in properties:
            continue
        kept = _property(value)
        if kept is not None:
            properties[name] = kept


def is_too_deep(value: object, level: int) -> bool:
    """Tell whether `value`, which stands at `level`, reaches below DEPTH_MAX.

    Recursion is bounded by DEPTH_MAX.
    """
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value  # type: ignore[assignment]
    else:
        return False
    if level > DEPTH_MAX:
        return True
    return any(
        is_too_deep(item, level + 1) for item in inner if type(item) is dict or type(item) is list
    )
