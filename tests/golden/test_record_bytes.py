"""The bytes of every kind of record: what stands in a log must be readable for good.

`records.jsonl` holds one line a record. UPDATE=1 writes the lines of today's records anew and
keeps older lines that differ, because they may stand in somebody's log: they must still decode.
"""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from tracker.codec import UnreadableError, decode, encode, encode_stamped
from tracker.model.record import (
    Consent,
    DefinitionRecord,
    DerivedRecord,
    EventRecord,
    EventType,
    IdentifiedBy,
    Kind,
    Layer,
    Mark,
    MarkerRecord,
    NumberedDefinition,
    OrderClaim,
    Record,
    RefundClaim,
    Trust,
)

GOLDEN = Path(__file__).parent / "records.jsonl"
T = 1_767_607_200_000
TABLES: dict[str, object] = {
    "shop": {"currency": "EUR", "funnel": {"f": {"within": "24h", "steps": ["view", "click"]}}}
}

SMALLEST = EventRecord(
    site="shop", type=EventType.VIEW, event_id="e", occurred_at_ms=T, received_at_ms=T, day=20458
)
FULLEST = EventRecord(
    site="shop",
    type=EventType.CONVERSION,
    event_id="e-2 ü",
    occurred_at_ms=T,
    received_at_ms=T + 1,
    day=20458,
    name="purchase",
    trust=Trust.SECRET,
    consent=Consent.GPC,
    bot="headless",
    visitor_id="v",
    identified_by=IdentifiedBy.COOKIE,
    customer_id="c",
    session_id="s",
    click_id="Cj0KCQ",
    click_network="gclid",
    arrival=True,
    order_id="O-1",
    value_micros=19_900_000,
    currency="EUR",
    dims={"utm_source": "google", "device": "phone"},
    url="https://shop.example/a?b=%20",
    referrer="https://www.example/",
    title='A "title"\n',
    properties={"text": "x", "whole": 1, "part": 0.5, "yes": True},
    producer="p",
    sequence=7,
)
CLAIM = OrderClaim(
    site="shop",
    order_id="O-1",
    name="purchase",
    copy=2**62,
    occurred_at_ms=T,
    day=20458,
    trust=Trust.IMPORT,
    bot=False,
    value_micros=None,
    currency="EUR",
    traffic={"utm_source": "google"},
    client={"device": "phone"},
)
REFUND = RefundClaim(
    site="shop", order_id="O-1", copy=3, occurred_at_ms=T, value_micros=5_000_000, currency=""
)
NUMBERED = NumberedDefinition(number=4, layer=Layer.API, definitions=TABLES)


def derived(**body: Any) -> DerivedRecord:
    return DerivedRecord(mark=Mark(3, 14, 1), log_id="ab" * 16, received_at_ms=T, **body)


RECORDS: dict[str, Record] = {
    "the smallest event": SMALLEST,
    "the fullest event": FULLEST,
    "a definition": DefinitionRecord(layer=Layer.FILE, definitions=TABLES, received_at_ms=T),
    "a definition from the start": DefinitionRecord(
        layer=Layer.API, definitions={}, received_at_ms=T, from_start=True
    ),
    "an order's claim": derived(order=CLAIM),
    "a refund's claim": derived(refund=REFUND),
    "a numbered definition": derived(definition=NUMBERED),
    "a marker": MarkerRecord(
        received_at_ms=T, rejected={"shop": {"future": 2}}, shed={"": {"full": 1}}
    ),
}


def golden_lines() -> list[bytes]:
    return GOLDEN.read_bytes().splitlines() if GOLDEN.exists() else []


@pytest.fixture(scope="module", autouse=True)
def _updated() -> None:
    if os.environ.get("UPDATE") == "1":
        today = [encode(record) for record in RECORDS.values()]
        older = [line for line in golden_lines() if line not in today]
        GOLDEN.write_bytes(b"".join(line + b"\n" for line in today + older))


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_bytes_it_had(name: str) -> None:
    line = encode(RECORDS[name])
    assert line in golden_lines(), f"{name} has new bytes; with UPDATE=1 they are added: {line!r}"


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_comes_back_as_it_was(name: str) -> None:
    assert decode(encode(RECORDS[name])) == RECORDS[name]


def test_every_line_that_was_ever_written_is_still_read() -> None:
    lines = golden_lines()
    assert len(lines) >= len(RECORDS)
    kinds = {line.split(b'"kind":"', 1)[1].split(b'"', 1)[0].decode() for line in lines}
    assert kinds == set(Kind)
    for line in lines:
        record = decode(line)
        # Read and written once more it says the same: nothing was dropped or invented.
        assert decode(encode(record)) == record


def test_the_fullest_records_state_every_field() -> None:
    # A new field without an example here would have no golden bytes.
    for record in (FULLEST, CLAIM):
        assert is_dataclass(record)
        for field in fields(record):
            if field.name not in {"value_micros", "bot"}:
                assert getattr(record, field.name) != field.default, field.name


def test_a_stamped_event_has_the_bytes_of_the_event_that_carries_the_stamp() -> None:
    bare = EventRecord(
        **{f.name: getattr(FULLEST, f.name) for f in fields(FULLEST)}
        | {"producer": "", "sequence": 0}
    )
    assert encode_stamped(bare, "p", 7) == encode(FULLEST)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b'{"v":2,"kind":"event"}',
        b'{"v":1,"kind":"event",',
        b'{"v":1,"kind":"event"}',
        b'{"v":1,"kind":"other","site":"shop"}',
        encode(SMALLEST)[:-1],
        encode(SMALLEST).replace(b"20458", b'"20458"'),
        encode(SMALLEST).replace(b'"view"', b'"stare"'),
    ],
)
def test_anything_else_is_unreadable_and_nothing_worse(raw: bytes) -> None:
    with pytest.raises(UnreadableError):
        decode(raw)


def test_a_field_that_a_later_version_adds_does_not_stop_this_one() -> None:
    assert decode(encode(SMALLEST)[:-1] + b',"later":1}') == SMALLEST
