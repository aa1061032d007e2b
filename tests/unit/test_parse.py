"""Bodies, envelopes and fields: what is read, what is repaired, what is refused and why."""

from __future__ import annotations

import gzip
import json
import zlib

import brotli
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.collect.fields import Draft, read_fields
from tracker.collect.parse import BODY_BYTES_MAX, Envelope, Refused, read_body, read_query, unpack
from tracker.model.rejection import Reason, Rejection

ZSTD = zstandard.ZstdCompressor()
VIEW = b'{"site":"shop","type":"view"}'


def reason_of_body(body: bytes, encoding: str = "") -> Reason | None:
    found = read_body(body, encoding)
    return found.rejection.reason if isinstance(found, Refused) else None


def reason_of(**fields: object) -> Reason | None:
    found = read_fields({"type": "view", **fields})
    return found.reason if isinstance(found, Rejection) else None


def draft(**fields: object) -> Draft:
    found = read_fields({"type": "view", **fields})
    assert isinstance(found, Draft), found
    return found


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# --- encodings ------------------------------------------------------------------------------


def bare_deflate(body: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(body) + machine.flush()


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "": gzip.compress,
    "identity": gzip.compress,
    "deflate": zlib.compress,
    "DEFLATE": bare_deflate,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": ZSTD.compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
def test_every_encoding_is_unpacked_up_to_the_limit_and_no_byte_further(encoding: str) -> None:
    pack = PACKERS[encoding]
    assert unpack(pack(VIEW), encoding) == VIEW
    assert unpack(pack(b" " * BODY_BYTES_MAX), encoding) == b" " * BODY_BYTES_MAX
    for size in (BODY_BYTES_MAX + 1, 5 * BODY_BYTES_MAX):
        assert unpack(pack(b" " * size), encoding) == Rejection(Reason.TOO_LARGE)


@pytest.mark.parametrize("encoding", [name for name in PACKERS if name != "DEFLATE"])
def test_bad_encoding_of_a_body_that_was_cut_off(encoding: str) -> None:
    packed = PACKERS[encoding](orjson.dumps(list(range(2_000))))
    assert reason_of_body(packed[:-5], encoding) is Reason.BAD_ENCODING


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip,br", "compress", "aws-chunked", "gzip;q"])
def test_bad_encoding_that_is_unknown_or_nested(encoding: str) -> None:
    assert reason_of_body(gzip.compress(VIEW), encoding) is Reason.BAD_ENCODING


def test_a_body_that_is_not_what_its_encoding_says_is_a_bad_encoding() -> None:
    for encoding in ("gzip", "deflate", "br", "zstd"):
        assert reason_of_body(VIEW, encoding) is Reason.BAD_ENCODING


def test_gzip_members_are_joined_up_to_a_number() -> None:
    assert unpack(gzip.compress(VIEW[:9]) + gzip.compress(VIEW[9:]), "gzip") == VIEW
    assert unpack(gzip.compress(b"") * 63 + gzip.compress(VIEW), "gzip") == VIEW
    assert isinstance(unpack(gzip.compress(b"") * 64 + gzip.compress(VIEW), "gzip"), Rejection)


def test_too_large_counts_the_packed_bytes_too() -> None:
    assert unpack(b"x" * BODY_BYTES_MAX, "") == b"x" * BODY_BYTES_MAX
    assert unpack(b"x" * (BODY_BYTES_MAX + 1), "") == Rejection(Reason.TOO_LARGE)


# --- JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{", b"hello", b'{"a":}', b"[1,]", b"{'a':1}", b"[" * 100_000])
def test_bad_json(body: bytes) -> None:
    assert reason_of_body(body) is Reason.BAD_JSON


def test_a_lone_surrogate_is_repaired_and_costs_nothing_else() -> None:
    body = b'[{"type":"view","title":"ok \\ud83d\\ude00"},{"type":"view","title":"cut \\ud83d"}]'
    envelope = read_body(body, "")
    assert isinstance(envelope, Envelope)
    assert [event["title"] for event in envelope.events] == ["ok 😀", "cut �"]
    orjson.dumps(envelope.events)


def test_bytes_that_are_no_utf8_are_repaired() -> None:
    envelope = read_body(b'[{"type":"view","title":"caf\xe9"}]', "")
    assert isinstance(envelope, Envelope)
    assert envelope.events[0]["title"] == "caf�"


def test_a_byte_order_mark_is_ignored() -> None:
    assert isinstance(read_body(b"\xef\xbb\xbf" + VIEW, ""), Envelope)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_bad_value_of_a_number_that_is_none_costs_its_own_event_only(number: str) -> None:
    body = f'[{{"type":"view","value":{number}}},{{"type":"view","value":1}}]'.encode()
    envelope = read_body(body, "")
    assert isinstance(envelope, Envelope)
    first, second = (read_fields(raw, level=envelope.level) for raw in envelope.events)
    assert first == Rejection(Reason.BAD_VALUE)
    assert isinstance(second, Draft)
    assert second.value_micros == 1_000_000


# --- envelopes ------------------------------------------------------------------------------


def test_one_event_an_array_and_a_batch_are_understood() -> None:
    assert read_body(VIEW, "") == Envelope([json.loads(VIEW)], 1)
    assert read_body(b"[" + VIEW + b"]", "") == Envelope([json.loads(VIEW)], 2)
    batch = b'{"site":"shop","sent_at":"1970-01-01T00:00:05Z","events":[' + VIEW + b"]}"
    assert read_body(batch, "") == Envelope([json.loads(VIEW)], 3, "shop", 5_000)
    assert read_body(b'{"sent_at_ms":7,"events":[1]}', "") == Envelope([1], 3, "", 7)


@pytest.mark.parametrize("body", [b"", b"  ", b"[]", b"null", b'{"events":[]}', b'{"events":null}'])
def test_empty(body: bytes) -> None:
    assert reason_of_body(body) is Reason.EMPTY


@pytest.mark.parametrize("body", [b"1", b'"text"', b"true"])
def test_not_an_object_as_a_body(body: bytes) -> None:
    assert reason_of_body(body) is Reason.NOT_AN_OBJECT


@pytest.mark.parametrize("raw", [1, "text", True, None, [], [1]])
def test_not_an_object_as_an_event(raw: object) -> None:
    assert read_fields(raw) == Rejection(Reason.NOT_AN_OBJECT)


def test_too_many() -> None:
    assert isinstance(read_body(b"[" + b",".join([VIEW] * 500) + b"]", ""), Envelope)
    found = read_body(b"[" + b",".join([VIEW] * 501) + b"]", "")
    assert isinstance(found, Refused)
    assert (found.rejection.reason, found.count) == (Reason.TOO_MANY, 501)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"site":5,"events":[1]}', Reason.BAD_FIELD),
        (b'{"events":{}}', Reason.BAD_FIELD),
        (b'{"sent_at":"yesterday","events":[1]}', Reason.BAD_TIME),
        (b'{"sent_at_ms":"x","events":[1]}', Reason.BAD_TIME),
    ],
)
def test_an_envelope_of_the_wrong_shape_is_refused(body: bytes, reason: Reason) -> None:
    assert reason_of_body(body) is reason


@pytest.mark.parametrize("level", [1, 2, 3])
def test_too_deep(level: int) -> None:
    at_limit = json.loads(nested(8 - level))
    assert isinstance(read_fields({"type": "view", "x": at_limit}, level=level), Draft)
    past_it = json.loads(nested(8 - level + 1))
    deep = Rejection(Reason.TOO_DEEP)
    assert read_fields({"type": "view", "x": past_it}, level=level) == deep
    assert read_fields({"type": "view", "properties": {"x": past_it}}, level=level - 1) == deep
    assert reason_of_body(f'{{"x":{nested(8)},"events":[1]}}'.encode()) is Reason.TOO_DEEP
    assert read_fields(json.loads(nested(10))) == deep


# --- fields ---------------------------------------------------------------------------------

TEXTS = "site name event_id visitor_id customer_id session_id order_id click_id gclid url referrer"
TEXTS += " title utm_source utm_id experiment variant currency"


@pytest.mark.parametrize("name", TEXTS.split())
@pytest.mark.parametrize("value", [5, 1.5, True, {"a": 1}, ["a"]])
def test_bad_field(name: str, value: object) -> None:
    assert reason_of(**{name: value}) is Reason.BAD_FIELD


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("name", 128),
        ("event_id", 128),
        ("visitor_id", 128),
        ("customer_id", 128),
        ("session_id", 128),
        ("order_id", 128),
        ("click_id", 512),
        ("gclid", 512),
    ],
)
def test_too_long(name: str, limit: int) -> None:
    assert reason_of(**{name: "x" * limit}) is None
    assert reason_of(**{name: "x" * (limit + 1)}) is Reason.TOO_LONG


def test_what_is_shown_is_cut_and_cleaned_instead_of_refused() -> None:
    read = draft(
        title="  a\tb\x00\x9f ", utm_source="x" * 257, experiment="e" * 300, url="/" * 9000
    )
    assert (read.title, len(read.utm["utm_source"]), len(read.experiment)) == ("ab", 256, 256)
    assert len(read.url) == 8_192


@pytest.mark.parametrize("value", ["purchase", "", "VIEW", 5, None, "view "])
def test_bad_type(value: object) -> None:
    found = read_fields({"type": value})
    is_absent = isinstance(found, Draft) and found.type is None
    assert is_absent or found == Rejection(Reason.BAD_TYPE)


@pytest.mark.parametrize(
    "value",
    ["2026-01-05", "2026-01-05T10:00:00", "now", "x" * 50, True, -1, 2**60, "1969-12-31T23:59:59Z"],
)
def test_bad_time(value: object) -> None:
    for name in ("occurred_at", "sent_at"):
        assert reason_of(**{name: value}) is Reason.BAD_TIME
    assert reason_of(occurred_at_ms=value) is Reason.BAD_TIME


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-05T10:00:00Z",
        "2026-01-05T11:00:00+01:00",
        "2026-01-05T11:00:00 01:00",
        "2026-01-05 10:00:00.000+00:00",
        1767607200000,
        1767607200000.0,
        "1767607200000",
    ],
)
def test_a_time_is_read_in_every_form(value: object) -> None:
    assert draft(occurred_at=value).occurred_at_ms == 1767607200000
    if not isinstance(value, str) or value.isdecimal():
        assert draft(occurred_at_ms=value).occurred_at_ms == 1767607200000


@pytest.mark.parametrize("value", ["ten", True, "1_0", "1e10", 10**10, "nan", {}, [], "0x1"])
def test_bad_value(value: object) -> None:
    assert reason_of(value=value) is Reason.BAD_VALUE


def test_a_value_is_exact() -> None:
    for value in ("19.90", 19.9, "19.9", "1.99e1"):
        assert draft(value=value).value_micros == 19_900_000
    assert draft(value=10**9).value_micros == 10**15
    assert draft(value=-0.0).value_micros == 0


@pytest.mark.parametrize("value", ["EURO", "XXX", "€", "E"])
def test_bad_currency(value: str) -> None:
    assert reason_of(currency=value) is Reason.BAD_CURRENCY
    assert draft(currency="eur").currency == "EUR"


def test_too_many_properties() -> None:
    fits = {f"p{n}": n for n in range(64)}
    assert len(draft(properties=fits).properties) == 64
    assert reason_of(properties=fits | {"one": 1}) is Reason.TOO_MANY_PROPERTIES


@pytest.mark.parametrize("value", [{"a": {}}, {"a": []}, {"a": float("nan")}, "[1]", "{", 5, []])
def test_properties_of_the_wrong_type_are_a_bad_field(value: object) -> None:
    assert reason_of(properties=value) is Reason.BAD_FIELD


def test_unknown_fields_are_kept_within_the_limits_and_never_an_error() -> None:
    many = {f"x{n}": n for n in range(100)}
    read = draft(**many, nested={"a": 1}, listed=[1], long="y" * 2_000, nothing=None)
    assert len(read.properties) == 64
    read = draft(colour="red", size=5, ok=True, properties={"colour": "blue"}, deep={"a": 1})
    assert read.properties == {"colour": "blue", "size": 5, "ok": True}
    assert draft(**{"n" * 129: 1, "m" * 128: 2}).properties == {"m" * 128: 2}
    assert draft(long="y" * 2_000).properties["long"] == "y" * 1_024
    assert draft(big=2**70).properties == {"big": float(2**70)}


def test_empty_and_null_fields_are_absent() -> None:
    read = draft(visitor_id="", session_id=None, value="", currency="", occurred_at=None)
    assert read == Draft(type=read.type)


def test_a_query_is_decoded_once_and_its_first_value_counts() -> None:
    found = read_query("site=shop&title=a%20b+c&utm_source=x%2525&site=other&e=&properties=%7B%7D")
    assert found == {
        "site": "shop",
        "title": "a b c",
        "utm_source": "x%25",
        "e": "",
        "properties": "{}",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)
NAMED = st.dictionaries(
    st.sampled_from((TEXTS + " value type occurred_at properties consent other").split()), JSON
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([*PACKERS, "odd", "gzip,br"]))
def test_no_bytes_make_parsing_raise(body: bytes, encoding: str) -> None:
    found = read_body(body, encoding)
    assert isinstance(found, Envelope | Refused)


@settings(max_examples=150, deadline=None)
@given(JSON | NAMED | st.lists(NAMED, max_size=3))
def test_no_json_makes_parsing_raise_and_what_is_read_can_be_written(value: object) -> None:
    found = read_body(json.dumps(value).encode(), "")
    for raw in found.events if isinstance(found, Envelope) else ():
        fields = read_fields(raw)
        if isinstance(fields, Draft):
            orjson.dumps([fields.properties, fields.utm, fields.title, fields.url, fields.event_id])
