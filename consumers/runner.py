"""The runner: read, load, fold, append what is derived, commit, again.

It owns time-outs, back-off and the fence; the folds own the numbers. Every tick takes the next
records of all partitions, at most one batch each, and commits each batch once. A partition whose
commit was refused is thrown away, taken over anew and read again from its stored position; a torn
one stops, and only a rebuild helps. Nothing but the store remembers where a partition stands.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from consumers.batch import Derived, Read, read_all
from consumers.definitions import Definitions, beginning, scan
from consumers.partition import LOADED_AT_START, PartitionFold, Start
from tracker.codec import encode
from tracker.errors import Code, TrackerError
from tracker.model.clock import Clock
from tracker.model.keys import PARTITIONS, Keys
from tracker.ports.log import LogBatch, LogReader, LogWriter, Unappended
from tracker.ports.store import Commit, Meta, Outcome, Store

log = structlog.get_logger(__name__)

BATCH_RECORDS_MAX = 500
"""Records of one partition in one commit. An event moves some four fields of the store that others
of its batch do not move, so a script call stays near 2,000 fields and under 10 ms."""

TICK_RECORDS_MAX = 16_000
"""Records of one tick: a full batch of each partition when there is much to catch up with."""
READ_WAIT_MS = 50
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
PAUSE_MAX_MS = 100
"""After a tick the runner rests as long as the tick took, at most this: a commit writes the same
pages for one event as for a hundred, so a busy log is folded in fewer, larger commits while a
quiet one is folded at once."""
BACKLOG_RECORDS = 4_000
"""With so much read at once there is no point in waiting for more."""
VERIFY_MS = 1_000
"""How often an owner looks whether the store is still where it left it: a store that came back
older while nobody wrote says so to nobody."""
APPEND_DEADLINE_S = 10.0
APPEND_RECORDS_MAX = 200
"""Derived records of one append. A definition may take 50 kB, and one append 16 MB."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runner works with."""

    reader: LogReader
    writer: LogWriter
    store: Store
    keys: Keys
    clock: Clock


@dataclass(slots=True)
class Owned:
    """A partition that this runner owns: its fold and where it stands."""

    fold: PartitionFold
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A folded batch on its way into the store."""

    partition: int
    commit: Commit
    records: int


class Runner:
    """Folds all partitions of a log into a store."""

    def __init__(self, parts: Parts, start: Definitions | None = None) -> None:
        """Make a runner; partitions without any state begin with `start`, or what the log says."""
        self._parts = parts
        self._owned: dict[int, Owned] = {}
        self._stopped: dict[int, str] = {}
        self._beginning = start.encode() if start is not None else None
        self.records = 0

    @property
    def stopped(self) -> Mapping[int, str]:
        """Return the partitions that are folded no further, each with what to do about it."""
        return self._stopped

    async def run(self, stop: asyncio.Event) -> None:
        """Fold what comes until `stop` is set, then finish the batch in hand."""
        delay_s = RETRY_FIRST_S
        clock = self._parts.clock
        verified_ms = clock.monotonic_ms()
        while not stop.is_set():
            try:
                started_ms = clock.monotonic_ms()
                folded = await self.tick(wait_ms=READ_WAIT_MS)
                spent_ms = clock.monotonic_ms() - started_ms
                if 0 < folded < BACKLOG_RECORDS:
                    await _sleep(stop, min(spent_ms, PAUSE_MAX_MS) / 1_000)
                if clock.monotonic_ms() - verified_ms >= VERIFY_MS:
                    await self._verify()
                    verified_ms = clock.monotonic_ms()
                delay_s = RETRY_FIRST_S
            except TrackerError as error:
                if not error.retryable:
                    raise
                log.warning("consumer_waits", reason=error.message, seconds=delay_s)
                self._owned.clear()
                await _sleep(stop, delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def drain(self) -> None:
        """Fold until every partition that is not stopped stands at the end of the log."""
        while True:
            await self._own()
            ends = self._parts.reader.ends()
            behind = [p for p, owned in self._owned.items() if owned.position < ends[p]]
            if not behind:
                return
            await self.tick(wait_ms=0)

    async def tick(self, wait_ms: int) -> int:
        """Read, fold and commit once; return how many records were folded.

        Errors: TrackerError when the log or the store did not answer; nothing is lost then.
        """
        await self._own()
        positions = {p: owned.position for p, owned in self._owned.items()}
        batches = await self._parts.reader.read(
            positions, records_max=TICK_RECORDS_MAX, wait_ms=wait_ms
        )
        folded = 0
        for round_of in _rounds(batches):
            folded += await self._fold(round_of)
        return folded

    async def _verify(self) -> None:
        """Let go of everything when the store does not stand where this owner left it."""
        metas = await self._parts.store.metas()
        moved = [
            partition
            for partition, owned in self._owned.items()
            if (metas[partition].position, metas[partition].epoch) != (owned.position, owned.epoch)
        ]
        if moved:
            log.warning("store_moved", partitions=moved)
            self._owned.clear()

    async def _own(self) -> None:
        """Take over every partition that is not owned and not stopped."""
        wanted = [p for p in range(PARTITIONS) if p not in self._owned and p not in self._stopped]
        if not wanted:
            return
        taken = await asyncio.gather(*map(self._parts.store.take_over, wanted))
        metas = dict(zip(wanted, taken, strict=True))
        for partition in [p for p, meta in metas.items() if meta.torn]:
            del metas[partition]
            self._stop(partition, "its state is half written: run `tracker rebuild`")
        if self._beginning is None and any(meta.position == 0 for meta in metas.values()):
            self._beginning = beginning(await scan(self._parts.reader)).encode()
        loaded = await asyncio.gather(*map(self._load_state, metas, metas.values()))
        self._owned.update(zip(metas, loaded, strict=True))

    async def _load_state(self, partition: int, meta: Meta) -> Owned:
        loaded = await self._parts.store.load_all(partition, LOADED_AT_START)
        start = Start(
            partition, self._parts.keys, self._parts.reader.identity, self._first_definitions
        )
        return Owned(PartitionFold(start, meta, loaded), meta.epoch, meta.position)

    def _first_definitions(self) -> Definitions:
        return Definitions.decode(self._beginning) if self._beginning else Definitions()

    async def _fold(self, batches: Sequence[LogBatch]) -> int:
        """Fold one batch of each of several partitions, and commit them together."""
        # A partition that an earlier round lost is read again by the next tick.
        batches = [batch for batch in batches if batch.partition in self._owned]
        if not batches:
            return 0
        store = self._parts.store
        read = {batch.partition: read_all(self._parts.keys, batch.records) for batch in batches}
        folds = {partition: self._owned[partition].fold for partition in read}
        asked = {partition: folds[partition].wanted(records) for partition, records in read.items()}
        for partition, loaded in (await self._load(asked)).items():
            folds[partition].absorb(asked[partition], loaded)
        derived: list[Derived] = []
        for partition, records in read.items():
            derived += folds[partition].fold(records)
        if derived:
            await self._append(derived)
        moved = {partition: fold.pages_wanted() for partition, fold in folds.items()}
        missing = {
            partition: folds[partition].pages.missing(moved[partition]) for partition in read
        }
        loaded_pages = await self._load(missing)
        pending = []
        for batch in batches:
            partition = batch.partition
            fold = folds[partition]
            fold.pages.absorb(loaded_pages.get(partition, {}), moved[partition])
            changes = fold.finish(moved[partition])
            owned = self._owned[partition]
            commit = Commit(
                partition=partition,
                expected=owned.position,
                position=batch.next_position,
                epoch=owned.epoch,
                log_id=self._parts.reader.identity,
                token=_token(batch, read[partition]),
                watermark_ms=fold.watermark_ms,
                horizon_ms=fold.horizon_ms,
                changes=changes,
            )
            pending.append(Pending(partition, commit, len(batch.records)))
        outcomes = await store.commit([item.commit for item in pending])
        folded = sum(map(self._settle, pending, outcomes))
        if Outcome.STALE in outcomes:
            # A store that came back older did so for idle partitions too, and no commit tells.
            self._owned.clear()
        return folded

    async def _load(
        self, asked: Mapping[int, Mapping[str, Sequence[bytes]]]
    ) -> dict[int, dict[str, dict[bytes, bytes]]]:
        wanted = {partition: fields for partition, fields in asked.items() if fields}
        loaded = await asyncio.gather(
            *(self._parts.store.load(partition, fields) for partition, fields in wanted.items())
        )
        return dict(zip(wanted, loaded, strict=True))

    async def _append(self, derived: Sequence[Derived]) -> None:
        """Make what other partitions are told durable, before the batch that told it commits."""
        records = [Unappended(item.partition, encode(item.record)) for item in derived]
        try:
            async with asyncio.timeout(APPEND_DEADLINE_S):
                for start in range(0, len(records), APPEND_RECORDS_MAX):
                    await self._parts.writer.append(records[start : start + APPEND_RECORDS_MAX])
        except TimeoutError as error:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"the log did not take {len(records)} derived records within"
                f" {APPEND_DEADLINE_S:.0f} s; the batch is read again",
            ) from error

    def _settle(self, pending: Pending, outcome: Outcome) -> int:
        """Act on what became of a commit; return how many records it folded."""
        partition = pending.partition
        match outcome:
            case Outcome.APPLIED | Outcome.DUPLICATE:
                owned = self._owned[partition]
                owned.position = pending.commit.position
                owned.fold.trim()
                self.records += pending.records
                return pending.records
            case Outcome.STALE:
                log.warning("partition_taken_over_anew", partition=partition)
                del self._owned[partition]
            case Outcome.TORN:
                self._stop(partition, "its state is half written: run `tracker rebuild`")
            case Outcome.LOG_CHANGED:
                self._stop(partition, "the log is another one: run `tracker rebuild`")
        return 0

    def _stop(self, partition: int, why: str) -> None:
        log.error("partition_stopped", partition=partition, reason=why)
        self._owned.pop(partition, None)
        self._stopped[partition] = why


def _rounds(batches: Sequence[LogBatch]) -> list[list[LogBatch]]:
    """Cut what was read into rounds of one commit a partition."""
    rounds: list[list[LogBatch]] = []
    for batch in batches:
        records = batch.records
        for turn, start in enumerate(range(0, len(records), BATCH_RECORDS_MAX)):
            part = records[start : start + BATCH_RECORDS_MAX]
            is_last = start + BATCH_RECORDS_MAX >= len(records)
            after = batch.next_position if is_last else part[-1].offset + 1
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append(LogBatch(batch.partition, part, after))
    return rounds


def _token(batch: LogBatch, read: Sequence[Read]) -> str:
    """Name a batch: the same records make the same token."""
    digest = hashlib.blake2b(digest_size=8)
    for record in read:
        digest.update(record.raw)
    first = batch.records[0].offset if batch.records else batch.next_position
    return f"{first}-{batch.next_position}-{digest.hexdigest()}"


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
