"""The report: metrics of a site over a range, one row a value of a dimension, and the totals.

Totals come from the site's own grain, never from adding up rows: people are counted once in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tracker.errors import Code, TrackerError
from tracker.model.cell import TOTAL
from tracker.model.clock import Clock
from tracker.model.metric import METRICS, Sort, Wanted, parse_metric
from tracker.model.record import OTHER
from tracker.model.window import Granularity, Piece
from tracker.ports.log import LogReader
from tracker.query.counts import Sums
from tracker.query.figures import Figures, leaves, read_figures
from tracker.query.freshness import read_freshness
from tracker.query.known import listed, short
from tracker.query.mirror import Mirror
from tracker.query.pages import GroupKey
from tracker.query.question import (
    SELECTION,
    Given,
    Selection,
    check_available,
    check_names,
    number,
    one,
    read_selection,
)
from tracker.query.ranges import Range, resolve

DEFAULT_METRICS = "views,visitors,sessions,conversions,orders,revenue,cr"
METRICS_MAX = 64
LIMIT = 1_000
LIMIT_MAX = 100_000
OFFSET_MAX = 10_000_000

PARAMETERS = (
    *SELECTION,
    *("metrics", "sort", "search", "limit", "offset"),
    *("model", "basis", "compare", "currency"),
)

PLAN_TRIES = 3
"""A range that ends now moves on with the clock: while a cold read waits, it may need a bucket
more. The second try is warm."""


@dataclass(frozen=True, slots=True)
class Sorting:
    """By what rows are sorted: a metric, or their value when `metric` is None."""

    metric: Wanted | None
    descending: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What a report shows of its rows."""

    metrics: tuple[Wanted, ...]
    sorting: Sorting
    search: str
    limit: int
    offset: int


async def report(
    mirror: Mirror, reader: LogReader, clock: Clock, given: Given
) -> dict[str, object]:
    """Answer a report.

    Shape: {"site", "as_of" (null when nothing live was read), "epoch", "complete", "from", "to",
    "rows": [{dimension: value, metric: figure, …, "at_least": true where a cap folded part of
    the row away}], "row_count" (before limit and offset), "totals": {metric: figure}}; "stale":
    true when the store is away and these are the last known numbers. Figures are as
    `tracker.query.figures` prints them. Without `by` there are no rows; with `where` the totals
    are those of that value; `search` keeps rows whose value holds the text, in any case.
    Errors: TrackerError INVALID, NOT_FOUND, STORE_UNAVAILABLE.
    """
    check_names(given, PARAMETERS)
    check_available(given)
    await mirror.ready()
    site = mirror.known.site(one(given, "site"))
    selection = read_selection(given, site)
    table = _read_table(given, selection)
    wanted = leaves(table.metrics)
    with_people = any(leaf.metric.sort is Sort.UNIQUE for leaf in wanted)
    span, by_dimension = await collect(mirror, clock, selection, with_people=with_people)
    fresh = read_freshness(mirror, reader, clock, site.key)
    figures = {
        dimension: read_figures(sums, wanted, site.currency)
        for dimension, sums in by_dimension.items()
    }
    rows: list[dict[str, object]] = []
    row_count = 0
    if selection.by:
        sums = by_dimension[selection.by]
        rows, row_count = _rows(selection, table, figures[selection.by])
        mark_at_least(mirror, selection, sums, rows)
    grain = selection.dimension if selection.value is not None else TOTAL
    totals = {
        metric.text: figures[grain].show(metric, selection.value or TOTAL)
        for metric in table.metrics
    }
    return {
        "site": site.key,
        **fresh.stamp_range(span),
        "rows": rows,
        "row_count": row_count,
        "totals": totals,
    }


async def collect(
    mirror: Mirror,
    clock: Clock,
    selection: Selection,
    *,
    with_people: bool,
    beside: Piece | None = None,
) -> tuple[Range, dict[str, Sums]]:
    """Return the range, and by dimension the sums of its groups, all of one instant.

    Whoever awaits nothing after this reads metas and names of the same instant. `beside` adds
    buckets that the sums can be asked about apart from the range.
    """
    dimensions = {selection.dimension}
    if selection.value is None:
        dimensions.add(TOTAL)
    asked, site = selection.asked, selection.site
    span = resolve(asked, site, clock.now_ms(), with_people=with_people)
    for _ in range(PLAN_TRIES):
        groups = await mirror.groups(_keys(selection, dimensions, span.buckets(beside)))
        planned, span = span, resolve(asked, site, clock.now_ms(), with_people=with_people)
        if span == planned:
            break
    else:
        raise TrackerError(
            Code.STORE_UNAVAILABLE, "The store answers too slowly for a range that ends now."
        )
    found = {
        dimension: Sums((group for group in groups if group.key.dimension == dimension), span)
        for dimension in dimensions
    }
    return span, found


def _keys(
    selection: Selection, dimensions: Iterable[str], buckets: Iterable[tuple[Granularity, int]]
) -> list[GroupKey]:
    return [
        GroupKey(granularity, bucket, selection.site.key, audience, dimension)
        for granularity, bucket in buckets
        for audience in selection.audiences
        for dimension in dimensions
    ]


def row_values(selection: Selection, values: set[str]) -> list[str]:
    """Return the values that get a row, `__other__` last."""
    if selection.value is not None:
        values = values & {selection.value}
    return sorted(values, key=lambda value: (value == OTHER, value))


def mark_at_least(
    mirror: Mirror, selection: Selection, sums: Sums, rows: Sequence[dict[str, object]]
) -> None:
    """Mark the rows of which some partition may have folded a part into `__other__`.

    A partition that folds values away did so with a value exactly when it gave it no number.
    """
    folded = sums.folded()
    for row in rows if folded else ():
        value = str(row[selection.by])
        if value == OTHER or not all(
            mirror.names.knows(number, selection.site.key, selection.by, value) for number in folded
        ):
            row["at_least"] = True


def _rows(
    selection: Selection, table: Table, figures: Figures
) -> tuple[list[dict[str, object]], int]:
    values = row_values(selection, figures.values())
    needle = table.search.casefold()
    if needle:
        values = [value for value in values if needle in value.casefold()]
    ordered = _ordered(values, table.sorting, figures)
    page = ordered[table.offset : table.offset + table.limit]
    rows = [
        {selection.by: value}
        | {metric.text: figures.show(metric, value) for metric in table.metrics}
        for value in page
    ]
    return rows, len(values)


def _ordered(values: Sequence[str], sorting: Sorting, figures: Figures) -> list[str]:
    """Sort by the metric, equal ones by value; unknown figures and `__other__` come last."""
    named = [value for value in values if value != OTHER]
    others = [value for value in values if value == OTHER]
    if sorting.metric is None:
        return sorted(named, reverse=sorting.descending) + others
    ranks: Mapping[str, Decimal | None] = {
        value: figures.rank(sorting.metric, value) for value in named
    }
    unknown = [value for value in named if ranks[value] is None]
    known = [value for value in named if ranks[value] is not None]
    known.sort(key=lambda value: ranks[value] or Decimal(0), reverse=sorting.descending)
    return known + unknown + others


def _read_table(given: Given, selection: Selection) -> Table:
    metrics = _metrics(one(given, "metrics"), selection)
    return Table(
        metrics,
        _sorting(one(given, "sort"), metrics, selection),
        one(given, "search"),
        number(given, "limit", LIMIT, (0, LIMIT_MAX)),
        number(given, "offset", 0, (0, OFFSET_MAX)),
    )


def _metrics(text: str, selection: Selection) -> tuple[Wanted, ...]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        metrics = tuple(filter(None, map(parse_metric, DEFAULT_METRICS.split(","))))
        if selection.asked.tz in ("", selection.site.timezone):
            return metrics
        # People are counted in the site's zone alone: nobody asked for them in another.
        return tuple(metric for metric in metrics if metric.metric.sort is not Sort.UNIQUE)
    if len(names) > METRICS_MAX:
        raise TrackerError(Code.INVALID, f"A report shows at most {METRICS_MAX} metrics.")
    found = [(name, parse_metric(name)) for name in names]
    for name, metric in found:
        if metric is None:
            raise TrackerError(
                Code.INVALID,
                f"There is no metric {short(name)!r} here; there are {listed(METRICS)}, and "
                f"{listed(f'{key}:NAME' for key, known in METRICS.items() if known.named)}.",
            )
    return tuple(metric for _, metric in found if metric is not None)


def _sorting(text: str, metrics: Sequence[Wanted], selection: Selection) -> Sorting:
    if not text:
        return Sorting(metrics[0], descending=True)
    name = text.removeprefix("-").strip()
    descending = text.startswith("-")
    for metric in metrics:
        if metric.text == name:
            return Sorting(metric, descending)
    if name and name == selection.by:
        return Sorting(None, descending)
    names = [metric.text for metric in metrics] + ([selection.by] if selection.by else [])
    raise TrackerError(
        Code.INVALID,
        f"sort={short(text)} is none of the report's columns: {listed(names)}; a minus before "
        "it puts the largest first.",
    )
