"""The numbers that a partition gives to texts: values of dimensions, columns, names.

Admission is in log order, event by event, so that any split into batches gives the same numbers.
At the cap new values become `__other__` (number 0); what the configuration names is always kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracker.model.cell import COLUMNS, OTHER_NUMBER, name_field, read_name_field
from tracker.model.record import DIMENSION_DEFAULTS, OTHER

VALUES_MAX = 2_000
"""Values of a dimension that one partition admits: 32 pages of 64, and 20 times the campaigns of
a large account. All partitions see much the same values, so this is near the site's own cap."""

NAMES_MAX = 200
"""Names of conversions, and of marked elements, that one partition admits."""

CONVERSION_NAMES = "#conversion"
CLICK_NAMES = "#click"
FUNNELS = "#funnel"
_CAPS = {CONVERSION_NAMES: NAMES_MAX, CLICK_NAMES: NAMES_MAX}
_UNCAPPED = frozenset({COLUMNS, FUNNELS})


class Names:
    """All numbers of one partition, in memory; `fresh` are those not yet committed."""

    def __init__(self, stored: Mapping[bytes, bytes]) -> None:
        self._numbers: dict[tuple[str, str], dict[str, int]] = {}
        self._texts: dict[tuple[str, str], dict[int, str]] = {}
        self.fresh: dict[bytes, bytes] = {}
        self._pinned: dict[str, frozenset[str]] = {}
        for field, raw in stored.items():
            site, space, number = read_name_field(field)
            self._put(site, space, raw.decode(), number)

    def pin(self, site: str, texts: Iterable[str]) -> None:
        """Keep these values of `site` whatever the cap says."""
        self._pinned[site] = frozenset(texts)

    def number(self, site: str, space: str, text: str) -> int:
        """Return the number of `text`, admitting it when there is room."""
        numbers = self._numbers.get((site, space))
        if numbers is not None:
            known = numbers.get(text)
            if known is not None:
                return known
        if text == OTHER or self._is_full(site, space, text):
            return OTHER_NUMBER
        number = 1 + len(numbers or ())
        self._put(site, space, text, number)
        self.fresh[name_field(site, space, number)] = text.encode("utf-8", "replace")
        return number

    def text(self, site: str, space: str, number: int) -> str:
        """Return what `number` stands for."""
        if number == OTHER_NUMBER:
            return OTHER
        return self._texts[site, space][number]

    def column(self, text: str) -> int:
        """Return the number of a column."""
        return self.number("", COLUMNS, text)

    def _put(self, site: str, space: str, text: str, number: int) -> None:
        self._numbers.setdefault((site, space), {})[text] = number
        self._texts.setdefault((site, space), {})[number] = text

    def _is_full(self, site: str, space: str, text: str) -> bool:
        if space in _UNCAPPED:
            return False
        admitted = len(self._numbers.get((site, space), ()))
        if admitted < _CAPS.get(space, VALUES_MAX):
            return False
        pinned = self._pinned.get(site, frozenset())
        return text not in pinned and text != DIMENSION_DEFAULTS.get(space)
