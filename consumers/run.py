"""One pass over a visitor's events: what the steps of all visitor folds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from consumers.fold import SKIP, Combo, Sink
from consumers.sites import SiteView
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


class Entry(Protocol):
    """Something that counted before under the values of its traffic and client."""

    traffic: int
    client: int
    t_ms: int


E = TypeVar("E", bound=Entry)


def previous_by_dimension(
    combo: Combo, entries: Sequence[E], combo_of: Callable[[int, int], Combo]
) -> list[tuple[list[int], E | None]]:
    """Group the places of `combo` by the latest entry that counted under the same value there.

    A visitor counts once in each row, and rows differ by dimension: somebody who came by two
    campaigns with one device is known to the device and new to the second campaign.
    """
    combos = [(entry, combo_of(entry.traffic, entry.client)) for entry in entries]
    groups: dict[int, tuple[list[int], E | None]] = {}
    for place, number in enumerate(combo):
        if number == SKIP:
            continue
        same = [entry for entry, other in combos if other[place] == number]
        latest = max(same, key=lambda entry: entry.t_ms) if same else None
        groups.setdefault(id(latest), ([], latest))[0].append(place)
    return list(groups.values())
