"""Pages of all partitions, merged to counts by column and value.

A **group** is everything counted under one (granularity, bucket, site, audience, dimension). Its
pages come from 32 partitions that number values and columns each in its own way, so merging goes
through texts. Merging is lazy and by difference: a page that was written again costs its changed
cells, once somebody asks. Pure: no store, no clock; `tracker.query.mirror` feeds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tracker.model.cell import (
    COLUMNS,
    OTHER_NUMBER,
    PAGE_VALUES,
    TOTAL,
    Audience,
    Page,
    container_span,
    decode_page,
    name_field,
    read_name_field,
    read_page_key,
)
from tracker.model.record import OTHER
from tracker.model.window import Granularity

Place = tuple[int, int]  # (partition, page)
Missing = list[tuple[int, bytes]]
"""(partition, field of NAMES) of texts that a page uses and that were not read yet."""

_EMPTY: Page = {}


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Which group."""

    granularity: Granularity
    bucket: int
    site: str
    audience: Audience
    dimension: str


class Names:
    """What the numbers of every partition stand for."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, str, str], dict[int, str]] = {}

    def replace(self, partition: int, fields: Mapping[bytes, bytes]) -> bool:
        """Take these as all texts of a partition; tell whether any number changed its meaning."""
        old = {key: self._texts.pop(key) for key in list(self._texts) if key[0] == partition}
        self.put(partition, fields)
        return any(not texts.items() <= self.of(*key).items() for key, texts in old.items())

    def put(self, partition: int, fields: Mapping[bytes, bytes]) -> None:
        """Take over texts that were given a number."""
        for field, raw in fields.items():
            site, space, number = read_name_field(field)
            self._texts.setdefault((partition, site, space), {})[number] = raw.decode()

    def of(self, partition: int, site: str, space: str) -> Mapping[int, str]:
        """Return number → text of one name space of one partition."""
        return self._texts.get((partition, site, space), {})

    def has(self, fields: Missing) -> bool:
        """Tell whether all of these were read by now."""
        found = ((partition, *read_name_field(field)) for partition, field in fields)
        return all(number in self.of(partition, site, s) for partition, site, s, number in found)

    def knows(self, partition: int, site: str, space: str, text: str) -> bool:
        """Tell whether a partition gave `text` a number."""
        return text in self.of(partition, site, space).values()


class Group:
    """One group: its raw pages, and what they add up to.

    `cells` is column → value text → count, without zeros; `families` lists the columns that
    begin alike (`revenue` → `revenue:USD`, `visitors.gap` → `visitors.gap:new`, …); `folded`
    names the partitions that count something under `__other__` here.
    """

    __slots__ = ("_dirty", "_merged", "_pages", "cells", "families", "folded", "key")

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.cells: dict[str, dict[str, int]] = {}
        self.families: dict[str, list[str]] = {}
        self.folded: set[int] = set()
        self._pages: dict[Place, bytes] = {}
        self._merged: dict[Place, bytes] = {}
        self._dirty: set[Place] = set()

    @property
    def size(self) -> int:
        """Return the number of raw pages held."""
        return len(self._pages)

    @property
    def is_dirty(self) -> bool:
        """Tell whether pages changed since the last merge."""
        return bool(self._dirty)

    def put(self, place: Place, raw: bytes | None) -> None:
        """Take over a page as it is now stored, None when it is gone."""
        if raw == self._pages.get(place):
            return
        if raw is None:
            del self._pages[place]
        else:
            self._pages[place] = raw
        self._dirty.add(place)

    def keep(self, partition: int, pages: Iterable[int]) -> None:
        """Let go of a partition's pages but for `pages`."""
        kept = set(pages)
        for place in list(self._pages):
            if place[0] == partition and place[1] not in kept:
                self.put(place, None)

    def renew(self) -> None:
        """Forget what was merged: numbers may stand for other texts now."""
        self.cells, self.families, self.folded = {}, {}, set()
        self._merged = {}
        self._dirty = set(self._pages)

    def merge(self, names: Names) -> Missing:
        """Bring `cells` up to date; return the names without which some pages had to wait."""
        missing: Missing = []
        for place in tuple(self._dirty):
            lacking = self._merge_page(names, place)
            if lacking:
                missing += lacking
            else:
                self._dirty.discard(place)
        return missing

    def _merge_page(self, names: Names, place: Place) -> Missing:
        partition, page = place
        raw, old_raw = self._pages.get(place), self._merged.get(place)
        fresh = _EMPTY if raw is None else decode_page(raw)
        moved = fresh if old_raw is None else _difference(fresh, decode_page(old_raw))
        key = self.key
        texts = names.of(partition, key.site, key.dimension)
        columns = names.of(partition, "", COLUMNS)
        lacking = _lacking(key, page, moved, (texts, columns))
        if lacking:
            return [(partition, field) for field in lacking]
        values = _slots(key, page, texts)
        at, counts = -1, {}
        for cell, count in moved.items():
            if cell // PAGE_VALUES != at:  # a page is sorted by column: its dictionary is reused
                at = cell // PAGE_VALUES
                counts = self._counts(columns[at])
            value = values[cell % PAGE_VALUES]
            count += counts.get(value, 0)  # noqa: PLW2901 - the inmost loop of a cold report
            if count:
                counts[value] = count
            else:
                counts.pop(value, None)
        if raw is None:
            self._merged.pop(place, None)
        else:
            self._merged[place] = raw
        if page == 0 and key.dimension != TOTAL:
            has_other = any(cell % PAGE_VALUES == OTHER_NUMBER for cell in fresh)
            (self.folded.add if has_other else self.folded.discard)(partition)
        return []

    def _counts(self, column: str) -> dict[str, int]:
        counts = self.cells.get(column)
        if counts is None:
            counts = self.cells[column] = {}
            family, colon, _ = column.rpartition(":")
            if colon:
                self.families.setdefault(family, []).append(column)
        return counts


def _difference(fresh: Page, old: Page) -> Page:
    """Return what has to be added to `old`, in order of its cells."""
    moved = {cell: fresh.get(cell, 0) - old.get(cell, 0) for cell in fresh.keys() | old.keys()}
    return {cell: moved[cell] for cell in sorted(moved) if moved[cell]}


def _slots(key: GroupKey, page: int, texts: Mapping[int, str]) -> dict[int, str]:
    """Return slot → value text of a page."""
    first = page * PAGE_VALUES
    other = {} if page else {OTHER_NUMBER: TOTAL if key.dimension == TOTAL else OTHER}
    numbers = range(max(1, first), first + PAGE_VALUES)
    return other | {number - first: texts[number] for number in numbers if number in texts}


def _lacking(
    key: GroupKey, page: int, cells: Page, known: tuple[Mapping[int, str], Mapping[int, str]]
) -> list[bytes]:
    """Return the fields of NAMES that `cells` need and that are not known."""
    texts, columns = known
    first = page * PAGE_VALUES
    used = {first + cell % PAGE_VALUES for cell in cells} - {OTHER_NUMBER} - texts.keys()
    lacking = [name_field(key.site, key.dimension, number) for number in used]
    used = {cell // PAGE_VALUES for cell in cells} - columns.keys()
    return lacking + [name_field("", COLUMNS, number) for number in used]


class Container:
    """One counters container of all partitions, as groups."""

    def __init__(self, name: str) -> None:
        self.name = name
        span = container_span(name)
        if span is None:
            raise AssertionError(f"{name} holds no counters")
        self._granularity = span[0]
        self._groups: dict[GroupKey, Group] = {}

    @property
    def size(self) -> int:
        """Return the number of raw pages held."""
        return sum(group.size for group in self._groups.values())

    def group(self, key: GroupKey) -> Group | None:
        """Return a group, None when nothing was ever counted in it."""
        return self._groups.get(key)

    def put(self, partition: int, fields: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take over pages of one partition, None for those that are gone."""
        for field, raw in fields:
            key, page = self._place(field)
            group = self._groups.get(key)
            if group is None:
                if raw is None:
                    continue
                group = self._groups[key] = Group(key)
            group.put((partition, page), raw)

    def replace(self, partition: int, fields: Mapping[bytes, bytes]) -> None:
        """Take these as all pages of one partition."""
        self.put(partition, fields.items())
        kept: dict[GroupKey, list[int]] = {}
        for field in fields:
            key, page = self._place(field)
            kept.setdefault(key, []).append(page)
        for key, group in self._groups.items():
            group.keep(partition, kept.get(key, ()))

    def _place(self, field: bytes) -> tuple[GroupKey, int]:
        page = read_page_key(field)
        granularity = self._granularity
        key = GroupKey(granularity, page.bucket, page.site, page.audience, page.dimension)
        return key, page.page

    def renew(self) -> None:
        """Merge everything anew when it is next asked for."""
        for group in self._groups.values():
            group.renew()
