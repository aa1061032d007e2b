"""The only place that reads the machine's clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, injected everywhere so that tests own it."""

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, wall clock."""
        ...

    def monotonic_ms(self) -> int:
        """Return milliseconds that never jump, for deadlines."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return the monotonic clock in milliseconds."""
        return time.monotonic_ns() // 1_000_000
