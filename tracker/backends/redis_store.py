"""The store in Redis ≥ 6.2 (or Valkey): every partition in one hash slot, one script a commit.

Names and bytes are those of `redis_format`, the atomic commit is commit.lua. Nothing here retries:
a command whose reply was lost may have been applied, and only the caller knows what to ask next. No
arithmetic on values, no expiry by the clock, and no meaning: what the containers hold is the folds'
business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from tracker.backends.redis_format import (
    COMMIT,
    READ_AGAIN,
    KeyNames,
    commit_command,
    decode_notice,
)
from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.store import FORMAT_VERSION, Commit, Meta, Notice, Outcome

VERSION_MIN = (6, 2)
TIMEOUT_S = 5.0
"""For one answer. A commit takes some 10 ms; Redis itself speaks of a slow script from 5 s on."""
CONNECTIONS_MAX = 8
QUIET_S = 2.0
"""A listener that hears nothing asks, and gives up after another such time: 4 s to notice."""
RECONNECT_S = 0.2
SNAPSHOT_TRIES_MAX = 50
SCAN_COUNT = 1_000

_META_FIELDS = ("position", "epoch", "log_id", "token", "watermark_ms", "horizon_ms", "torn")


class RedisStore:
    """All partitions of one installation, in one Redis. Made by `connect`."""

    def __init__(self, url: str, installation: str) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._address = unquote(parts.path) if parts.scheme == "unix" else host
        self._redis = _client(url)
        self._listening = _client(url)
        database = self._redis.connection_pool.connection_kwargs.get("db") or 0
        self._keys = KeyNames(installation, int(database))
        self._count = PARTITIONS
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, url: str, *, installation: str = "tracker") -> Self:
        """Return the store at `url` (redis://, rediss://, unix://) once the server will do.

        Errors: TrackerError STORE_UNAVAILABLE or STORE_MISCONFIGURED.
        """
        if not installation or set(installation) & set("{}*?[]\\"):
            raise TrackerError(
                Code.CONFIGURATION,
                f"the installation name {installation!r} may not be empty or hold one of "
                "{}*?[]\\",
            )
        store = cls(url, installation)
        try:
            await store._check_server()
            await store._all([("SCRIPT LOAD", COMMIT)])
        except BaseException:
            await store.close()
            raise
        return store

    async def open_log(self, log_id: str, partitions: int) -> None:
        """Check that this store belongs to this format, log and partition count; claim a new one.

        Errors: TrackerError LOG_CHANGED, STORE_MISCONFIGURED or STORE_UNAVAILABLE.
        """
        if partitions > PARTITIONS:
            raise AssertionError(f"{partitions} partitions, tags for {PARTITIONS}")
        key = self._keys.installation
        claim = {"format": str(FORMAT_VERSION), "log_id": log_id, "partitions": str(partitions)}
        commands = [("HSETNX", key, field, value) for field, value in claim.items()]
        *_, found = await self._all([*commands, ("HGETALL", key)], atomic=True)
        stored = {field.decode(): value.decode() for field, value in found.items()}
        what = f"the store {self._keys.name!r} in Redis at {self._address}"
        if stored["format"] != claim["format"]:
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"{what} is in format {stored['format']}, this version reads {FORMAT_VERSION}: "
                "install the version that wrote it, or run `tracker rebuild`",
            )
        if stored["partitions"] != claim["partitions"]:
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"{what} was built with {stored['partitions']} partitions, the log has "
                f"{partitions}: go back to the log it was built from, or run `tracker rebuild`",
            )
        if stored["log_id"] != log_id:
            raise TrackerError(
                Code.LOG_CHANGED,
                f"{what} was built from log {stored['log_id']}, this one is {log_id}: "
                "go back to that log, or run `tracker rebuild`",
            )
        self._count = partitions

    async def take_over(self, partition: int) -> Meta:
        """Raise the partition's owner epoch by one and return its meta after that."""
        key = self._keys.meta(partition)
        commands = [("HINCRBY", key, "epoch", 1), ("HMGET", key, *_META_FIELDS)]
        _, values = await self._all(commands, atomic=True)
        return _meta(values)

    async def metas(self) -> Sequence[Meta]:
        """Return the meta of every partition, in partition order."""
        keys = [self._keys.meta(partition) for partition in range(self._count)]
        return [_meta(v) for v in await self._all([("HMGET", k, *_META_FIELDS) for k in keys])]

    async def load(
        self, partition: int, wanted: Mapping[str, Sequence[bytes]]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return the fields of `wanted` that exist, by container; every container is named."""
        asked = {container: names for container, names in wanted.items() if names}
        answers = await self._all(
            [("HMGET", self._keys.hash(partition, name), *names) for name, names in asked.items()]
        )
        found: dict[str, dict[bytes, bytes]] = {container: {} for container in wanted}
        for (container, names), values in zip(asked.items(), answers, strict=True):
            pairs = zip(names, values, strict=True)
            found[container] = {name: value for name, value in pairs if value is not None}
        return found

    async def load_all(
        self, partition: int, containers: Sequence[str]
    ) -> dict[str, dict[bytes, bytes]]:
        """Return whole containers; a missing one is empty."""
        commands = [("HGETALL", self._keys.hash(partition, container)) for container in containers]
        return dict(zip(containers, await self._all(commands), strict=True))

    async def snapshot(self, partition: int) -> tuple[Meta, dict[str, dict[bytes, bytes]]]:
        """Return meta and every container of a partition, as they were at one instant.

        Reads the containers that were known a moment ago, and again if one was added meanwhile.
        """
        known: set[str] = set()
        meta, members = self._keys.meta(partition), self._keys.containers(partition)
        for _ in range(SNAPSHOT_TRIES_MAX):
            names = sorted(known)
            reads = [("HGETALL", self._keys.hash(partition, name)) for name in names]
            commands = [("HMGET", meta, *_META_FIELDS), ("SMEMBERS", members), *reads]
            values, present, *hashes = await self._all(commands, atomic=True)
            if known.issuperset(name.decode() for name in present):
                stored = zip(names, hashes, strict=True)
                return _meta(values), {name: fields for name, fields in stored if fields}
            known = {name.decode() for name in present}
        raise TrackerError(
            Code.STORE_UNAVAILABLE,
            f"partition {partition} in Redis at {self._address} changed faster than it could be "
            "read: try again when less is written",
        )

    async def commit(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        """Apply each commit (of different partitions) or refuse it; one answer each.

        Errors: TrackerError STORE_UNAVAILABLE: then none, some or all of them were applied, and
        the same commits may be sent again. STORE_MISCONFIGURED when a key holds something else.
        """
        if len({commit.partition for commit in commits}) != len(commits):
            raise AssertionError("two commits of one partition at a time")
        calls = [commit_command(self._keys, commit) for commit in commits]
        with self._translated():
            answers = await self._send(calls)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                # Only a script that the server does not know has surely not run.
                await self._send([("SCRIPT LOAD", COMMIT)])
                again = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
                for i, answer in zip(
                    again, await self._send([calls[i] for i in again]), strict=True
                ):
                    answers[i] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return [Outcome(answer.decode()) for answer in answers]

    async def notices(self) -> AsyncIterator[Notice | None]:
        """Yield notices as commits happen; None after every (re)connection and loss."""
        while not self._closed.is_set():
            try:
                async with self._listening.pubsub() as pubsub:
                    with _no_cancel_lost():
                        await pubsub.subscribe(self._keys.channel)
                    async for message in self._messages(pubsub):
                        confirmed = message["type"] != "message"
                        yield None if confirmed else decode_notice(message["data"])
            except (RedisError, OSError):
                with suppress(TimeoutError):
                    async with asyncio.timeout(RECONNECT_S):
                        await self._closed.wait()

    async def wipe(self) -> None:
        """Delete everything of the installation, also what a fault has left behind.

        A wipe that is cut in the middle leaves partitions torn, never half empty and trusted.
        """
        metas = [self._keys.meta(partition) for partition in range(PARTITIONS)]
        with self._translated():
            await self._send([("HSET", key, "torn", "wiped") for key in metas])
            kept = {key.encode() for key in metas}
            cursor = 0
            while True:
                scan = ("SCAN", cursor, "MATCH", self._keys.partitions_pattern, "COUNT", SCAN_COUNT)
                ((cursor, keys),) = await self._all([scan])
                await self._all([("UNLINK", key) for key in keys if key not in kept])
                if not cursor:
                    break
        last = [*metas, self._keys.installation]
        await self._all(
            [*(("UNLINK", key) for key in last), ("PUBLISH", self._keys.channel, READ_AGAIN)]
        )

    async def close(self) -> None:
        """Let go, and end the listeners."""
        self._closed.set()
        await self._redis.aclose()
        await self._listening.aclose()

    async def _send(
        self, commands: Iterable[tuple[Any, ...]], *, atomic: bool = False
    ) -> list[Any]:
        """Return the answers in one round trip, errors of single commands among them."""
        pipeline = self._redis.pipeline(transaction=atomic)
        for command in commands:
            pipeline.execute_command(*command)
        with _no_cancel_lost():
            return await pipeline.execute(raise_on_error=False)

    async def _all(self, commands: Iterable[tuple[Any, ...]], *, atomic: bool = False) -> list[Any]:
        with self._translated():
            answers = await self._send(commands, atomic=atomic)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what redis-py raises into what callers know."""
        try:
            yield
        except (RedisError, OSError) as error:
            raise _told(error, f"Redis at {self._address}") from error

    async def _messages(self, pubsub: PubSub) -> AsyncIterator[dict[str, Any]]:
        """Yield what the server says on a subscription, confirmations too, pongs left out.

        Errors: RedisError when it says nothing although asked.
        """
        asked = False
        # Asked every time: redis-py would connect again after `close`.
        while not self._closed.is_set():
            message = await pubsub.get_message(timeout=QUIET_S)
            if message is None:
                if asked:
                    raise RedisError("the subscription is silent")
                with _no_cancel_lost():
                    await pubsub.ping()
                asked = True
                continue
            asked = False
            if message["type"] != "pong":
                yield message

    async def _check_server(self) -> None:
        (info,) = await self._all([("INFO",)])
        where = f"Redis at {self._address}"
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"{where} is version {version}: install Redis 6.2 or newer, or Valkey",
            )
        if info.get("redis_mode") == "cluster":
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"{where} is a node of a cluster: name a single server in the store's URL",
            )
        if info["maxmemory_policy"] != "noeviction":
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"{where} may delete data when its memory is full (maxmemory-policy "
                f"{info['maxmemory_policy']}): run `redis-cli CONFIG SET maxmemory-policy "
                "noeviction`, and set the same in its configuration file",
            )


def _client(url: str) -> Redis:
    # The pool's own deadline covers waiting for a free connection, the socket's each answer.
    # RESP2: the shapes of answers are then those of Redis 6.2 on every server.
    return Redis.from_pool(
        BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    )


@contextmanager
def _no_cancel_lost() -> Iterator[None]:
    """Raise the cancel that came inside and that nobody below passed on.

    redis-py sends through `wait_for`, which up to Python 3.11 loses a cancel that comes just as it
    ends. The task that was told to stop would go on for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def _told(error: Exception, where: str) -> TrackerError:
    """Return what `error` means to an operator."""
    # A refused AUTH comes as an error of the connection that it was sent on.
    refusals = (AuthenticationError, NoPermissionError)
    if isinstance(error, refusals) or isinstance(error.__cause__, refusals):
        return TrackerError(
            Code.STORE_MISCONFIGURED,
            f"{where} refuses this user ({error}): check name, password and permissions in "
            "the store's URL",
        )
    if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
        return TrackerError(
            Code.STORE_MISCONFIGURED,
            f"{where} holds something foreign under our keys ({error}): find out who "
            "writes there, then run `tracker rebuild`",
        )
    if isinstance(error, ResponseError):
        return TrackerError(
            Code.STORE_UNAVAILABLE,
            f"{where} refused a command ({error}): see to the server (memory, disk, role); "
            "what was not stored is sent again",
        )
    return TrackerError(
        Code.STORE_UNAVAILABLE,
        f"{where} did not answer ({type(error).__name__}: {error}): check that it runs "
        "and has loaded its data; what was not stored is sent again",
    )


def _meta(values: Sequence[bytes | None]) -> Meta:
    position, epoch, log_id, token, watermark, horizon, torn = (value or b"" for value in values)
    return Meta(
        position=int(position or 0),
        epoch=int(epoch or 0),
        log_id=log_id.decode(),
        token=token.decode(),
        watermark_ms=int(watermark or 0),
        horizon_ms=int(horizon or 0),
        torn=torn.decode(),
    )
