"""A site as one partition's folds see it: its dimensions in order, its funnels by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from consumers.definitions import Definitions
from consumers.fold import SKIP, Combo
from consumers.names import CLICK_NAMES, CONVERSION_NAMES, FUNNELS, Names
from tracker.model.cell import TOTAL
from tracker.model.definition import Funnel, Site, Step
from tracker.model.record import (
    CLIENT_DIMENSIONS,
    DIMENSION_DEFAULTS,
    OTHER,
    TRAFFIC_DIMENSIONS,
    EventRecord,
    EventType,
)

LANDING_PAGE = "landing_page"
_PAGE_PLACE = TRAFFIC_DIMENSIONS.index(LANDING_PAGE)


PLACES = (TOTAL, *TRAFFIC_DIMENSIONS, *CLIENT_DIMENSIONS)
"""The dimension of each place of a combo. Places are part of the store's format: append only."""


STEPS_CACHED_MAX = 1_000
"""Kinds of event whose steps are looked up once: senders choose names, so there is an end."""


@dataclass(frozen=True, slots=True)
class FunnelView:
    """A funnel in force, under the number that stands in visitors' attempts."""

    number: int
    since: int
    funnel: Funnel

    def steps_of(self, record: EventRecord) -> int:
        """Return a bit mask of the steps (bit 0 is step 1) that `record` can be."""
        mask = 0
        for index, step in enumerate(self.funnel.steps):
            if _matches(step, record):
                mask |= 1 << index
        return mask


def _matches(step: Step, record: EventRecord) -> bool:
    return step.type == record.type and (not step.name or step.name == record.name)


class SiteView:
    """One site in one partition."""

    def __init__(self, site: Site, definitions: Definitions, names: Names) -> None:
        self.site = site
        self.key = site.key
        self.names = names
        self.macros = frozenset(site.conversions)
        self._active = frozenset(site.dimensions)
        names.pin(site.key, _configured_texts(site))
        self._defaults = self.traffic_numbers({})
        self.funnels = dict(self._numbered_funnels(definitions))
        self._steps: dict[tuple[EventType, str], list[tuple[int, int]]] = {}

    def _numbered_funnels(self, definitions: Definitions) -> Iterator[tuple[int, FunnelView]]:
        for funnel in self.site.funnels:
            since = definitions.since[f"{self.key}/{funnel.name}"]
            number = self.names.number(self.key, FUNNELS, f"{funnel.name}@{since}")
            yield number, FunnelView(number, since, funnel)

    def traffic_numbers(self, texts: Mapping[str, str]) -> list[int]:
        """Return the numbers of the traffic dimensions in `texts`, admitting new values."""
        return self._numbers(TRAFFIC_DIMENSIONS, texts)

    def client_numbers(self, texts: Mapping[str, str]) -> list[int]:
        """Return the numbers of the client dimensions in `texts`, admitting new values."""
        return self._numbers(CLIENT_DIMENSIONS, texts)

    def default_traffic(self, page: str) -> list[int]:
        """Return the numbers of an event that says nothing but the page it happened on."""
        numbers = list(self._defaults)
        if page and LANDING_PAGE in self._active:
            numbers[_PAGE_PLACE] = self.names.number(self.key, LANDING_PAGE, page)
        return numbers

    def combo(self, traffic: list[int], client: list[int]) -> Combo:
        """Return where an event of this traffic and client counts."""
        return (0, *traffic, *client)

    def traffic_texts(self, numbers: list[int]) -> dict[str, str]:
        """Return the texts of traffic numbers, for a partition that numbers them otherwise."""
        return self._texts(TRAFFIC_DIMENSIONS, numbers)

    def client_texts(self, numbers: list[int]) -> dict[str, str]:
        """Return the texts of client numbers, for a partition that numbers them otherwise."""
        return self._texts(CLIENT_DIMENSIONS, numbers)

    def conversion_column(self, name: str) -> str:
        """Return the column of the conversions of `name`, folded into `__other__` at the cap."""
        if name not in self.macros and not self.names.number(self.key, CONVERSION_NAMES, name):
            name = OTHER
        return f"conversions:{name}"

    def click_column(self, name: str) -> str:
        """Return the column of clicks on elements marked `name`; ad clicks have no name."""
        if not name:
            return "clicks"
        if not self.names.number(self.key, CLICK_NAMES, name):
            name = OTHER
        return f"clicks:{name}"

    def steps(self, record: EventRecord) -> list[tuple[int, int]]:
        """Return (funnel number, mask) for every funnel that `record` has a step in."""
        if record.type is EventType.IMPRESSION:
            return []
        kind = (record.type, record.name)
        steps = self._steps.get(kind)
        if steps is None:
            found = ((view.number, view.steps_of(record)) for view in self.funnels.values())
            steps = [(number, mask) for number, mask in found if mask]
            if len(self._steps) < STEPS_CACHED_MAX:
                self._steps[kind] = steps
        return steps

    def _numbers(self, dimensions: tuple[str, ...], texts: Mapping[str, str]) -> list[int]:
        number, key, active = self.names.number, self.key, self._active
        return [
            number(key, name, texts.get(name) or DIMENSION_DEFAULTS[name])
            if name in active
            else SKIP
            for name in dimensions
        ]

    def _texts(self, dimensions: tuple[str, ...], numbers: list[int]) -> dict[str, str]:
        return {
            name: self.names.text(self.key, name, number)
            for name, number in zip(dimensions, numbers, strict=True)
            if number != SKIP
        }


def _configured_texts(site: Site) -> set[str]:
    return {value for link in site.links for _, value in link.utm}
