"""Records to bytes and back: the only place that knows the JSON on the log.

Written with orjson in a fixed field order (defaults left out), read with msgspec straight into
the dataclasses of `tracker.model.record`. A record that cannot be read is an `UnreadableError`,
which the consumer sets aside; it never stops a partition.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import orjson

from tracker.model.record import (
    SCHEMA_VERSION,
    DefinitionRecord,
    DerivedRecord,
    EventRecord,
    Kind,
    MarkerRecord,
    Record,
)

_TYPES: dict[Kind, type[Any]] = {
    Kind.EVENT: EventRecord,
    Kind.DEFINITION: DefinitionRecord,
    Kind.DERIVED: DerivedRecord,
    Kind.MARKER: MarkerRecord,
}
_KINDS = {record_type: kind for kind, record_type in _TYPES.items()}
_PREFIXES = {kind: f'{{"v":{SCHEMA_VERSION},"kind":"{kind}",'.encode() for kind in Kind}
_DECODERS = {kind: msgspec.json.Decoder(record_type) for kind, record_type in _TYPES.items()}
_EVENT_PREFIX = _PREFIXES[Kind.EVENT]


class UnreadableError(ValueError):
    """Bytes on the log that are no record of a schema that we know."""


def _field_defaults(record_type: type[Any]) -> tuple[tuple[str, object], ...]:
    named = []
    for item in dataclasses.fields(record_type):
        default: object = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        named.append((item.name, default))
    return tuple(named)


_FIELDS = {record_type: _field_defaults(record_type) for record_type in _KINDS}


def encode(record: Record) -> bytes:
    """Return `record` as one JSON object without a line end.

    Shape: `{"v":1,"kind":…, …}`, fields in declaration order, defaults left out.
    """
    body = {}
    for name, default in _FIELDS[type(record)]:
        value = getattr(record, name)
        if value != default:
            body[name] = value
    return _PREFIXES[_KINDS[type(record)]] + orjson.dumps(body)[1:]


def encode_stamped(event: EventRecord, producer: str, sequence: int) -> bytes:
    """Return what `encode` returns for `event` with this producer and sequence.

    They are known only when the event is appended, after everything else about it.
    """
    body = {}
    for name, default in _FIELDS[EventRecord]:
        value = getattr(event, name)
        if value != default:
            body[name] = value
    body["producer"] = producer
    body["sequence"] = sequence
    return _EVENT_PREFIX + orjson.dumps(body)[1:]


def is_kind(raw: bytes, kind: Kind) -> bool:
    """Tell whether `raw` begins as a record of `kind`, without reading it."""
    return raw.startswith(_PREFIXES[kind])


def decode(raw: bytes) -> Record:
    """Return the record that `raw` holds.

    Errors: UnreadableError for anything else, never another exception.
    """
    try:
        if raw.startswith(_EVENT_PREFIX):
            event: EventRecord = _DECODERS[Kind.EVENT].decode(raw)
            return event
        for kind, prefix in _PREFIXES.items():
            if raw.startswith(prefix):
                record: Record = _DECODERS[kind].decode(raw)
                return record
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableError(str(error)) from error
    raise UnreadableError(f"no record of schema {SCHEMA_VERSION}: {raw[:40]!r}")
