"""What a stored value means, in words that two stores can be compared by.

Numbers that a partition gives to texts differ from one replay to the next when nothing but their
order of arrival says so (columns of one batch); a comparison is therefore made by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from consumers.partition import HELD
from consumers.state import unpack_order, unpack_visitor
from tracker.model.cell import (
    COLUMNS,
    COUNTERS,
    NAMES,
    ORDERS,
    OTHER_NUMBER,
    OWNER,
    PAGE_VALUES,
    TOTAL,
    VISITORS,
    decode_page,
    read_name_field,
    read_page_key,
)
from tracker.model.record import OTHER


class Named:
    """The texts of one partition's numbers."""

    def __init__(self, stored: Mapping[bytes, bytes]) -> None:
        self._texts = {read_name_field(field): raw.decode() for field, raw in stored.items()}

    def value(self, site: str, dimension: str, number: int) -> str:
        """Return the text of a value."""
        if dimension == TOTAL:
            return "all"
        if number == OTHER_NUMBER:
            return OTHER
        return self._texts.get((site, dimension, number), f"#{number}")

    def column(self, number: int) -> str:
        """Return the text of a column."""
        return self._texts.get(("", COLUMNS, number), f"#{number}")


def meaning_of(container: str, fields: Mapping[bytes, bytes], named: Named) -> dict[str, str]:
    """Return every value of a container in words: what it is of → what it is."""
    if container.startswith(COUNTERS):
        return _cells(fields, named)
    if container.startswith(VISITORS):
        return {field.hex(): repr(unpack_visitor(raw)) for field, raw in fields.items()}
    if container == ORDERS:
        return {field.hex(): repr(unpack_order(raw)) for field, raw in fields.items()}
    if container == NAMES:
        return _names(fields)
    if container == OWNER:
        # Which containers may exist is housekeeping; everything else is state.
        return {field.decode(): raw.decode() for field, raw in fields.items() if field != HELD}
    return {field.decode("ascii", "backslashreplace"): _text(raw) for field, raw in fields.items()}


def _cells(fields: Mapping[bytes, bytes], named: Named) -> dict[str, str]:
    cells = {}
    for field, raw in fields.items():
        key = read_page_key(field)
        for cell, count in decode_page(raw).items():
            column, slot = divmod(cell, PAGE_VALUES)
            value = named.value(key.site, key.dimension, key.page * PAGE_VALUES + slot)
            place = f"{key.dimension}={value}" if key.dimension else "all"
            name = named.column(column)
            cells[f"{key.site} {key.audience} bucket {key.bucket} {place} {name}"] = str(count)
    return cells


def _names(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the admitted values; columns are only names for what is compared anyway."""
    named = {}
    for field, raw in fields.items():
        site, space, number = read_name_field(field)
        if space != COLUMNS:
            named[f"{site} {space} {number}"] = raw.decode()
    return named


def _text(raw: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONDecodeError:
        return raw.hex()
