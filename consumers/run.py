"""One pass over a visitor's events: what the steps of all visitor folds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from consumers.fold import SKIP, Combo, Sink
from consumers.sites import PLACES, SiteView
from consumers.state import Recent, Visitor

KEEP_CREDIT = 1 << 62
"""As `Run.frozen_ms`: later than any time, so that every conversion keeps its credit."""


@dataclass(slots=True)
class Run:
    """One pass over a visitor's events: what it needs, and what it gathers."""

    view: SiteView
    visitor: Visitor
    sink: Sink
    frozen_ms: int = 0  # conversions received before this keep the credit that they have
    claims: dict[tuple[str, str], Recent] = field(default_factory=dict)
    """Orders with an id that were converted in this pass, by (order id, event id)."""

    def combo(self, traffic: int, client: int) -> Combo:
        """Return the combo of two indexes into the visitor's tables."""
        return self.view.combo(self.visitor.traffics[traffic], self.visitor.clients[client])


def index_of(table: list[list[int]], numbers: list[int]) -> int:
    """Return the place of `numbers` in a visitor's table, adding it when it is new."""
    try:
        return table.index(numbers)
    except ValueError:
        table.append(numbers)
        return len(table) - 1


def own_traffic(run: Run, event: Recent) -> int:
    """Return the event's own traffic, numbering it now when nothing needed it before.

    Most events never need theirs: numbering every page that was viewed would fill the landing
    pages with pages on which nobody landed.
    """
    if event.traffic < 0:
        numbers = run.view.default_traffic(event.page)
        event.traffic = index_of(run.visitor.traffics, numbers)
        event.page = ""
    return event.traffic


NOWHERE: Combo = (SKIP,) * len(PLACES)


class Entry(Protocol):
    """Something that counted before under the values of its traffic and client."""

    traffic: int
    client: int
    t_ms: int


E = TypeVar("E", bound=Entry)


def previous_by_dimension(
    combo: Combo, entries: Sequence[E], combo_of: Callable[[int, int], Combo]
) -> list[tuple[Combo, E | None]]:
    """Cut `combo` into parts by the latest entry that counted under the same value there.

    A visitor counts once in each row, and rows differ by dimension: somebody who came by two
    campaigns with one device is known to the device and new to the second campaign.
    """
    parts: list[tuple[Combo, E | None]] = []
    rest = combo
    for entry in sorted(entries, key=lambda entry: entry.t_ms, reverse=True):
        other = combo_of(entry.traffic, entry.client)
        if other == rest:
            return [*parts, (rest, entry)]
        pairs = list(zip(rest, other, strict=True))
        same = tuple(mine if mine == theirs else SKIP for mine, theirs in pairs)
        rest = tuple(SKIP if mine == theirs else mine for mine, theirs in pairs)
        if same != NOWHERE:
            parts.append((same, entry))
        if rest == NOWHERE:
            return parts
    return [*parts, (rest, None)]
