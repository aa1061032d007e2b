"""The store in the memory of one process: the executable specification of `ports.store.Store`.

Unit tests fold into it, `tracker reconcile` replays the log into it. What it answers is what every
other store must answer, reply by reply (tests/contract/test_store_contract.py). It keeps nothing
on disk and must not grow a feature that the port does not promise; only `fork` and `tear` are its
own, so that tests can go back to an older state and can cut a commit in the middle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Changes, Commit, Meta, Notice, Outcome, notice_of

NOTICES_WAITING_MAX = 1_024
"""Of one slow listener: half a minute of 32 partitions that each commit once a second. Beyond, it
is told to re-read, which costs less than to follow."""


@dataclass(slots=True)
class _Partition:
    """Meta and containers of one partition. A container without fields does not exist."""

    meta: Meta = field(default_factory=Meta)
    containers: dict[str, dict[bytes, bytes]] = field(default_factory=dict)

    def apply(self, changes: Changes) -> None:
        for container in changes.drops:
            self.containers.pop(container, None)
        for container, puts in changes.puts.items():
            fields = self.containers.setdefault(container, {})
            for name, value in puts.items():
                if value is None:
                    fields.pop(name, None)
                else:
                    fields[name] = value
            if not fields:
                del self.containers[container]


class _Listener:
    """The notices that one reader has not taken yet; None stands for those that were lost."""

    def __init__(self) -> None:
        self._waiting: deque[Notice | None] = deque((None,))
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._closed = False

    def put(self, notice: Notice | None) -> None:
        if notice is None or len(self._waiting) >= NOTICES_WAITING_MAX:
            self._waiting.clear()
            notice = None
        self._waiting.append(notice)
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    async def stream(self) -> AsyncIterator[Notice | None]:
        while not self._closed:
            await self._arrived.wait()
            while self._waiting:
                yield self._waiting.popleft()
            if not self._closed:
                self._arrived.clear()


class MemoryStore:
    """All partitions of one installation, in dictionaries."""

    def __init__(self) -> None:
        self._log_id = ""
        self._count = PARTITIONS
        self._partitions: dict[int, _Partition] = {}
        self._listeners: set[_Listener] = set()

    async def open_log(self, log_id: str, partitions: int) -> None:
        """Check that this store belongs to this log and partition count; claim a new one.

        Errors: TrackerError LOG_CHANGED or STORE_MISCONFIGURED.
        """
        if self._log_id and self._count != partitions:
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"the store in memory was built with {self._count} partitions, the log has "
                f"{partitions}: go back to the log it was built from, or run `tracker rebuild`",
            )
        if self._log_id and self._log_id != log_id:
            raise TrackerError(
                Code.LOG_CHANGED,
                f"the store in memory was built from log {self._log_id}, this one is {log_id}: "
                "go back to that log, or run `tracker rebuild`",
            )
        self._log_id = log_id
        self._count = partitions

    async def take_over(self, partition: int) -> Meta:
        """Raise the partition's owner epoch by one and return its meta after that."""
        state = self._partition(partition)
        state.meta = replace(state.meta, epoch=state.meta.epoch + 1)
        return state.meta

    async def metas(self) -> Sequence[Meta]:
        """Return the meta of every partition, in partition order."""
        return [self._partition(number).meta for number in range(self._count)]

    async def load(
        self, partition: int, wanted: Mapping[str, Sequence[bytes]]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return the fields of `wanted` that exist, by container; every container is named."""
        containers = self._partition(partition).containers
        found: dict[str, dict[bytes, bytes]] = {}
        for container, names in wanted.items():
            fields = containers.get(container, {})
            found[container] = {name: fields[name] for name in names if name in fields}
        return found

    async def load_all(
        self, partition: int, containers: Sequence[str]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return whole containers; a missing one is empty."""
        stored = self._partition(partition).containers
        return {container: dict(stored.get(container, {})) for container in containers}

    async def snapshot(self, partition: int) -> tuple[Meta, dict[str, dict[bytes, bytes]]]:
        """Return meta and every container of a partition, as they were at one instant."""
        state = self._partition(partition)
        return state.meta, {name: dict(fields) for name, fields in state.containers.items()}

    async def commit(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        """Apply each commit (of different partitions) or refuse it; one answer each."""
        return [self._commit(commit) for commit in commits]

    async def notices(self) -> AsyncIterator[Notice | None]:
        """Yield notices as commits happen; None at the start and when some were lost."""
        listener = _Listener()
        self._listeners.add(listener)
        try:
            async for notice in listener.stream():
                yield notice
        finally:
            self._listeners.discard(listener)

    async def wipe(self) -> None:
        """Forget everything, the log too."""
        self._log_id = ""
        self._partitions.clear()
        self._tell(None)

    async def close(self) -> None:
        """End the listeners. What was stored stays readable."""
        for listener in tuple(self._listeners):
            listener.close()

    def fork(self) -> MemoryStore:
        """Return an independent copy of this moment: what a store that comes back older holds."""
        copy = MemoryStore()
        copy._log_id, copy._count = self._log_id, self._count
        copy._partitions = {
            number: _Partition(
                state.meta, {name: dict(fields) for name, fields in state.containers.items()}
            )
            for number, state in self._partitions.items()
        }
        return copy

    def tear(self, partition: int, token: str) -> None:
        """Leave the mark of a commit that was cut in the middle."""
        state = self._partition(partition)
        state.meta = replace(state.meta, torn=token)

    def _partition(self, number: int) -> _Partition:
        if not 0 <= number < self._count:
            raise AssertionError(f"partition {number} of {self._count}")
        return self._partitions.setdefault(number, _Partition())

    def _commit(self, commit: Commit) -> Outcome:
        state = self._partition(commit.partition)
        refused = judge(state.meta, commit)
        if refused is not None:
            return refused
        state.apply(commit.changes)
        previous = state.meta
        state.meta = replace(
            previous,
            position=commit.position,
            log_id=commit.log_id,
            token=commit.token,
            watermark_ms=commit.watermark_ms,
            horizon_ms=commit.horizon_ms,
        )
        self._tell(notice_of(commit))
        return Outcome.APPLIED

    def _tell(self, notice: Notice | None) -> None:
        for listener in self._listeners:
            listener.put(notice)


def judge(meta: Meta, commit: Commit) -> Outcome | None:
    """Return why `commit` does not apply to a partition at `meta`, None when it does.

    A commit that was applied already is recognised whoever owns the partition now: its reply was
    lost, and nothing is left to do.
    """
    if not commit.token or not commit.log_id:
        raise AssertionError("a commit names its batch and its log")
    if meta.torn:
        return Outcome.TORN
    if meta.log_id not in ("", commit.log_id):
        return Outcome.LOG_CHANGED
    if meta.position == commit.position and meta.token == commit.token:
        return Outcome.DUPLICATE
    if meta.position != commit.expected or meta.epoch != commit.epoch:
        return Outcome.STALE
    return None
