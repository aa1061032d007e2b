"""The importer: rows of every format become records, refusals say why, ids hold for good."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from tracker import codec
from tracker.collect.importer import Imported, Importer, Refused, seal
from tracker.collect.mapping import parse_mapping
from tracker.collect.rows import Row, RowIds, read_rows
from tracker.errors import TrackerError
from tracker.model.definition import Site
from tracker.model.keys import Keys, owner_of_visitor
from tracker.model.record import EventType, IdentifiedBy, Trust
from tracker.model.rejection import Reason

NOW_MS = 1_700_000_000_000
KEYS = Keys(b"k" * 32)
SHOP = {
    "currency": "USD",
    "fields": {"occurred_at": "time", "visitor_id": "user", "session_id": "session"},
    "events": {
        "column": "kind",
        "values": {
            "view": {"type": "view"},
            "cart": {"type": "conversion", "name": "add_to_cart"},
            "purchase": {
                "type": "conversion",
                "name": "purchase",
                "fields": {"value": "price"},
            },
        },
    },
    "properties": {"brand": "brand"},
}
HEADER = "time,kind,user,session,price,brand\n"
LOG = {
    "format": "combined",
    "time_format": "%d/%b/%Y:%H:%M:%S %z",
    "constants": {"type": "view"},
    "fields": {
        "occurred_at": "time",
        "url": "url",
        "referrer": "referrer",
        "address": "address",
        "user_agent": "agent",
    },
}


def imported(text, tables, content="ab" * 32):
    rules, problems = parse_mapping(tables)
    assert problems == []
    importer = Importer(Site(key="shop"), rules, RowIds(rules, content), KEYS)
    rows = read_rows(io.StringIO(text, newline=""), rules)
    return [importer.convert(row, NOW_MS) for row in rows]


def records(text, tables, content="ab" * 32):
    found = imported(text, tables, content)
    assert all(isinstance(one, Imported) for one in found), found
    return [codec.decode(one.raw) for one in found]


def test_a_csv_row_becomes_an_event():
    (found,) = imported(HEADER + "2019-10-01 00:00:00 UTC,purchase,u1,s1,35.79,acme\n", SHOP)
    event = codec.decode(found.raw)
    assert (event.type, event.name) == (EventType.CONVERSION, "purchase")
    assert (event.value_micros, event.currency) == (35_790_000, "USD")
    assert (event.visitor_id, event.session_id) == ("u1", "s1")
    assert event.trust is Trust.IMPORT
    assert event.identified_by is IdentifiedBy.SENT
    assert (event.occurred_at_ms, event.received_at_ms) == (1_569_888_000_000, NOW_MS)
    assert event.properties == {"brand": "acme"}
    assert event.event_id == "abababababababab-000000001"
    assert found.partition == KEYS.partition("shop", owner_of_visitor("u1"))


def test_there_is_no_age_limit_but_a_future():
    rows = "1980-01-01 00:00:00,view,u,s,,\n2100-01-01 00:00:00,view,u,s,,\n"
    old, ahead = imported(HEADER + rows, SHOP)
    assert codec.decode(old.raw).occurred_at_ms == 315_532_800_000
    assert ahead.rejection.reason is Reason.FUTURE


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("nonsense,view,u,s,,", Reason.BAD_TIME),
        ("2019-10-01 00:00:00,dance,u,s,,", Reason.BAD_ROW),
        ("2019-10-01 00:00:00,purchase,u,s,much,", Reason.BAD_VALUE),
        ("2019-10-01 00:00:00,view," + "u" * 129 + ",s,,", Reason.TOO_LONG),
        ("2019-10-01 00:00:00,view,u,s", Reason.BAD_ROW),
    ],
)
def test_a_bad_row_is_refused_with_its_number(row, reason):
    good = "2019-10-01 00:00:00,view,u,s,,\n"
    first, second, third = imported(HEADER + good + row + "\n" + good, SHOP)
    assert isinstance(first, Imported)
    assert isinstance(third, Imported)
    assert isinstance(second, Refused)
    assert (second.number, second.rejection.reason) == (2, reason)


def test_a_cell_over_the_limit_of_the_csv_module_refuses_one_row():
    good = "2019-10-01 00:00:00,view,u,s,,\n"
    huge = "2019-10-01 00:00:00,view,u,s,," + "x" * (csv.field_size_limit() + 1) + "\n"
    found = imported(HEADER + good + huge + good, SHOP)
    assert [type(one) for one in found] == [Imported, Refused, Imported]


def test_a_column_that_the_file_lacks_is_an_error_that_lists_the_others():
    with pytest.raises(TrackerError, match=r"no column 'session', 'kind'.*has: time, user"):
        imported("time,user,price,brand\n", SHOP)
    with pytest.raises(TrackerError, match="it has: none"):
        imported("", SHOP)


def test_json_lines_are_rows_and_others_are_refused():
    tables = {
        "format": "jsonl",
        "constants": {"type": "view"},
        "fields": {"occurred_at": "at", "visitor_id": "user.id"},
        "properties": {"vip": "vip"},
    }
    lines = '{"at": 1569888000, "user": {"id": 7}, "vip": true}\n\n[1]\nnonsense\n'
    first, second, third = imported(lines, tables)
    event = codec.decode(first.raw)
    assert (event.visitor_id, event.properties) == ("7", {"vip": True})
    assert (second.number, third.number) == (2, 3)
    assert second.rejection.reason is Reason.BAD_ROW


def test_a_key_that_no_line_has_is_an_error():
    tables = {
        "format": "jsonl",
        "constants": {"type": "view"},
        "fields": {"occurred_at": "at", "visitor_id": "user"},
    }
    with pytest.raises(TrackerError, match=r"no column 'user'; it has: at, who"):
        imported('{"at": 1569888000, "who": "x"}\n', tables)


def test_an_access_log_gives_views_of_estimated_visitors_and_tells_bots():
    person = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36"
    robot = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
    line = '192.0.2.{} - - [17/May/2015:10:05:03 +0000] "GET {} HTTP/1.1" 200 203 "{}" "{}"\n'
    text = (
        line.format(1, "/a?utm_source=x%20y", "-", person)
        + line.format(2, "/b", "https://www.google.com/", person)
        + line.format(1, "/c", "-", robot)
        + "garbage\n"
    )
    first, second, third, bad = imported(text, LOG)
    events = [codec.decode(one.raw) for one in (first, second, third)]
    assert [event.bot != "" for event in events] == [False, False, True]
    assert events[0].dims["utm_source"] == "x y"
    assert events[0].dims["landing_page"] == "/a"
    assert events[1].dims["channel"] == "Organic Search"
    assert events[0].visitor_id == events[1].visitor_id != events[2].visitor_id
    assert {event.identified_by for event in events} == {IdentifiedBy.ESTIMATE}
    assert (bad.number, bad.rejection.reason) == (4, Reason.BAD_ROW)


def test_ids_come_from_content_and_row_number():
    row = "2019-10-01 00:00:00,view,u,s,,\n"
    first = [event.event_id for event in records(HEADER + row + row, SHOP)]
    again = [event.event_id for event in records(HEADER + row + row, SHOP)]
    other = [event.event_id for event in records(HEADER + row + row, SHOP, "cd" * 32)]
    assert first == again
    assert len({*first, *other}) == 4


def test_identical_rows_are_one_with_dedupe():
    row = "2019-10-01 00:00:00,view,u,s,,\n"
    text = HEADER + row + row + row.replace(",u,", ",v,")
    ids = [event.event_id for event in records(text, {**SHOP, "dedupe": "row"})]
    assert ids[0] == ids[1] != ids[2]
    assert ids == [event.event_id for event in records(text, {**SHOP, "dedupe": "row"}, "cd" * 32)]


def test_id_columns_name_a_row_whatever_file_it_is_in():
    row = "2019-10-01 00:00:00,view,u,s,,\n"
    one = {**SHOP, "id": ["user"]}
    assert [event.event_id for event in records(HEADER + row, one)] == ["u"]
    several = {**SHOP, "id": ["user", "time"]}
    (first,) = records(HEADER + row, several)
    (again,) = records(HEADER + row, several, "cd" * 32)
    assert first.event_id == again.event_id
    (missing,) = imported(HEADER + row.replace(",u,", ",,"), one)
    assert missing.rejection.reason is Reason.BAD_ROW


def test_columns_are_not_joined_into_the_same_id():
    rules, _ = parse_mapping({**SHOP, "id": ["user", "session"]})
    ids = RowIds(rules, "ab" * 32)
    assert ids.of(Row(1, {"user": "a", "session": "bc"}, b"")) != ids.of(
        Row(2, {"user": "ab", "session": "c"}, b"")
    )


def test_a_sealed_record_is_what_the_codec_writes():
    (found,) = imported(HEADER + "2019-10-01 00:00:00,cart,u1,s1,,\n", SHOP)
    event = dataclasses.replace(codec.decode(found.raw), producer="p-1", sequence=7)
    assert seal(found.raw, "p-1", 7) == codec.encode(event)


def test_rows_sort_by_time_and_then_by_their_place():
    rows = ["2019-10-01 00:00:02", "2019-10-01 00:00:01", "2019-10-01 00:00:02"]
    text = HEADER + "".join(f"{time},view,u,s,,\n" for time in rows)
    assert [one.number for one in sorted(imported(text, SHOP))] == [2, 1, 3]
