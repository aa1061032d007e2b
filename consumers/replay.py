"""The log, folded once more: `reconcile` compares with the live store, `rebuild` replaces it.

Both run the very folds that run live. What a replay would tell other partitions stands in the log
already; a rebuild appends only what the log lacks (a crash between fold and append), a reconcile
appends nothing. Nothing here changes a live number but `rebuild`'s wipe.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from consumers.definitions import DEFINITION_PARTITION, beginning, scan
from consumers.explain import Named, meaning_of
from consumers.partition import MARKS
from consumers.runner import Parts, Runner
from consumers.state import is_period_kept
from tracker.codec import decode, encode
from tracker.errors import Code, TrackerError
from tracker.model.cell import DEFINITIONS, NAMES, OWNER, VISITORS, container_span
from tracker.model.keys import PARTITIONS
from tracker.model.record import DefinitionRecord, DerivedRecord, Layer
from tracker.model.window import KEEP_MS, SIZE_MS, Granularity
from tracker.ports.log import LogBatch, LogReader, Unappended
from tracker.ports.store import Meta, Store

Progress = Callable[[int, int], None]
"""Called with (records done, records in all)."""

Containers = Mapping[str, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that a replay of the log does not confirm."""

    partition: int
    container: str
    key: str
    live: str
    replayed: str


@dataclass(slots=True)
class Comparison:
    """What a reconcile found."""

    records: int = 0
    values: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Tell whether the live store is what the log says."""
        return not self.differences


class UntilReader:
    """A log that ends where it is told to: the past, as it stood at given positions."""

    def __init__(self, reader: LogReader, ends: Sequence[int], progress: Progress) -> None:
        self._reader = reader
        self._ends = list(ends)
        self._progress = progress
        self._done = 0

    @property
    def identity(self) -> str:
        """Name the log."""
        return self._reader.identity

    def ends(self) -> Sequence[int]:
        """Return where this past ends."""
        return self._ends

    async def read(
        self, positions: Mapping[int, int], *, records_max: int, wait_ms: int
    ) -> Sequence[LogBatch]:
        """Return the next records before the end."""
        behind = {p: at for p, at in positions.items() if at < self._ends[p]}
        if not behind:
            return []
        batches = await self._reader.read(behind, records_max=records_max, wait_ms=wait_ms)
        cut = [self._cut(batch) for batch in batches]
        self._done += sum(len(batch.records) for batch in cut)
        self._progress(self._done, sum(self._ends))
        return [batch for batch in cut if batch.records]

    async def close(self) -> None:
        """Leave the log open: it is somebody else's."""

    def _cut(self, batch: LogBatch) -> LogBatch:
        end = self._ends[batch.partition]
        if batch.next_position <= end:
            return batch
        kept = [record for record in batch.records if record.offset < end]
        return LogBatch(batch.partition, kept, end)


class HeldWriter:
    """A writer that keeps what a replay derives, and knows what the log turned out to lack."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], deque[Unappended]] = defaultdict(deque)

    async def append(self, records: Sequence[Unappended]) -> None:
        """Hold `records`, by source and target."""
        for record in records:
            derived = decode(record.raw)
            assert isinstance(derived, DerivedRecord)  # noqa: S101 - folds derive nothing else
            self._held[derived.mark.partition, record.partition].append(record)

    def unready(self) -> str | None:
        """Return None: memory takes it."""
        return None

    async def close(self) -> None:
        """Nothing to let go."""

    async def missing(self, store: Store) -> list[Unappended]:
        """Return what was derived and stands nowhere in the log, in order."""
        lacking: list[Unappended] = []
        marks = await asyncio.gather(*(_marks(store, p) for p in range(PARTITIONS)))
        for (source, target), held in self._held.items():
            told = marks[target].get(source, (-1, -1))
            lacking += [record for record in held if _mark(record) > told]
        self._held.clear()
        return lacking


def _mark(record: Unappended) -> tuple[int, int]:
    derived = decode(record.raw)
    assert isinstance(derived, DerivedRecord)  # noqa: S101 - folds derive nothing else
    return (derived.mark.offset, derived.mark.index)


async def _marks(store: Store, partition: int) -> dict[int, tuple[int, int]]:
    loaded = await store.load(partition, {OWNER: [MARKS]})
    stored = orjson.loads(loaded.get(OWNER, {}).get(MARKS, b"{}"))
    return {int(source): (mark[0], mark[1]) for source, mark in stored.items()}


async def rebuild(parts: Parts, progress: Progress) -> int:
    """Empty the store and fold the whole log into it; return how many records were folded.

    No consumer may run meanwhile. The definitions in force are first said to hold from the start,
    so that funnels defined late get the history that the log has, in every later replay too.
    Errors: TrackerError; the store is then incomplete, and a rebuild may be run again.
    """
    await _hold_from_start(parts)
    await parts.store.wipe()
    await parts.store.open_log(parts.reader.identity, PARTITIONS)
    held = HeldWriter()
    until = UntilReader(parts.reader, list(parts.reader.ends()), progress)
    start = beginning(await scan(parts.reader))
    runner = Runner(Parts(until, held, parts.store, parts.keys, parts.clock), start)
    await runner.drain()
    lacking = await held.missing(parts.store)
    if lacking:
        await parts.writer.append(lacking)
    live = Runner(parts)
    await live.drain()
    return runner.records + live.records


async def _hold_from_start(parts: Parts) -> None:
    numbered = await scan(parts.reader)
    layers = {item.record.layer: item.record for item in numbered}
    newest = [layers[layer] for layer in Layer if layer in layers]
    if all(record.from_start for record in newest):
        return
    records = [
        DefinitionRecord(
            layer=record.layer,
            definitions=record.definitions,
            received_at_ms=parts.clock.now_ms(),
            from_start=True,
        )
        for record in newest
    ]
    await parts.writer.append(
        [Unappended(DEFINITION_PARTITION, encode(record)) for record in records]
    )


async def reconcile(parts: Parts, replica: Store, progress: Progress) -> Comparison:
    """Replay the log into `replica` (empty, in memory) and compare it with the live store.

    The live store may be in use: each partition is compared at the position of a snapshot of it.
    Errors: TrackerError when the log or the store does not answer.
    """
    snapshots = [await parts.store.snapshot(partition) for partition in range(PARTITIONS)]
    ends = [meta.position for meta, _ in snapshots]
    _refuse_other_log(parts.reader, [meta for meta, _ in snapshots])
    initial = _initial(snapshots[DEFINITION_PARTITION][1])
    until = UntilReader(parts.reader, ends, progress)
    await replica.open_log(parts.reader.identity, PARTITIONS)
    start = beginning(await scan(parts.reader), initial)
    runner = Runner(Parts(until, HeldWriter(), replica, parts.keys, parts.clock), start)
    await runner.drain()
    comparison = Comparison(records=runner.records)
    for partition, (meta, live) in enumerate(snapshots):
        _, replayed = await replica.snapshot(partition)
        _compare(comparison, partition, (meta.horizon_ms, live, replayed))
    return comparison


def _initial(containers: Containers) -> int:
    stored = containers.get(DEFINITIONS, {}).get(b"current")
    return int(orjson.loads(stored)["initial"]) if stored else 0


def _refuse_other_log(reader: LogReader, metas: Sequence[Meta]) -> None:
    ends = reader.ends()
    for partition, meta in enumerate(metas):
        is_other = bool(meta.log_id) and meta.log_id != reader.identity
        if is_other or meta.position > ends[partition]:
            raise TrackerError(
                Code.LOG_CHANGED,
                f"partition {partition} of the store was built from another log, or from more of"
                f" it than there is (position {meta.position}, end {ends[partition]});"
                " run `tracker rebuild`",
            )


def _compare(
    comparison: Comparison, partition: int, what: tuple[int, Containers, Containers]
) -> None:
    """Compare every container that can still be read, value by value, by meaning."""
    horizon_ms, live, replayed = what
    live_named, replayed_named = Named(live.get(NAMES, {})), Named(replayed.get(NAMES, {}))
    for container in sorted(live.keys() | replayed.keys()):
        if not _is_readable(container, horizon_ms):
            continue
        left = meaning_of(container, live.get(container, {}), live_named)
        right = meaning_of(container, replayed.get(container, {}), replayed_named)
        comparison.values += len(left)
        for key in sorted(left.keys() | right.keys()):
            if left.get(key) != right.get(key):
                comparison.differences.append(
                    Difference(
                        partition,
                        container,
                        key,
                        left.get(key, "nothing"),
                        right.get(key, "nothing"),
                    )
                )


def _is_readable(container: str, horizon_ms: int) -> bool:
    """Tell whether a container is still in use: when it goes is housekeeping, not a number."""
    if container.startswith(VISITORS):
        return is_period_kept(int(container.rpartition(":")[2]), horizon_ms)
    span = container_span(container)
    if span is None or span[0] is Granularity.DAY:
        return True
    granularity, _, stop = span
    return stop * SIZE_MS[granularity] + KEEP_MS[granularity] > horizon_ms
