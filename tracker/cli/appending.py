"""Appending many records in order, a few groups in flight, again after a failure.

Records of one visitor must reach the log in the order given, so after a failure everything from
the first failed group on is sent again; what was stored already is recognised by its ids.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from tracker.errors import TrackerError
from tracker.ports.log import LogWriter, Unappended

GROUP_RECORDS = 500
IN_FLIGHT_MAX = 8
"""Eight groups hide the socket's round trip behind one sync; more only takes memory."""
ATTEMPTS_MAX = 30
PAUSE_S = 1.0
"""With the pause, a collector that restarts has half a minute to come back."""


async def append_all(
    writer: LogWriter, records: Sequence[Unappended], move: Callable[[int, int], None]
) -> None:
    """Make all `records` durable in their order; `move` is told (done, total).

    Errors: TrackerError when the log takes nothing for ATTEMPTS_MAX attempts, or never will.
    """
    done = attempts = 0
    while done < len(records):
        reached, error = await _append_from(writer, records, done, move)
        attempts = attempts + 1 if reached == done else 0
        done = reached
        if error is None:
            return
        if not error.retryable or attempts >= ATTEMPTS_MAX:
            raise error
        await asyncio.sleep(PAUSE_S)


async def _append_from(
    writer: LogWriter,
    records: Sequence[Unappended],
    start: int,
    move: Callable[[int, int], None],
) -> tuple[int, TrackerError | None]:
    """Append from `start` on; return how far everything is durable, and what stopped it."""
    waiting: deque[tuple[int, asyncio.Task[None]]] = deque()
    done, following = start, start
    error: TrackerError | None = None
    try:
        while waiting or following < len(records):
            while following < len(records) and len(waiting) < IN_FLIGHT_MAX:
                group = records[following : following + GROUP_RECORDS]
                following += len(group)
                waiting.append((following, asyncio.create_task(writer.append(group))))
            end, task = waiting.popleft()
            await task
            done = end
            move(done, len(records))
    except TrackerError as failed:
        error = failed
    finally:
        # Whatever is still on its way must have arrived before it is sent again.
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
    return done, error
