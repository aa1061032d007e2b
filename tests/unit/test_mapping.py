"""Mappings: what their files may say, and what rows become by them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tracker.collect.mapping import (
    KNOWN_FIELDS,
    KNOWN_KEYS,
    Format,
    map_row,
    parse_mapping,
    parse_time_ms,
)
from tracker.model.rejection import Reason, Rejection

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SIMPLE = {"fields": {"occurred_at": "t"}, "constants": {"type": "view"}}


def mapping(text="", **more):
    found, problems = parse_mapping({**SIMPLE, **tomllib.loads(text), **more})
    assert problems == []
    return found


def problems_of(**tables):
    found, problems = parse_mapping(tables)
    assert found is None
    return "\n".join(problems)


@pytest.mark.parametrize("path", sorted((DEPLOY / "mappings").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_mapping_is_good(path):
    found, problems = parse_mapping(tomllib.loads(path.read_text()))
    assert (found is not None, problems) == (True, [])


def test_the_documentation_names_every_key_and_field():
    text = (DEPLOY / "docs" / "mappings.md").read_text()
    for name in (*KNOWN_KEYS, *KNOWN_FIELDS, *Format):
        assert f"`{name}`" in text or f"`[{name}]`" in text, name


def test_the_whole_mapping_of_the_documentation_is_good():
    text = (DEPLOY / "docs" / "mappings.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    found, problems = parse_mapping(tomllib.loads(example))
    assert problems == []
    assert found.id == ("order_number",)


def test_unknown_keys_are_errors_that_list_the_known_ones():
    said = problems_of(**SIMPLE, colour="red")
    assert "colour: no such key; known are format, delimiter" in said
    said = problems_of(fields={"occurred_at": "t", "visitor": "u"}, constants={"type": "view"})
    assert "fields.visitor: no such key; known are type, name" in said


def test_all_problems_are_said_at_once():
    said = problems_of(
        format="xml", delimiter=";;", timezone="Mars", currency="XXY", dedupe="all", id="a"
    )
    for part in ("format:", "delimiter:", "timezone:", "currency:", "dedupe:", "id:", "events:"):
        assert part in said
    assert "fields.occurred_at:" in said


def test_id_columns_and_dedupe_exclude_each_other():
    assert "dedupe:" in problems_of(**SIMPLE, id=["a"], dedupe="row")


def test_a_type_that_is_none_is_named():
    said = problems_of(fields={"occurred_at": "t"}, constants={"type": "sale"})
    assert "constants.type: is one of impression, click, view, conversion." in said


def test_event_values_give_constants_and_fields_of_their_own():
    rules = mapping(
        """
        currency = "USD"
        [events]
        column = "kind"
        skip = ["noise"]
        [events.values.sale]
        type = "conversion"
        name = "purchase"
        fields = { value = "price" }
        [events.values.look]
        type = "view"
        """
    )
    sale = map_row(rules, {"t": "1", "kind": "sale", "price": "9.90"})
    assert sale.event == {
        "type": "conversion",
        "name": "purchase",
        "occurred_at": "1",
        "value": "9.90",
        "currency": "USD",
    }
    look = map_row(rules, {"t": "1", "kind": "look", "price": "9.90"})
    assert look.event == {"type": "view", "occurred_at": "1"}
    assert map_row(rules, {"t": "1", "kind": "noise", "price": ""}) is None
    refused = map_row(rules, {"t": "1", "kind": "other", "price": ""})
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.BAD_ROW
    assert "'other'" in refused.detail


def test_an_empty_cell_states_nothing_and_a_numeric_id_is_a_text():
    rules = mapping(fields={"occurred_at": "t", "visitor_id": "user.id", "title": "title"})
    row = map_row(rules, {"t": 5, "user": {"id": 17}, "title": ""})
    assert row.event == {"type": "view", "occurred_at": "5", "visitor_id": "17"}


def test_request_facts_and_properties_stand_apart():
    rules = mapping(
        fields={"occurred_at": "t", "address": "ip", "url": "path"},
        properties={"size": "bytes"},
        base_url="https://shop.example/",
    )
    row = map_row(rules, {"t": "1", "ip": "192.0.2.1", "path": "/a?b=c", "bytes": "7"})
    assert row.request == {"address": "192.0.2.1"}
    assert row.properties == {"size": "7"}
    assert row.event["url"] == "https://shop.example/a?b=c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-10-01 00:00:00 UTC", 1_569_888_000_000),
        ("2019-10-01T02:00:00+02:00", 1_569_888_000_000),
        ("2019-10-01T00:00:00.250Z", 1_569_888_000_250),
        ("2019-10-01 02:00:00", 1_569_888_000_000),  # Berlin, see below
        ("1569888000", 1_569_888_000_000),
        ("1569888000.25", 1_569_888_000_250),
        ("1569888000250", 1_569_888_000_250),
        (1_569_888_000, 1_569_888_000_000),
        ("yesterday", None),
        ("", None),
        (True, None),
        ("2019-13-01", None),
        ("9" * 70, None),
    ],
)
def test_times_are_understood_as_documented(text, expected):
    assert parse_time_ms(text, mapping(timezone="Europe/Berlin")) == expected


def test_a_time_format_is_the_only_one_that_holds():
    rules = mapping(time_format="%d.%m.%Y %H:%M", timezone="Europe/Berlin")
    assert parse_time_ms("01.10.2019 02:00", rules) == 1_569_888_000_000
    assert parse_time_ms("2019-10-01 02:00:00", rules) is None
