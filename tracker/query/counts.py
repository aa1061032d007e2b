"""Sums over the buckets of a range, by value: events, money, and distinct visitors.

Only the wanted columns are summed. Nothing here knows a metric's formula or how an answer looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tracker.model.cell import GAP_NEW, gap_class_max, last_column
from tracker.model.window import Granularity, Piece
from tracker.query.pages import Group
from tracker.query.ranges import People, Range


@dataclass(frozen=True, slots=True)
class Distinct:
    """A number of distinct visitors: `sure`, and up to `unsure` more that may be repeats."""

    sure: int = 0
    unsure: int = 0

    @property
    def value(self) -> int:
        """Return the middle of what it may be."""
        return self.sure + (self.unsure + 1) // 2

    @property
    def error(self) -> float:
        """Return the largest relative error of `value`: 0 when it is exact."""
        return (self.unsure + 1) // 2 / self.value if self.unsure else 0.0

    def __add__(self, other: Distinct) -> Distinct:
        """Return the number of two sets of visitors that share nobody."""
        return Distinct(self.sure + other.sure, self.unsure + other.unsure)


NOBODY = Distinct()
Counts = dict[str, int]
"""Value text → count."""


class Sums:
    """The groups of a range, from which columns are summed by value."""

    def __init__(self, groups: Iterable[Group], span: Range) -> None:
        """Take the groups of one site and dimension, of any audiences, that `span` needs."""
        self._by_bucket: dict[tuple[Granularity, int], list[Group]] = {}
        for group in groups:
            place = (group.key.granularity, group.key.bucket)
            self._by_bucket.setdefault(place, []).append(group)
        self._span = span
        self._counted = list(self._of(span.pieces))

    def _of(self, pieces: Sequence[Piece]) -> Iterable[Group]:
        for piece in pieces:
            for bucket in range(piece.first, piece.stop):
                yield from self._by_bucket.get((piece.granularity, bucket), ())

    def count(self, column: str) -> Counts:
        """Return how often something happened."""
        return _summed(self._counted, column)

    def money(self, prefix: str) -> dict[str, Counts]:
        """Return value → currency → micros, without zeros."""
        columns = {column for group in self._counted for column in group.families.get(prefix, ())}
        found: dict[str, Counts] = {}
        for column in sorted(columns):
            currency = column.rpartition(":")[2]
            for value, micros in _summed(self._counted, column).items():
                if micros:
                    found.setdefault(value, {})[currency] = micros
        return found

    def people(self, unique: str) -> dict[str, Distinct]:
        """Return how many distinct visitors did `unique` in the range."""
        if self._span.people is People.GAPS:
            return self.people_in(unique, self._span.people_pieces[0])
        column = last_column(unique)
        summed = _summed(self._of(self._span.people_pieces), column)
        return {value: Distinct(count) for value, count in summed.items()}

    def people_in(self, unique: str, piece: Piece) -> dict[str, Distinct]:
        """Return how many distinct visitors did `unique` in the quarters or days of `piece`.

        Who did it in a bucket counts there if the time before lies before the piece.
        """
        sure: Counts = {}
        unsure: Counts = {}
        family = unique + ".gap"
        for bucket in range(piece.first, piece.stop):
            into = bucket - piece.first
            for group in self._by_bucket.get((piece.granularity, bucket), ()):
                for column in group.families.get(family, ()):
                    bounds = _gap_bounds(column)
                    if bounds is not None and bounds[1] <= into:
                        continue
                    sums = sure if bounds is None or bounds[0] > into else unsure
                    for value, count in group.cells[column].items():
                        sums[value] = sums.get(value, 0) + count
        return {
            value: Distinct(sure.get(value, 0), unsure.get(value, 0))
            for value in sure.keys() | unsure.keys()
        }

    def folded(self) -> set[int]:
        """Return the partitions that folded values of this dimension into `__other__`."""
        return {number for group in self._counted for number in group.folded}


def _summed(groups: Iterable[Group], column: str) -> Counts:
    sums: Counts = {}
    for group in groups:
        counts: Mapping[str, int] | None = group.cells.get(column)
        if counts:
            for value, count in counts.items():
                sums[value] = sums.get(value, 0) + count
    return sums


@lru_cache(maxsize=65_536)
def _gap_bounds(column: str) -> tuple[int, int] | None:
    """Return the smallest and largest gap that a column holds, None for "never before".

    Its column names are few: some 500 classes for each unique of each site.
    """
    text = column.rpartition(":")[2]
    if text == GAP_NEW:
        return None
    lower = int(text)
    return lower, gap_class_max(lower)
