"""A load generator that is the oracle: it knows every id it sent and which ones were acknowledged.

Events go out in small requests at a steady rate. What was not acknowledged is sent again with the
same ids, as a careful client does, until it is: then every id must be counted exactly once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from dataclasses import dataclass, field

import aiohttp

EVENTS_A_REQUEST = 10
RETRY_S = 0.1
GIVE_UP_S = 60.0


@dataclass
class Oracle:
    """What was sent and what came back; `acknowledged` is written and synced as it grows."""

    path: str
    acknowledged: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    retries: int = 0

    def acknowledge(self, ids):
        with open(self.path, "a", encoding="ascii") as log:  # noqa: PTH123 - a plain append
            log.write("".join(f"{event_id}\n" for event_id in ids))
            log.flush()
            os.fsync(log.fileno())
        self.acknowledged.update(ids)


async def play(oracle, url, *, rate, seconds, seed):
    """Send `rate` events a second for `seconds`, and return when all are acknowledged."""
    chosen = random.Random(seed)
    prefix = f"{seed}-{os.getpid()}-{time.monotonic_ns()}"
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
        start = time.monotonic()
        requests = int(rate * seconds / EVENTS_A_REQUEST)
        for turn in range(requests):
            due = start + turn * EVENTS_A_REQUEST / rate
            await asyncio.sleep(max(0, due - time.monotonic()))
            events = [_event(f"{prefix}-{next(numbers)}", chosen) for _ in range(EVENTS_A_REQUEST)]
            oracle.sent.update(event["event_id"] for event in events)
            tasks.create_task(_send(oracle, session, url, events))


def _event(event_id, chosen):
    return {
        "site": "shop",
        "type": "view",
        "event_id": event_id,
        "visitor_id": f"v{chosen.randrange(500)}",
        "url": f"https://shop.example/p{chosen.randrange(9)}?utm_campaign=c{chosen.randrange(5)}",
    }


async def _send(oracle, session, url, events):
    body = json.dumps(events).encode()
    ids = [event["event_id"] for event in events]
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        try:
            async with session.post(url, data=body) as response:
                await response.read()
                if response.status == 200:
                    oracle.acknowledge(ids)
                    return
        except (aiohttp.ClientError, TimeoutError):
            pass
        assert time.monotonic() < deadline, f"not acknowledged within {GIVE_UP_S} s: {ids[0]} …"
        oracle.retries += 1
        await asyncio.sleep(RETRY_S)
