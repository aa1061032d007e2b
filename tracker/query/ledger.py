"""Every event's fate in numbers, so that received = accepted + refused can be checked by anybody.

The consumers count; this adds their partitions up and reckons what is still on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracker.model.clock import Clock
from tracker.ports.log import LogReader
from tracker.query.freshness import read_freshness
from tracker.query.mirror import Mirror
from tracker.query.question import Given, check_names, one

FATES = ("applied", "duplicate", "late", "quarantined")
"""What becomes of an accepted event; each has exactly one."""

ASIDES = ("conflict", "behind", "unmatched")
"""Counts beside the fates: duplicates of other content; applied events that came too late to be
sorted into their visitor's, and moved time buckets and money only; refunds that still wait for
their order."""

REFUSALS = ("rejected", "shed")
"""What was not accepted, by reason."""

PARAMETERS = ("site",)


async def ledger(
    mirror: Mirror, reader: LogReader, clock: Clock, given: Given
) -> dict[str, object]:
    """Return the ledger of one site, or of all with what named no known site.

    Shape: received, accepted, rejected and shed {reason: n}, the FATES, in_flight, the ASIDES and
    as_of.
    accepted = the fates + in_flight; received = accepted + rejected + shed. Of a site that was
    never heard of, everything is 0: an import asks before it makes one.
    Units: events, but `in_flight` in records of the log that are not folded yet: of all sites,
    and with the few that are no events.
    Errors: TrackerError INVALID, STORE_UNAVAILABLE.
    """
    check_names(given, PARAMETERS)
    await mirror.ready()
    site = one(given, "site")
    totals = sum_ledgers(mirror, site or None)
    fresh = read_freshness(mirror, reader, clock, site)
    in_flight = sum(fresh.lags)
    accepted = sum(totals[fate] for fate in FATES) + in_flight
    refused = sum(sum(totals[kind].values()) for kind in REFUSALS)
    return {
        "site": site or None,
        "received": accepted + refused,
        "accepted": accepted,
        "rejected": totals["rejected"],
        "shed": totals["shed"],
        "applied": totals["applied"],
        "duplicate": totals["duplicate"],
        "late": totals["late"],
        "quarantined": totals["quarantined"],
        "in_flight": in_flight,
        **{aside: totals[aside] for aside in ASIDES},
        "as_of": fresh.stamp()["as_of"],
    }


def empty_ledger() -> dict[str, Any]:
    """Return a ledger in which nothing was counted."""
    counts: dict[str, Any] = dict.fromkeys((*FATES, *ASIDES), 0)
    return counts | {kind: {} for kind in REFUSALS}


def sum_ledgers(mirror: Mirror, site: str | None) -> dict[str, Any]:
    """Return a site's ledger over all partitions; None means all sites."""
    totals = empty_ledger()
    for by_site in mirror.ledgers().values():
        for key, counted in by_site.items():
            if site is None or key == site:
                _add(totals, counted)
    return totals


def _add(totals: dict[str, Any], counted: Mapping[str, Any]) -> None:
    for fate in (*FATES, *ASIDES):
        totals[fate] += counted.get(fate, 0)
    for kind in REFUSALS:
        for reason, count in counted.get(kind, {}).items():
            totals[kind][reason] = totals[kind].get(reason, 0) + count
