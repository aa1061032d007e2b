"""Rows of a file: CSV, JSON lines or an access log, as column → value.

Reads a stream that somebody else opened and decoded. A row that cannot be read is a value with its
number and what is wrong; a file that cannot be meant is a TrackerError. What a row means is for
`tracker.collect.mapping`.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import orjson

from tracker.collect.mapping import (
    COMBINED_COLUMNS,
    MISSING,
    Format,
    RowMapping,
    find_column,
)
from tracker.errors import Code, TrackerError
from tracker.model.rejection import Reason, Rejection

ROW_NUMBER_DIGITS = 9
"""A billion rows: thirty times the largest month of the shops that publish theirs."""
LINE_CHARS_MAX = 131_072
"""As the csv module has it: a longer line is no row of a log or of events."""
_SHOWN_COLUMNS_MAX = 40

_COMBINED = re.compile(
    r"(?P<address>\S+) \S+ (?P<user>.+?) \[(?P<time>[^\]]+)\] "
    r'"(?P<method>[A-Z]+) (?P<url>\S+)(?: (?P<protocol>[^" ]+))?" '
    r"(?P<status>\d{3}) (?P<bytes>\d+|-) "
    r'"(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"(?: .*)?'
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number from 1 (a header is none) and its cells."""

    number: int
    cells: Mapping[str, object]
    content: bytes  # equal for identical rows, whatever stands between the cells


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that is no event, and why."""

    number: int
    rejection: Rejection


def read_rows(lines: Iterable[str], mapping: RowMapping) -> Iterator[Row | BadRow]:
    """Yield every row of a file; empty lines are none.

    Errors: TrackerError INVALID when a column of the mapping is not in the file.
    """
    if mapping.format is Format.CSV:
        return _csv_rows(lines, mapping)
    if mapping.format is Format.JSONL:
        return _json_rows(lines, mapping)
    check_columns(COMBINED_COLUMNS, mapping)
    return _log_rows(lines)


def check_columns(columns: Iterable[str], mapping: RowMapping) -> None:
    """Refuse a mapping that names columns which the file does not have.

    Errors: TrackerError INVALID listing the file's columns.
    """
    known = list(columns)
    missing = [column for column in mapping.columns() if column not in known]
    if missing:
        rest = len(known) - _SHOWN_COLUMNS_MAX
        listed = ", ".join(known[:_SHOWN_COLUMNS_MAX]) + (f" and {rest} more" if rest > 0 else "")
        raise TrackerError(
            Code.INVALID,
            f"The file has no column {', '.join(map(repr, missing))}; it has: {listed or 'none'}. "
            "Correct the mapping.",
        )


def _csv_rows(lines: Iterable[str], mapping: RowMapping) -> Iterator[Row | BadRow]:
    reader = csv.reader(lines, delimiter=mapping.delimiter)
    header: list[str] = []
    number = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            number += 1
            yield BadRow(number, Rejection(Reason.BAD_ROW, f"{error}."))
            continue
        if cells is None:
            break
        if not cells:
            continue
        if not header:
            header = [name.strip() for name in cells]
            check_columns(header, mapping)
            continue
        number += 1
        if len(cells) != len(header):
            detail = f"It has {len(cells)} cells, the header {len(header)}."
            yield BadRow(number, Rejection(Reason.BAD_ROW, detail))
            continue
        yield Row(number, dict(zip(header, cells, strict=True)), orjson.dumps(cells))
    if not header:
        check_columns((), mapping)


def _json_rows(lines: Iterable[str], mapping: RowMapping) -> Iterator[Row | BadRow]:
    unseen = set(mapping.columns())
    known: dict[str, None] = {}
    number = 0
    for line in lines:
        text = line.strip()
        if not text:
            continue
        number += 1
        try:
            cells = orjson.loads(text) if len(text) <= LINE_CHARS_MAX else None
        except orjson.JSONDecodeError:
            cells = None
        if not isinstance(cells, dict):
            yield BadRow(number, Rejection(Reason.BAD_ROW, "The line is no JSON object."))
            continue
        if unseen:
            unseen = {name for name in unseen if find_column(cells, name) is MISSING}
            known.update(dict.fromkeys(cells))
        yield Row(number, cells, orjson.dumps(cells, option=orjson.OPT_SORT_KEYS))
    if unseen and known:
        # A key may be missing from any object, so only the whole file can say that it has none.
        check_columns([*known, *(set(mapping.columns()) - unseen)], mapping)


def _log_rows(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    number = 0
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        number += 1
        found = _COMBINED.fullmatch(text) if len(text) <= LINE_CHARS_MAX else None
        if found is None:
            detail = "The line is not in the combined format of access logs."
            yield BadRow(number, Rejection(Reason.BAD_ROW, detail))
            continue
        cells = {name: _unescape(value or "") for name, value in found.groupdict().items()}
        yield Row(number, cells, text.encode("utf-8", "surrogatepass"))


def _unescape(text: str) -> str:
    """Return a quoted text of an access log as it was; "-" stands for nothing."""
    if text == "-":
        return ""
    return _ESCAPE.sub(_plain_character, text) if "\\" in text else text


def _plain_character(found: re.Match[str]) -> str:
    escape = found[1]
    if len(escape) == 3:
        return chr(int(escape[1:], 16))
    return _ESCAPED.get(escape, escape)


@dataclass(frozen=True, slots=True)
class RowIds:
    """Makes the ids of a file's rows: the same for the same file, also months later.

    `content` is the SHA-256 of the whole (unpacked) file in hex.
    """

    mapping: RowMapping
    content: str

    def of(self, row: Row) -> str | Rejection:
        """Return the id of `row`.

        Shape: the id column's value (or the hash of several columns' values), with dedupe the
        row's hash, else `{16 hex of the file's hash}-{row number, 9 digits}`.
        """
        if self.mapping.dedupe_rows:
            return "row-" + hashlib.sha256(row.content).hexdigest()[:40]
        if not self.mapping.id:
            return f"{self.content[:16]}-{row.number:0{ROW_NUMBER_DIGITS}}"
        values = [find_column(row.cells, column) for column in self.mapping.id]
        if any(value is MISSING or value is None or value == "" for value in values):
            return Rejection(
                Reason.BAD_ROW, f"An id column ({', '.join(self.mapping.id)}) is empty."
            )
        if len(values) == 1:
            return str(values[0])
        joined = orjson.dumps([str(value) for value in values])
        return "row-" + hashlib.sha256(joined).hexdigest()[:40]
