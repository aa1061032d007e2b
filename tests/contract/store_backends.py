"""The stores that the contract is tested on, with what a test may do to them that the port may not.

A new back end joins by one class here and one line in `BACKENDS`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from redis.asyncio import Redis

from tracker.backends.embedded_redis import EmbeddedRedis
from tracker.backends.memory_store import MemoryStore
from tracker.backends.redis_format import KeyNames
from tracker.backends.redis_store import RedisStore
from tracker.ports.store import Changes, Commit, Meta, Notice, Store

LOG_ID = "log-1"
DEADLINE_S = 20.0
"""For conditions that hold within milliseconds on an idle machine."""

Containers = Mapping[str, Mapping[bytes, bytes | None]]
_installations = (f"test{number}" for number in itertools.count())


class Backend(Protocol):
    """One installation in one kind of store, for one test."""

    store: Store

    async def start(self, url: str) -> None: ...

    async def remember(self) -> Any:
        """Return all that is stored now."""

    async def go_back(self, older: Any) -> None:
        """Let the store hold what `remember` returned: it came back older."""

    async def tear(self, partition: int) -> None:
        """Leave the mark of a commit that was cut in the middle."""

    async def stop(self) -> None: ...


class Memory:
    def __init__(self) -> None:
        self.store = MemoryStore()

    async def start(self, url: str) -> None:
        del url

    async def remember(self) -> MemoryStore:
        return self.store.fork()

    async def go_back(self, older: MemoryStore) -> None:
        copy = older.fork()
        self.store._partitions, self.store._log_id = copy._partitions, copy._log_id

    async def tear(self, partition: int) -> None:
        self.store.tear(partition, "cut")

    async def stop(self) -> None:
        await self.store.close()


class RealRedis:
    """An installation of its own on the server of this test session."""

    store: RedisStore
    raw: Redis
    keys: KeyNames

    async def start(self, url: str) -> None:
        self.keys = KeyNames(next(_installations), 0)
        self.url = url
        self.store = await RedisStore.connect(self.url, installation=self.keys.name)
        self.raw = Redis.from_url(self.url, protocol=2)

    async def every_key(self) -> list[bytes]:
        return sorted([key async for key in self.raw.scan_iter(match=f"{self.keys.name}:*")])

    async def remember(self) -> dict[bytes, bytes]:
        return {key: await self.raw.dump(key) for key in await self.every_key()}

    async def go_back(self, older: Mapping[bytes, bytes]) -> None:
        async with self.raw.pipeline(transaction=True) as pipeline:
            for key in await self.every_key():
                pipeline.delete(key)
            for key, value in older.items():
                pipeline.restore(key, 0, value)
            await pipeline.execute()

    async def tear(self, partition: int) -> None:
        await self.raw.hset(self.keys.meta(partition), "torn", "cut")

    async def stop(self) -> None:
        await self.store.close()
        for key in await self.every_key():
            await self.raw.delete(key)
        await self.raw.aclose()


BACKENDS: Mapping[str, Callable[[], Backend]] = {"memory": Memory, "redis": RealRedis}


@contextmanager
def running_server(directory: Path) -> Iterator[str]:
    """Run one private Redis; yields its address."""
    server = EmbeddedRedis(directory / "data", directory / "run")
    with asyncio.Runner() as runner:
        try:
            runner.run(server.start())
            yield server.url
        finally:
            runner.run(server.stop())


async def heard(notices: AsyncIterator[Notice | None]) -> Notice | None:
    """Return what a listener hears next."""
    async with asyncio.timeout(DEADLINE_S):
        return await anext(notices)


@dataclass(slots=True)
class Owner:
    """One owner of one partition, as the runner is one: it knows where it stands."""

    store: Store
    partition: int
    meta: Meta

    @classmethod
    async def take(cls, store: Store, partition: int = 3) -> Owner:
        return cls(store, partition, await store.take_over(partition))

    def batch(
        self, puts: Containers | None = None, *, drops: Sequence[str] = (), **fields: Any
    ) -> Commit:
        """Return the next commit of this owner; `fields` replace what it would say."""
        here = self.meta.position
        said: dict[str, Any] = {
            "partition": self.partition,
            "expected": here,
            "position": here + 1,
            "epoch": self.meta.epoch,
            "log_id": LOG_ID,
            "token": f"batch-{here}",
            "watermark_ms": 1_000 + here,
            "horizon_ms": 2_000 + here,
            "changes": Changes(puts=puts or {}, drops=drops),
        }
        return Commit(**(said | fields))

    async def put(self, puts: Containers | None = None, *, drops: Sequence[str] = ()) -> Commit:
        """Commit the next batch, which must be applied, and move on."""
        commit = self.batch(puts, drops=drops)
        assert await self.store.commit([commit]) == ["applied"]
        self.meta = (await self.store.metas())[self.partition]
        return commit
