"""A funnel: how many visitors reached each step, how fast, and where they dropped off.

Every step counts in the bucket of the entry into the funnel, so a range is about the attempts that
began in it. A visitor counts once a step, however many attempts there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracker.model.cell import ELAPSED_CLASSES_MS, TOTAL, funnel_unique
from tracker.model.clock import Clock
from tracker.model.definition import Funnel, Site
from tracker.model.record import OTHER
from tracker.model.window import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Piece
from tracker.ports.log import LogReader
from tracker.query.counts import NOBODY, Distinct, Sums
from tracker.query.figures import ratio, show_people
from tracker.query.freshness import Freshness, read_freshness
from tracker.query.known import Known
from tracker.query.mirror import Mirror
from tracker.query.question import (
    SELECTION,
    Given,
    check_names,
    number,
    one,
    read_selection,
)
from tracker.query.ranges import Range, inwards, iso, resolve
from tracker.query.report import LIMIT, LIMIT_MAX, OFFSET_MAX, collect, mark_at_least, row_values

PARAMETERS = (*SELECTION, "limit", "offset")
LIST_PARAMETERS = ("site",)

_ENTRY = (1, 0)
"""Step 1 is reached at once: elapsed class 0."""

Reached = Mapping[tuple[int, int], Mapping[str, Distinct]]
"""(step, elapsed class) → value → visitors."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A funnel as it is counted now; `since` is the definition that last changed it."""

    site: str
    funnel: Funnel
    since: int

    def unique(self, step: int, elapsed: int) -> str:
        return funnel_unique(self.funnel.name, self.since, step, elapsed)


def duration(length_ms: int) -> str:
    """Return a length of time as the configuration writes it: 90s, 15m, 24h, 7d."""
    for unit, size_ms in (("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS)):
        # A day is best known as 24 hours, as everybody writes it.
        if length_ms % size_ms == 0 and (unit != "d" or length_ms > DAY_MS):
            return f"{length_ms // size_ms}{unit}"
    return f"{length_ms // SECOND_MS}s"


ELAPSED_NAMES = (*map(duration, ELAPSED_CLASSES_MS), "longer")


async def funnel_report(
    mirror: Mirror, reader: LogReader, clock: Clock, name: str, given: Given
) -> dict[str, object]:
    """Answer how a funnel fares.

    Shape: {"site", "funnel", "within", "counted_from" (when known; null: from the start),
    "as_of", "epoch", "complete", "from", "to", "steps": [step], "matured": n} and with `by` also
    "rows": [{dimension: value, "steps", "matured", "at_least"}], "row_count". A step is {"step":
    1 …, "event", "entered" (the first alone), "reached", "step_conversion" (null for the first),
    "overall_conversion", "abandonment" (null for the last), "elapsed": {"1m": n, …, "longer": n}}:
    who got there within a minute of the entry, in more than one but within 5, and so on, each
    visitor in one. `matured` are the entrants whose whole time within the funnel had passed at
    `as_of`, of the quarter hours (or days) that lie wholly in that part of the range.
    Errors: TrackerError INVALID, NOT_FOUND, STORE_UNAVAILABLE.
    """
    check_names(given, PARAMETERS)
    await mirror.ready()
    site = mirror.known.site(one(given, "site"))
    funnel = mirror.known.funnel(site, name)
    selection = read_selection(given, site)
    limit = number(given, "limit", LIMIT, (0, LIMIT_MAX))
    offset = number(given, "offset", 0, (0, OFFSET_MAX))
    span = resolve(selection.asked, site, clock.now_ms(), with_people=True)
    fresh = read_freshness(mirror, reader, clock, site.key)
    ripe = _ripe(span, fresh, funnel, (site, clock.now_ms()))
    span, sums = await collect(mirror, clock, selection, with_people=True, beside=ripe.piece)
    # From here on nothing waits, so that all of it is of one instant.
    shape = _shape(mirror.known, site.key, name)
    fresh = read_freshness(mirror, reader, clock, site.key)
    grain = selection.dimension if selection.value is not None else TOTAL
    answer: dict[str, object] = {
        "site": site.key,
        "funnel": name,
        "within": duration(shape.funnel.within_ms),
        **_counted_from(mirror.known, shape),
        **fresh.stamp_range(span),
        **_View(shape, sums[grain], ripe).show(selection.value or TOTAL),
    }
    if selection.by:
        view = _View(shape, sums[selection.by], ripe)
        values = row_values(selection, view.values())
        values.sort(key=lambda value: (value == OTHER, -view.reached(1, value).value, value))
        rows = [
            {selection.by: value} | view.show(value) for value in values[offset : offset + limit]
        ]
        mark_at_least(mirror, selection, sums[selection.by], rows)
        answer |= {"rows": rows, "row_count": len(values)}
    return answer


async def funnel_list(mirror: Mirror, given: Given) -> dict[str, object]:
    """Answer which funnels a site has.

    Shape: {"site", "funnels": [{"name", "within", "steps": [event, …]}]}.
    Errors: TrackerError INVALID, NOT_FOUND, STORE_UNAVAILABLE.
    """
    check_names(given, LIST_PARAMETERS)
    await mirror.ready()
    site = mirror.known.site(one(given, "site"))
    funnels = [
        {
            "name": funnel.name,
            "within": duration(funnel.within_ms),
            "steps": [step.label() for step in funnel.steps],
        }
        for funnel in site.funnels
    ]
    return {"site": site.key, "funnels": funnels}


@dataclass(frozen=True, slots=True)
class _Ripe:
    """The part of a range whose entrants have had all of their time: a piece, all, or nothing."""

    piece: Piece | None
    is_all: bool = False


def _ripe(span: Range, fresh: Freshness, funnel: Funnel, now: tuple[Site, int]) -> _Ripe:
    if fresh.as_of_ms is None:
        return _Ripe(None)
    cut_ms = fresh.as_of_ms - funnel.within_ms
    if cut_ms >= span.to_ms:
        return _Ripe(None, is_all=True)
    return _Ripe(inwards(span.from_ms, cut_ms, *now) if cut_ms > span.from_ms else None)


def _shape(known: Known, key: str, name: str) -> _Shape:
    funnel = known.funnel(known.site(key), name)
    return _Shape(key, funnel, known.since.get(f"{key}/{name}", 0))


def _counted_from(known: Known, shape: _Shape) -> dict[str, object]:
    since_ms = known.counted_from.get(f"{shape.site}/{shape.funnel.name}")
    if since_ms is None:
        return {}
    return {"counted_from": iso(since_ms) if since_ms else None}


class _View:
    """A funnel over one range and dimension."""

    def __init__(self, shape: _Shape, sums: Sums, ripe: _Ripe) -> None:
        self._steps = [step.label() for step in shape.funnel.steps]
        self._is_all_ripe = ripe.is_all
        self._found: Reached = {
            (step, elapsed): sums.people(shape.unique(step, elapsed))
            for step in range(1, len(self._steps) + 1)
            for elapsed in range(1 if step == 1 else len(ELAPSED_NAMES))
        }
        entry = shape.unique(*_ENTRY)
        self._ripe = sums.people_in(entry, ripe.piece) if ripe.piece else {}

    def values(self) -> set[str]:
        """Return the values under which anybody entered."""
        return {value for value, people in self._found[_ENTRY].items() if people.value}

    def reached(self, step: int, value: str) -> Distinct:
        """Return who got as far as `step`, 1 …."""
        return sum((self._in(step, n, value) for n in range(len(ELAPSED_NAMES))), NOBODY)

    def _in(self, step: int, elapsed: int, value: str) -> Distinct:
        return self._found.get((step, elapsed), {}).get(value, NOBODY)

    def show(self, value: str) -> dict[str, object]:
        """Return the steps of one value as answers print them."""
        reached = [self.reached(step, value) for step in range(1, len(self._steps) + 1)]
        steps = [self._step(index, reached, value) for index in range(len(reached))]
        ripe = reached[0] if self._is_all_ripe else self._ripe.get(value, NOBODY)
        return {"steps": steps, "matured": show_people(ripe)}

    def _step(self, index: int, reached: list[Distinct], value: str) -> dict[str, object]:
        here = reached[index]
        after = reached[index + 1] if index + 1 < len(reached) else None
        step: dict[str, object] = {"step": index + 1, "event": self._steps[index]}
        if index == 0:
            step["entered"] = show_people(here)
        return step | {
            "reached": show_people(here),
            "step_conversion": ratio(here, reached[index - 1]) if index else None,
            "overall_conversion": ratio(here, reached[0]),
            "abandonment": None if after is None else _abandonment(here, after),
            "elapsed": {
                name: self._in(index + 1, elapsed, value).value
                for elapsed, name in enumerate(ELAPSED_NAMES)
            },
        }


def _abandonment(here: Distinct, after: Distinct) -> dict[str, object]:
    """Return 1 − after ÷ here: who left. Source: GA4, funnel exploration, abandonment rate."""
    left = max(0, here.value - after.value)  # of two estimates the later may be the larger
    spread = min(left, here.unsure + after.unsure)
    return ratio(Distinct(left - (spread + 1) // 2, spread), here)
