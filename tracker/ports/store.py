"""The store: all state of all partitions, moved by one atomic, fenced commit a batch.

A partition's state is a set of named **containers**, each a mapping of field → value (bytes), and
its `Meta`. What the containers mean is the folds' business (`consumers.state`); the store only
promises that a commit happens wholly, once, and in order.

Contract (tests/contract/test_store_contract.py, every back end)
    * `take_over` raises the owner epoch: whoever held the partition before is fenced.
    * `commit` applies all puts, deletes and drops together with the new position, or nothing.
      It applies only when the stored position, owner epoch and log id are those expected.
    * Values are absolute, so that a commit that is sent again after a lost reply does no harm,
      and is recognised by its token.
    * A commit that was cut in the middle leaves the torn mark, and every later one answers TORN.
    * `snapshot` reads one partition's meta and containers at one instant.
    * After a commit a `Notice` reaches every listener that is connected (it may be lost when not,
      which its previous position shows).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

FORMAT_VERSION = 1
"""Of everything that the store holds; a store of another version is refused."""

META_START = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Where a partition stands.

    Units: times in ms since the epoch; 0 when nothing was read yet.
    """

    position: int = META_START
    epoch: int = 0  # of the owner
    log_id: str = ""  # empty until the first commit
    token: str = ""  # of the last commit
    watermark_ms: int = 0  # largest received time of live records
    horizon_ms: int = 0  # largest received time of all records, imports too: what expiry follows
    torn: str = ""  # token of a commit that was cut in the middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything that one batch does to one partition: a value, so that tests can compare it.

    `puts` are absolute: container → field → value, None deletes the field. `drops` are containers
    that go as a whole. A container in `drops` has no puts.
    """

    puts: Mapping[str, Mapping[bytes, bytes | None]] = field(default_factory=dict)
    drops: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One batch on its way into the store."""

    partition: int
    expected: int  # the position that must be stored now
    position: int  # the position that is stored with the changes
    epoch: int
    log_id: str
    token: str  # names this batch: the same batch makes the same token
    watermark_ms: int
    horizon_ms: int
    changes: Changes


class Outcome(StrEnum):
    """What became of a commit."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # this very batch was applied before: a reply was lost
    STALE = "stale"  # another owner, or the store came back older: drop caches, take over, re-read
    TORN = "torn"
    LOG_CHANGED = "log_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One commit, told to the readers: what moved."""

    partition: int
    epoch: int
    previous: int
    position: int
    watermark_ms: int
    touched: Sequence[tuple[str, bytes]]  # (container, field) of counters and ledgers
    dropped: Sequence[str] = ()


def notice_of(commit: Commit) -> Notice:
    """Return what listeners are told of an applied commit: private containers are left out."""
    changes = commit.changes
    return Notice(
        partition=commit.partition,
        epoch=commit.epoch,
        previous=commit.expected,
        position=commit.position,
        watermark_ms=commit.watermark_ms,
        touched=tuple(
            (container, name)
            for container, puts in changes.puts.items()
            if not container.startswith("_")
            for name in puts
        ),
        dropped=tuple(name for name in changes.drops if not name.startswith("_")),
    )


class Store(Protocol):
    """The whole store; one object serves all partitions."""

    async def open_log(self, log_id: str, partitions: int) -> None:
        """Check that this store belongs to this format, log and partition count; claim a new one.

        Errors: TrackerError LOG_CHANGED, STORE_MISCONFIGURED or STORE_UNAVAILABLE.
        """
        ...

    async def take_over(self, partition: int) -> Meta:
        """Raise the partition's owner epoch by one and return its meta after that."""
        ...

    async def metas(self) -> Sequence[Meta]:
        """Return the meta of every partition, in partition order."""
        ...

    async def load(
        self, partition: int, wanted: Mapping[str, Sequence[bytes]]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return the fields of `wanted` that exist, by container."""
        ...

    async def load_all(
        self, partition: int, containers: Sequence[str]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return whole containers; a missing one is empty."""
        ...

    async def snapshot(self, partition: int) -> tuple[Meta, dict[str, dict[bytes, bytes]]]:
        """Return meta and every container of a partition, as they were at one instant."""
        ...

    async def commit(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        """Apply each commit (of different partitions) or refuse it; one answer each.

        Errors: TrackerError STORE_UNAVAILABLE: then none, some or all of them were applied, and
        the same commits may be sent again.
        """
        ...

    def notices(self) -> AsyncIterator[Notice | None]:
        """Yield notices as commits happen.

        Yields None when notices may have been lost (also once at the start), after which the
        reader re-reads what it holds.
        """
        ...

    async def wipe(self) -> None:
        """Delete everything that this store holds of this installation, for a rebuild."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...
