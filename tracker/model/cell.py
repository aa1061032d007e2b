"""The layout of counters: which cell holds which number, and how cells are packed into pages.

A **cell** is one integer: (site, audience, dimension, value, bucket, column). The value is a
number that its partition gave to the text in log order (container NAMES); the column likewise.
64 values of one (site, audience, dimension, bucket) share a **page**, the unit that is written.
Consumers write pages, the query process reads them; nobody else knows the bytes.

Uniques are exact without sketches. For each thing counted once a visitor (`visitors`,
`converters`, a funnel's steps) two columns are kept:
    `X.last`     how many visitors did it last in this bucket. A visitor who does it again moves
                 (−1 there, +1 here), so the sum over a window that ends now is exact.
    `X.gap:N`    how many did it in this bucket and before that last N buckets earlier (`new`:
                 never before). Who did it before the range began is counted at the first bucket
                 inside, so for a range the sum over its buckets of the gaps that reach back
                 before its start is exact while N is not rounded, and bounded where it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tracker.model.window import Granularity

# Containers of a partition. Those that begin with "_" are the owner's own and are in no notice.
VISITORS = "_visitors"
ORDERS = "_orders"
IMPORTED_IDS = "_imported"
OWNER = "_owner"  # marks, admitted counts and whatever else the owner keeps: small
NAMES = "names"
LEDGER = "ledger"
DEFINITIONS = "definitions"
QUARANTINE = "quarantine"
COUNTERS = "c:"  # prefix

PAGE_VALUES = 64
TOTAL = ""
"""The dimension of the site's own grain: one value, number 0."""
COLUMNS = "#column"
"""The name space of column names, beside those of the dimensions; its site is empty."""
OTHER_NUMBER = 0
"""In every dimension value number 0 is `__other__`; admitted values count from 1."""

BUCKETS_PER_CONTAINER = {
    Granularity.SECONDS: 60,  # ten minutes
    Granularity.MINUTE: 120,  # two hours
    Granularity.QUARTER: 96,  # a day
    Granularity.DAY: 32,  # a month
}

GAP_NEW = "new"
GAP_EXACT_MAX = 63
"""Gaps up to here are exact: two months of days. Beyond, 32 classes an octave: 3 % at the most."""
_GAP_CLASS_BITS = 5


class Audience(StrEnum):
    """People and bots are counted apart, as if on two sites."""

    PEOPLE = "p"
    BOTS = "b"


def gap_class(buckets: int) -> int:
    """Return the lower bound of the class that a gap of `buckets` ≥ 1 falls into."""
    if buckets <= GAP_EXACT_MAX:
        return buckets
    step = 1 << (buckets.bit_length() - 1 - _GAP_CLASS_BITS)
    return buckets // step * step


def gap_class_max(lower: int) -> int:
    """Return the largest gap of the class whose lower bound is `lower`."""
    if lower <= GAP_EXACT_MAX:
        return lower
    return lower + (1 << (lower.bit_length() - 1 - _GAP_CLASS_BITS)) - 1


def last_column(unique: str) -> str:
    """Name the column of who did `unique` last in a bucket."""
    return unique + ".last"


def gap_column(unique: str, gap: int | None) -> str:
    """Name the column of who did `unique` again after `gap` buckets (None: never before)."""
    return f"{unique}.gap:{GAP_NEW if gap is None else gap_class(gap)}"


ELAPSED_CLASSES_MS = (
    60_000,
    300_000,
    900_000,
    3_600_000,
    21_600_000,
    86_400_000,
    604_800_000,
)
"""Time from a funnel's entry to a step: within 1 m, 5 m, 15 m, 1 h, 6 h, 24 h, 7 d, or longer."""


def elapsed_class(elapsed_ms: int) -> int:
    """Return the class (0 … 7) of a time from entry to step; bounds are inclusive."""
    return bisect_left(ELAPSED_CLASSES_MS, elapsed_ms)


def funnel_unique(funnel: str, since: int, step: int, elapsed: int) -> str:
    """Name the unique "reached `step` of `funnel` in elapsed class `elapsed`".

    `since` is the number of the definition that last changed the funnel: another definition is
    another funnel, and its numbers never mix with the old ones.
    """
    return f"funnel:{funnel}@{since}:{step}:{elapsed}"


def counters_container(granularity: Granularity, bucket: int) -> str:
    """Name the container that holds the pages of `bucket`."""
    return f"{COUNTERS}{granularity}:{bucket // BUCKETS_PER_CONTAINER[granularity]}"


def container_span(container: str) -> tuple[Granularity, int, int] | None:
    """Return (granularity, first bucket, stop bucket) of a counters container, None of others."""
    if not container.startswith(COUNTERS):
        return None
    _, granularity, period = container.split(":")
    size = BUCKETS_PER_CONTAINER[Granularity(granularity)]
    return Granularity(granularity), int(period) * size, (int(period) + 1) * size


@dataclass(frozen=True, slots=True)
class PageKey:
    """The field of one page in its container."""

    site: str
    audience: Audience
    dimension: str
    bucket: int
    page: int

    def field(self) -> bytes:
        """Return the field name in the store."""
        parts = (self.site, self.audience, self.dimension, str(self.bucket), str(self.page))
        return "\0".join(parts).encode()


def read_page_key(field: bytes) -> PageKey:
    """Return what `PageKey.field` wrote."""
    site, audience, dimension, bucket, page = field.decode().split("\0")
    return PageKey(site, Audience(audience), dimension, int(bucket), int(page))


def name_field(site: str, space: str, number: int) -> bytes:
    """Name the field in NAMES that holds the text of value `number` of a dimension."""
    return f"{site}\0{space}\0{number}".encode()


def read_name_field(field: bytes) -> tuple[str, str, int]:
    """Return (site, space, number) of a field of NAMES."""
    site, space, number = field.decode().split("\0")
    return site, space, int(number)


Page = dict[int, int]
"""column number × PAGE_VALUES + slot → count. No zeros."""


def encode_page(page: Mapping[int, int]) -> bytes:
    """Return the bytes of a page: equal pages make equal bytes.

    Shape: for each key ascending: varint(key − previous key), varint(zigzag(count)).
    """
    out = bytearray()
    previous = 0
    for key in sorted(page):
        count = page[key]
        step, packed = key - previous, count << 1 if count >= 0 else ~(count << 1)
        previous = key
        # Most steps and counts fit one byte: a call for each would cost more than the rest.
        if step < 0x80:
            out.append(step)
        else:
            _put(out, step)
        if packed < 0x80:
            out.append(packed)
        else:
            _put(out, packed)
    return bytes(out)


def decode_page(raw: bytes) -> Page:
    """Return the page that `raw` holds."""
    page: Page = {}
    numbers = _varints(raw)
    key = 0
    for step, packed in zip(numbers, numbers, strict=True):
        key += step
        page[key] = ~(packed >> 1) if packed & 1 else packed >> 1
    return page


def _put(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _varints(raw: bytes) -> Iterable[int]:
    number = shift = 0
    for byte in raw:
        if byte & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
        else:
            yield number | byte << shift
            number = shift = 0
