"""Which sites and funnels the counters were counted under, as the store says it.

Read from the container DEFINITIONS that the consumers write; nothing here reads a file, and an
unknown name is answered with the names that exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tracker.errors import Code, TrackerError
from tracker.model.definition import Funnel, Site, merge_layers, parse_sites

CURRENT = b"current"
"""The one field of the container DEFINITIONS."""


@dataclass(frozen=True, slots=True)
class Known:
    """The definitions in force.

    `since` is "site/funnel" → number of the definition that last changed it, `counted_from` the
    same → ms since the epoch, 0 from the start.
    """

    number: int = 0
    sites: Mapping[str, Site] = field(default_factory=dict)
    since: Mapping[str, int] = field(default_factory=dict)
    counted_from: Mapping[str, int] = field(default_factory=dict)

    def site(self, key: str) -> Site:
        """Return a site; an empty key means the only one there is.

        Errors: TrackerError INVALID without a key among several, NOT_FOUND.
        """
        if key in self.sites:
            return self.sites[key]
        if not self.sites:
            raise TrackerError(
                Code.NOT_FOUND,
                "No site is known here yet: describe one in tracker.toml under [site.NAME], or "
                "make one with `tracker import`. A new site is known a second after that.",
            )
        names = listed(self.sites)
        if not key:
            if len(self.sites) == 1:
                return next(iter(self.sites.values()))
            raise TrackerError(Code.INVALID, f"Say which site with site=; there are {names}.")
        raise TrackerError(Code.NOT_FOUND, f"There is no site {short(key)!r}; there are {names}.")

    def funnel(self, site: Site, name: str) -> Funnel:
        """Return a funnel of `site`.

        Errors: TrackerError NOT_FOUND, which names those that exist.
        """
        for funnel in site.funnels:
            if funnel.name == name:
                return funnel
        has = listed(funnel.name for funnel in site.funnels) or "none"
        raise TrackerError(
            Code.NOT_FOUND,
            f"Site {site.key!r} has no funnel {short(name)!r}; it has {has}. "
            f"A funnel is described in tracker.toml under [site.{site.key}.funnel.NAME].",
        )


NOTHING_KNOWN = Known()


def read_known(stored: Iterable[bytes]) -> Known:
    """Return the newest of what the partitions hold: they learn of a change one after another."""
    newest: dict[str, Any] = {}
    for raw in stored:
        found: dict[str, Any] = orjson.loads(raw)
        if found["number"] > newest.get("number", 0):
            newest = found
    if not newest:
        return NOTHING_KNOWN
    layers = newest["layers"]
    sites, _ = parse_sites(merge_layers(layers.get("api", {}), layers.get("file", {})))
    return Known(newest["number"], sites, newest["since"], newest.get("counted_from", {}))


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence wants them."""
    return ", ".join(names)


def short(text: str) -> str:
    """Return what somebody sent, cut so that an answer never echoes a page of it."""
    return text if len(text) <= 80 else text[:79] + "…"
