"""From a batch's tallies to pages: absolute values of every cell that moved.

A count at ten seconds is also one of its minute, its quarter and its day; rolling up after the
batch costs once a cell instead of once an event. Pages are the unit that is loaded and written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache

from consumers.fold import SKIP, Combo, Tally, Where
from consumers.names import Names
from consumers.sites import PLACES
from tracker.model.cell import (
    BUCKETS_PER_CONTAINER,
    COUNTERS,
    PAGE_VALUES,
    Page,
    PageKey,
    counters_container,
    decode_page,
    encode_page,
)
from tracker.model.window import KEEP_MS, SIZE_MS, SUB_DAY, Granularity

PAGES_CACHED_MAX = 4_000
"""Pages that a partition keeps decoded. A page of 200 cells takes some 20 kB in memory and most
have a handful; open buckets are a few hundred pages."""

_COARSER = {
    Granularity.SECONDS: (Granularity.MINUTE, Granularity.QUARTER, Granularity.DAY),
    Granularity.MINUTE: (Granularity.QUARTER, Granularity.DAY),
    Granularity.QUARTER: (Granularity.DAY,),
    Granularity.DAY: (),
}

PageId = tuple[str, bytes]  # container, field


class Pages:
    """The pages of one partition that moved or may move soon, as they stand in the store."""

    def __init__(self) -> None:
        self._cache: OrderedDict[PageId, Page] = OrderedDict()

    def missing(self, ids: Iterable[PageId]) -> dict[str, list[bytes]]:
        """Return which of `ids` have to be loaded, by container."""
        wanted: dict[str, list[bytes]] = {}
        for container, field in ids:
            if (container, field) not in self._cache:
                wanted.setdefault(container, []).append(field)
        return wanted

    def absorb(self, loaded: Mapping[str, Mapping[bytes, bytes]], asked: Iterable[PageId]) -> None:
        """Take loaded pages in; what was asked for and not found is empty."""
        for container, field in asked:
            if (container, field) not in self._cache:
                raw = loaded.get(container, {}).get(field)
                self._cache[container, field] = decode_page(raw) if raw else {}

    def apply(
        self, moved: Mapping[PageId, Mapping[int, int]]
    ) -> dict[str, dict[bytes, bytes | None]]:
        """Add the moved cells to their pages; return the pages' new absolute values."""
        puts: dict[str, dict[bytes, bytes | None]] = {}
        for page_id, cells in moved.items():
            page = self._cache[page_id]
            self._cache.move_to_end(page_id)
            for cell, count in cells.items():
                total = page.get(cell, 0) + count
                if total:
                    page[cell] = total
                else:
                    page.pop(cell, None)
            container, field = page_id
            puts.setdefault(container, {})[field] = encode_page(page) if page else None
        while len(self._cache) > PAGES_CACHED_MAX:
            self._cache.popitem(last=False)
        return puts

    def forget(self, container: str) -> None:
        """Drop the pages of a container that is gone."""
        for page_id in [key for key in self._cache if key[0] == container]:
            del self._cache[page_id]


def moved_cells(tallies: Mapping[Where, Tally], names: Names) -> dict[PageId, dict[int, int]]:
    """Return what the tallies move, cell by cell: page → column and slot → count."""
    moved: dict[PageId, dict[int, int]] = {}
    for where, tally in tallies.items():
        for (granularity, bucket), cells in _by_bucket(tally, names).items():
            container = counters_container(granularity, bucket)
            pages: dict[int, dict[int, int]] = {}
            for cell, count in cells.items():
                if count:
                    address, column = cell >> _COLUMN_BITS, cell & _COLUMN_MASK
                    page = pages.setdefault(address // PAGE_VALUES, {})
                    page[column * PAGE_VALUES + address % PAGE_VALUES] = count
            for number, page in pages.items():
                place, index = divmod(number, _PAGES_A_PLACE)
                field = PageKey(*where, PLACES[place], bucket, index).field()
                moved[container, field] = page
    return moved


# While a batch is added up a cell is one integer: place, value number, column. 2^24 values and
# 2^20 columns are thousands of times their caps.
_COLUMN_BITS = 20
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1
_VALUES_A_PLACE = 1 << 24
_PAGES_A_PLACE = _VALUES_A_PLACE // PAGE_VALUES


@lru_cache(maxsize=20_000)
def _addresses(combo: Combo) -> tuple[int, ...]:
    """Return the cells of `combo` in column 0, one for each dimension that it counts in."""
    return tuple(
        place * _VALUES_A_PLACE + number << _COLUMN_BITS
        for place, number in enumerate(combo)
        if number != SKIP
    )


Bucket = tuple[Granularity, int]
Cells = dict[int, int]


def _by_bucket(tally: Tally, names: Names) -> dict[Bucket, Cells]:
    """Expand every count into its cells, once, and roll the cells up into coarser buckets."""
    finest: dict[tuple[Granularity, int, int], Cells] = {}
    for key, count in tally.rolled.items():
        _expand(finest.setdefault(key[:3], {}), key[3], names.column(key[4]), count)
    buckets: dict[Bucket, Cells] = {}
    for (granularity, bucket, day), cells in finest.items():
        for target in (granularity, *_COARSER[granularity]):
            place = (target, _coarse(granularity, bucket, target, day))
            into = buckets.get(place)
            if into is None:
                buckets[place] = cells.copy()
                continue
            for cell, count in cells.items():
                into[cell] = into.get(cell, 0) + count
    for key, count in tally.single.items():
        _expand(buckets.setdefault(key[:2], {}), key[3], names.column(key[4]), count)
    return buckets


def _expand(into: Cells, combo: Combo, column: int, count: int) -> None:
    for address in _addresses(combo):
        cell = address | column
        into[cell] = into.get(cell, 0) + count


def _coarse(finest: Granularity, bucket: int, target: Granularity, day: int) -> int:
    if target is Granularity.DAY:
        return day
    return bucket * SIZE_MS[finest] // SIZE_MS[target]


def expired_periods(oldest: Mapping[str, int], horizon_ms: int) -> tuple[list[str], dict[str, int]]:
    """Return the counter containers that nothing reads any more, and the new oldest periods.

    Shape: `oldest` and the answer map a granularity to the first period that may exist.
    """
    gone: list[str] = []
    kept: dict[str, int] = {}
    for granularity in SUB_DAY:
        span_ms = SIZE_MS[granularity] * BUCKETS_PER_CONTAINER[granularity]
        first_kept = (horizon_ms - KEEP_MS[granularity]) // span_ms
        start = oldest.get(granularity.value, first_kept)
        gone += [f"{COUNTERS}{granularity}:{period}" for period in range(start, first_kept)]
        kept[granularity.value] = max(start, first_kept)
    return gone, kept
