"""The store's public containers, held in memory and kept up to date.

One loop does all the reading of the store: it follows the notices, re-reads what they touched,
reads what an answer asked for, and looks once a second whether notices were lost. Answers only
wait for it, with a deadline. So no answer hangs on the store, and a warm one does not touch it.
Only what an answer asked for is held, up to PAGES_MAX. This module computes no metric.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import orjson

from tracker.errors import Code, TrackerError
from tracker.model.cell import DEFINITIONS, LEDGER, NAMES, counters_container
from tracker.model.clock import Clock
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Meta, Notice, Store
from tracker.query.known import CURRENT, NOTHING_KNOWN, Known, read_known
from tracker.query.pages import Container, Group, GroupKey, Missing, Names

T = TypeVar("T")
Fields = Mapping[bytes, bytes]

PACE_S = 0.05
"""Between two rounds of reading: an event is seen at most this much later for it, and 32
partitions that commit all the time cost 20 rounds a second instead of one a commit."""

BEAT_S = 1.0
"""Between two looks at the metas: finds lost notices, and a store that went away in silence."""

ANSWER_S = 0.9
"""How long an answer waits for the store: within a second it is there, or says why not."""

CALL_S = 5.0
"""The longest call: 36 MB of pages (a month of days, 2,000 values) take half a second."""

AWAY_MAX_MS = 5_000
"""Numbers older than this are not shown: they would look live and be wrong."""

STALE_MS = 2_500
"""Two beats without an answer: from here on answers say that the store is away."""

PAGES_MAX = 200_000
"""Pages held, 1 to 2 kB each: 300 MB. A month of days, 45 days of quarters and the last hours of
a large site are 100,000."""

CONTAINER_PAGES = 32
"""What an empty container is reckoned as, so that asking for empty years is bounded too."""

RETRY_S = 0.2
"""After a failure: five tries a second find a restarted store at once and burden nothing."""

NAME_TRIES = 3
"""A page and the names it uses are committed together; each try reads what is missing."""

MERGES_A_TURN = 2
"""Groups merged before others get their turn: a cold day of 100 values in 32 partitions takes
20 ms, and giving way costs microseconds."""

FIXED = (NAMES, LEDGER, DEFINITIONS)
"""Containers that are always held."""


@dataclass(slots=True)
class _Work:
    """What the next round of reading has to do."""

    again: set[int]  # partitions to read anew as a whole
    touched: dict[int, dict[str, set[bytes]]]
    wanted: set[str]  # containers that an answer waits for


class Mirror:
    """What the query process knows of the store. `run` must be running for it to move."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.names = Names()
        self.known: Known = NOTHING_KNOWN
        self.metas: Sequence[Meta] = ()
        """Where every partition stood when what is held was read; empty before the first read."""
        self._followed = [Meta()] * PARTITIONS  # with notices whose fields are not read yet
        self._differing: dict[int, Meta] = {}  # from what the store said at the last look
        self.torn: Sequence[int] = ()
        """Partitions with a commit that was cut in the middle: only a rebuild mends them."""
        self._held: dict[str, Container] = {}  # the least recently asked for comes first
        self._loading: set[str] = set()
        self._ledgers: dict[int, dict[str, dict[str, object]]] = {}
        self._definitions: dict[int, bytes] = {}
        self._work = _Work(set(range(PARTITIONS)), {}, set())
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._round = asyncio.Event()
        self._rounds = 0
        self._in_use: Counter[str] = Counter()  # containers that answers work on
        self._good_ms = clock.monotonic_ms()

    # What answers use.

    async def ready(self) -> None:
        """Wait until there is something to answer from.

        Errors: TrackerError STORE_UNAVAILABLE within ANSWER_S.
        """
        await self._until(lambda: bool(self.metas))
        away_ms = self.away_ms()
        if away_ms > AWAY_MAX_MS:
            raise _unavailable(f"The store has not answered for {away_ms // 1000} seconds")

    async def groups(self, keys: Sequence[GroupKey]) -> list[Group]:
        """Return the groups of `keys` in which something was counted, all at one instant.

        What `metas` and `known` say at the same instant (before the next await) is in them.
        Errors: TrackerError STORE_UNAVAILABLE within about ANSWER_S, however large the read is;
        it goes on meanwhile, and a later call finds it done.
        """
        await self.ready()
        containers = {counters_container(key.granularity, key.bucket) for key in keys}
        self._in_use.update(containers)
        try:
            await self._hold(containers)
            for _ in range(NAME_TRIES):
                found = self._found(keys)
                await self._merge_in_turns(found)
                missing = [name for group in found for name in group.merge(self.names)]
                if not missing:
                    return self._found(keys)
                await self._read_names(missing)
        finally:
            self._in_use.subtract(containers)
            self._in_use += Counter()  # keeps what is above zero
        self._read_again(range(PARTITIONS))
        raise _unavailable("The store is being built anew")

    async def _hold(self, containers: set[str]) -> None:
        for name in containers & self._held.keys():
            self._held[name] = self._held.pop(name)  # the last to be let go
        missing = containers - self._held.keys()
        if missing:
            self._work.wanted |= missing
            self._hurry()
            await self._until(lambda: containers <= self._held.keys())

    async def _merge_in_turns(self, groups: Iterable[Group]) -> None:
        merged = 0
        for group in groups:
            if group.is_dirty:
                group.merge(self.names)
                merged += 1
                if merged % MERGES_A_TURN == 0:
                    await asyncio.sleep(0)

    async def _read_names(self, missing: Missing) -> None:
        """Read texts of numbers that a page uses before the notice of its commit came."""
        for number, field in missing:
            self._work.touched.setdefault(number, {}).setdefault(NAMES, set()).add(field)
        self._hurry()
        latest = self._rounds + 2  # one may be under way
        await self._until(lambda: self.names.has(missing) or self._rounds >= latest)

    def _found(self, keys: Iterable[GroupKey]) -> list[Group]:
        found = []
        for key in keys:
            container = self._held.get(counters_container(key.granularity, key.bucket))
            group = container.group(key) if container is not None else None
            if group is not None:
                found.append(group)
        return found

    def ledgers(self) -> Mapping[int, Mapping[str, Mapping[str, object]]]:
        """Return partition → site → what became of its events."""
        return self._ledgers

    def away_ms(self) -> int:
        """Return for how long the store has not answered; up to a beat when all is well."""
        return max(0, self._clock.monotonic_ms() - self._good_ms)

    def is_stale(self) -> bool:
        """Tell whether the store seems to be away, so that the numbers are the last known."""
        return self.away_ms() > STALE_MS

    def held(self) -> tuple[int, int]:
        """Return how many containers and pages are held."""
        return len(self._held), sum(container.size for container in self._held.values())

    def _hurry(self) -> None:
        self._urgent.set()
        self._wake.set()

    def _read_again(self, partitions: Iterable[int]) -> None:
        self._work.again.update(partitions)
        self._wake.set()

    async def _until(self, done: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                while not done():
                    await self._round.wait()
        except TimeoutError:
            raise _unavailable("The store has not answered in time") from None

    # The loop that reads.

    async def run(self) -> None:
        """Follow the store until cancelled; a store that is away is asked again and again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._keep())

    async def _listen(self) -> None:
        while True:
            try:
                async for notice in self._store.notices():
                    self._take(notice)
            except TrackerError:
                pass  # the reading loop meets the same and counts the time
            self._take(None)
            await asyncio.sleep(BEAT_S)

    def _take(self, notice: Notice | None) -> None:
        self._wake.set()
        if notice is None:
            self._read_again(range(PARTITIONS))
            return
        number = notice.partition
        followed = self._followed[number]
        is_next = notice.epoch == followed.epoch and notice.previous == followed.position
        if not is_next:
            if notice.epoch != followed.epoch or notice.position > followed.position:
                self._work.again.add(number)
            return
        self._followed[number] = replace(
            followed, position=notice.position, watermark_ms=notice.watermark_ms
        )
        touched = self._work.touched.setdefault(number, {})
        for container, field in notice.touched:
            if self._is_followed(container):
                touched.setdefault(container, set()).add(field)
        for container in notice.dropped:
            if container in self._held:
                self._held[container].replace(number, {})
                touched.pop(container, None)

    def _is_followed(self, container: str) -> bool:
        # One that is being read counts: the read may have come just before the commit.
        return container in self._held or container in self._loading or container in FIXED

    async def _keep(self) -> None:
        looked_ms: int | None = None
        while True:
            now_ms = self._clock.monotonic_ms()
            try:
                if looked_ms is None or now_ms - looked_ms >= BEAT_S * 1000:
                    await self._look()
                    looked_ms = now_ms
                await self._read()
            except (TrackerError, TimeoutError):
                # Nobody knows how far it came; reading all of it again is rare and right.
                self._work.again.update(range(PARTITIONS))
                self._work.wanted |= self._loading
                await asyncio.sleep(RETRY_S)
                continue
            self._loading = set()
            self._rounds += 1
            self._round.set()
            self._round = asyncio.Event()
            await _wait(self._urgent, PACE_S)
            await _wait(self._wake, BEAT_S)

    async def _look(self) -> None:
        """Ask for the metas; a partition that differs for a beat without a notice is read anew."""
        metas = await self._ask(self._store.metas())
        differing = {}
        for number, meta in enumerate(metas):
            seen = self._followed[number]
            if (meta.position, meta.epoch) != (seen.position, seen.epoch):
                differing[number] = seen
                if self._differing.get(number) is seen:
                    self._work.again.add(number)
        self._differing = differing
        self.torn = [number for number, meta in enumerate(metas) if meta.torn]

    async def _read(self) -> None:
        """Do one round of reading: whole partitions, touched fields, wanted containers."""
        work, self._work = self._work, _Work(set(), {}, set())
        self._loading = work.wanted
        self._wake.clear()
        self._urgent.clear()
        shown = list(self._followed)  # now: notices that come meanwhile are the next round's
        if work.again:
            metas = await self._ask(self._store.metas())
            for number in sorted(work.again):
                self._followed[number] = shown[number] = metas[number]
                found = await self._ask(self._store.load_all(number, [*FIXED, *self._held]))
                self._replace(number, found)
        for number, touched in work.touched.items():
            if number not in work.again and touched:
                await self._read_fields(number, touched)
        if work.wanted:
            await self._read_containers(work.wanted)
        self.metas = shown

    async def _read_fields(self, number: int, touched: Mapping[str, set[bytes]]) -> None:
        wanted = {container: sorted(fields) for container, fields in touched.items()}
        found = await self._ask(self._store.load(number, wanted))
        self.names.put(number, found.get(NAMES, {}))
        self._put_fixed(number, found)
        for name, fields in wanted.items():
            container = self._held.get(name)
            if container is not None:
                stored = found.get(name, {})
                container.put(number, ((field, stored.get(field)) for field in fields))

    async def _read_containers(self, wanted: Iterable[str]) -> None:
        fresh = {name: Container(name) for name in wanted}
        for number in range(PARTITIONS):
            found = await self._ask(self._store.load_all(number, list(fresh)))
            for name, container in fresh.items():
                container.replace(number, found.get(name, {}))
        self._make_room(fresh)
        self._held |= fresh

    def _make_room(self, fresh: Mapping[str, Container]) -> None:
        size = sum(one.size + CONTAINER_PAGES for one in (*fresh.values(), *self._held.values()))
        for name in [name for name in self._held if not self._in_use[name]]:
            if size <= PAGES_MAX:
                return
            size -= self._held.pop(name).size + CONTAINER_PAGES

    def _replace(self, number: int, found: Mapping[str, Fields]) -> None:
        if self.names.replace(number, found.get(NAMES, {})):
            for container in self._held.values():
                container.renew()
        self._ledgers[number] = {}
        if self._definitions.pop(number, None) is not None:
            self.known = read_known(self._definitions.values())
        self._put_fixed(number, found)
        for name, container in self._held.items():
            container.replace(number, found.get(name, {}))

    def _put_fixed(self, number: int, found: Mapping[str, Fields]) -> None:
        ledger = self._ledgers.setdefault(number, {})
        for site, raw in found.get(LEDGER, {}).items():
            ledger[site.decode()] = orjson.loads(raw)
        current = found.get(DEFINITIONS, {}).get(CURRENT)
        if current is not None and current != self._definitions.get(number):
            self._definitions[number] = current
            self.known = read_known(self._definitions.values())

    async def _ask(self, call: Awaitable[T]) -> T:
        async with asyncio.timeout(CALL_S):
            answer = await call
        self._good_ms = self._clock.monotonic_ms()
        return answer


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _unavailable(what: str) -> TrackerError:
    return TrackerError(
        Code.STORE_UNAVAILABLE,
        f"{what}, so there are no numbers to show. Nothing is lost: events are kept in the log. "
        "Ask again in a second; if it lasts, `tracker status` says more.",
    )
