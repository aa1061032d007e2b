"""From a request's body or query to the events in it, each still as it was sent.

Unpacks, reads JSON, and takes the envelope off. Never raises on what somebody sent: a request that
cannot be read is one `Refused`. What the single events say is read in `tracker.collect.fields`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import brotli  # type: ignore[import-untyped]
import orjson
import zstandard

from tracker.collect.fields import DEPTH_MAX, is_too_deep
from tracker.collect.moments import read_epoch_ms, read_moment
from tracker.model.rejection import Reason, Rejection

BODY_BYTES_MAX = 1_000_000
EVENTS_MAX = 500
_GZIP_MAGIC = b"\x1f\x8b"
_MEMBERS_MAX = 64
"""Each member costs a new 32 KiB window: 50,000 empty ones in 1 MB would take half a second."""
_ZSTD_WINDOW_MAX = 8 * 2**20
"""The least that RFC 8878 asks of a decoder; the frame's header may ask for gigabytes."""
_BOM = b"\xef\xbb\xbf"

_TOO_LARGE: Final = Rejection(Reason.TOO_LARGE)


@dataclass(frozen=True, slots=True)
class Refused:
    """One or several events that are not taken: where they are counted, and why.

    `site` is the key that was named, not yet checked.
    """

    site: str
    rejection: Rejection
    count: int = 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """The events of one request. `level` is the depth at which each of them stands."""

    events: list[object]
    level: int
    site: str = ""
    sent_at_ms: int | None = None


def read_body(body: bytes, encoding: str) -> Envelope | Refused:
    """Return the events in `body`, which came with Content-Encoding `encoding`."""
    unpacked = unpack(body, encoding)
    if isinstance(unpacked, Rejection):
        return Refused("", unpacked)
    value = load(unpacked)
    if isinstance(value, Rejection):
        return Refused("", value)
    return open_envelope(value)


def read_query(query: str) -> dict[str, object]:
    """Return the parameters of a raw query; of a repeated one the first counts."""
    fields: dict[str, object] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        fields.setdefault(name, value)
    return fields


def unpack(body: bytes, encoding: str) -> bytes | Rejection:
    """Return `body` without its encoding, at most BODY_BYTES_MAX."""
    if len(body) > BODY_BYTES_MAX:
        return _TOO_LARGE
    named = [name for part in encoding.lower().split(",") if (name := part.strip())]
    if len(named) > 1:
        return Rejection(Reason.BAD_ENCODING, "There is more than one encoding.")
    name = named[0] if named else "identity"
    if name == "identity":
        if not body.startswith(_GZIP_MAGIC):
            return body
        name = "gzip"
    inflate = _INFLATERS.get(name)
    unpacked = inflate(body) if inflate else None
    if unpacked is None:
        return Rejection(Reason.BAD_ENCODING, f"Known are {', '.join(sorted(_INFLATERS))}.")
    return unpacked if len(unpacked) <= BODY_BYTES_MAX else _TOO_LARGE


_CAP = BODY_BYTES_MAX + 1
"""One byte more than allowed is enough to know."""


def _gunzip(body: bytes) -> bytes | None:
    out = bytearray()
    for _ in range(_MEMBERS_MAX):
        machine = zlib.decompressobj(wbits=31)
        try:
            out += machine.decompress(body, _CAP - len(out))
        except zlib.error:
            return None
        if len(out) >= _CAP:
            return bytes(out)
        if not machine.eof:
            return None
        body = machine.unused_data.lstrip(b"\0")
        if not body:
            return bytes(out)
    return None


def _inflate(body: bytes) -> bytes | None:
    """Unpack `deflate`: zlib's form as RFC 9110 says, or bare, as some senders do."""
    for wbits in (15, -15):
        machine = zlib.decompressobj(wbits=wbits)
        try:
            out = machine.decompress(body, _CAP)
        except zlib.error:
            continue
        return out if machine.eof or len(out) >= _CAP else None
    return None


def _unbrotli(body: bytes) -> bytes | None:
    machine = brotli.Decompressor()
    out = bytearray()
    try:
        out += machine.process(body, output_buffer_limit=_CAP)
        while len(out) < _CAP and not machine.is_finished():
            more = machine.process(b"", output_buffer_limit=_CAP - len(out))
            if not more:
                return None
            out += more
    except brotli.error:
        return None
    return bytes(out)


def _unzstd(body: bytes) -> bytes | None:
    machine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    try:
        with machine.stream_reader(body, read_across_frames=True) as reader:
            return bytes(reader.read(_CAP)) or None
    except zstandard.ZstdError:
        return None


_INFLATERS: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}


def load(body: bytes) -> object | Rejection:
    """Return the JSON value in `body`.

    What strict JSON refuses as a whole for the sake of one value (a lone surrogate, bytes that
    are no UTF-8, NaN, 1e400) is read in a second, lenient pass, so that one bad character or
    number costs its own event at most.
    """
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _load_leniently(body)
    return value


def _load_leniently(body: bytes) -> object | Rejection:
    text = body.removeprefix(_BOM).decode("utf-8", "replace")
    if not text.strip():
        return Rejection(Reason.EMPTY)
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return Rejection(Reason.BAD_JSON)
    return _without_surrogates(value, 1)


def _without_surrogates(value: object, level: int) -> object:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if level > DEPTH_MAX:
        return value  # refused for its depth, whatever it says
    if isinstance(value, list):
        return [_without_surrogates(item, level + 1) for item in value]
    if isinstance(value, dict):
        return {
            str(_without_surrogates(key, level)): _without_surrogates(item, level + 1)
            for key, item in value.items()
        }
    return value


def open_envelope(value: object) -> Envelope | Refused:
    """Return the events of a body: one object, an array, or `{"site","sent_at","events":[…]}`."""
    if isinstance(value, list):
        envelope: Envelope | Refused = Envelope(value, 2)
    elif isinstance(value, dict):
        is_batch = "events" in value and "type" not in value
        envelope = _batch(value) if is_batch else Envelope([value], 1)
    elif value is None:
        envelope = Refused("", Rejection(Reason.EMPTY))
    else:
        envelope = Refused("", Rejection(Reason.NOT_AN_OBJECT))
    if isinstance(envelope, Refused):
        return envelope
    count = len(envelope.events)
    if not count:
        return Refused(envelope.site, Rejection(Reason.EMPTY))
    if count > EVENTS_MAX:
        detail = Rejection(Reason.TOO_MANY, f"There are {count}.")
        return Refused(envelope.site, detail, count)
    return envelope


def _batch(value: dict[str, object]) -> Envelope | Refused:
    site = value.get("site")
    if site is not None and not isinstance(site, str):
        return Refused("", Rejection(Reason.BAD_FIELD, "site must be a text."))
    named = site or ""
    events = value["events"]
    if events is not None and not isinstance(events, list):
        return Refused(named, Rejection(Reason.BAD_FIELD, "events must be an array."))
    rest = {name: item for name, item in value.items() if name != "events"}
    if is_too_deep(rest, 1):
        return Refused(named, Rejection(Reason.TOO_DEEP))
    sent_at_ms = None
    for name, read in (("sent_at", read_moment), ("sent_at_ms", read_epoch_ms)):
        stated = value.get(name)
        if stated is not None and stated != "":
            sent_at_ms = read(stated)
            if sent_at_ms is None:
                return Refused(named, Rejection(Reason.BAD_TIME, f"{name} is not such a time."))
    return Envelope(events or [], 3, named, sent_at_ms)
