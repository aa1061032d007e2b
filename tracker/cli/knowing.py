"""Waiting until every partition knows a site: rows that come earlier would miss its funnels.

Definitions travel from partition 0 to all others as records, and count from there on. Whoever
creates a site and sends events at once must not overtake them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from consumers.definitions import CURRENT, Definitions
from tracker.errors import Code, TrackerError
from tracker.main import open_store
from tracker.model.cell import DEFINITIONS
from tracker.model.definition import Site
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Store
from tracker.settings import Settings

DEADLINE_S = 60.0
POLL_S = 0.05


async def wait_until_known(settings: Settings, site: Site) -> None:
    """Return when all partitions count by the definition of `site`.

    Errors: TrackerError STORE_UNAVAILABLE when they do not in DEADLINE_S: no consumer runs.
    """
    store = await open_store(settings)
    try:
        deadline = time.monotonic() + DEADLINE_S
        waiting = set(range(PARTITIONS))
        while waiting:
            for partition in sorted(waiting):
                if await _knows(store, partition, site):
                    waiting.discard(partition)
            if waiting and time.monotonic() > deadline:
                raise TrackerError(
                    Code.STORE_UNAVAILABLE,
                    f"The consumer has not taken over the site {site.key} in {DEADLINE_S:.0f} s, "
                    "so nothing was imported: look at `tracker status` and at its log.",
                )
            await asyncio.sleep(POLL_S if waiting else 0)
    finally:
        with contextlib.suppress(TrackerError):
            await store.close()


async def _knows(store: Store, partition: int, site: Site) -> bool:
    loaded = await store.load(partition, {DEFINITIONS: [CURRENT]})
    stored = loaded.get(DEFINITIONS, {}).get(CURRENT)
    return stored is not None and Definitions.decode(stored).sites.get(site.key) == site
