"""The ledger of fates: what became of every event, by site (promise C5)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson

from tracker.model.record import MarkerRecord


class Fate(StrEnum):
    """What can become of an accepted event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"  # a duplicate whose content differs: counted in both
    BEHIND = "behind"  # applied, too late to be sorted in: buckets and money only; in both
    LATE = "late"
    QUARANTINED = "quarantined"


class Ledger:
    """One partition's part of the ledger, in memory; `puts` are the sites that moved."""

    def __init__(self, stored: Mapping[bytes, bytes]) -> None:
        self._sites: dict[str, dict[str, Any]] = {
            site.decode(): orjson.loads(raw) for site, raw in stored.items()
        }
        self._moved: set[str] = set()

    def count(self, site: str, fate: Fate, number: int = 1) -> None:
        """Count an event of `site` under its fate."""
        page = self._page(site)
        page[fate.value] = page.get(fate.value, 0) + number

    def count_unmatched(self, site: str, number: int) -> None:
        """Move the number of refunds that wait for their order."""
        page = self._page(site)
        page["unmatched"] = page.get("unmatched", 0) + number

    def count_refused(self, marker: MarkerRecord) -> None:
        """Count what a collector refused."""
        for kind, by_site in (("rejected", marker.rejected), ("shed", marker.shed)):
            for site, reasons in by_site.items():
                page = self._page(site)
                counts = page.setdefault(kind, {})
                for reason, number in reasons.items():
                    counts[reason] = counts.get(reason, 0) + number

    def puts(self) -> dict[bytes, bytes | None]:
        """Return the moved sites' absolute values, and begin anew."""
        moved = {
            site.encode(): orjson.dumps(self._sites[site], option=orjson.OPT_SORT_KEYS)
            for site in sorted(self._moved)
        }
        self._moved.clear()
        return dict(moved)

    def _page(self, site: str) -> dict[str, Any]:
        self._moved.add(site)
        return self._sites.setdefault(site, {})
