"""What only a real Redis can do to the store: foreign keys, full memory, lost scripts and calls."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from store_backends import DEADLINE_S, LOG_ID, Owner, RealRedis, heard, running_server

from tracker.backends import redis_store
from tracker.backends.redis_format import NOTICE_BYTES_MAX
from tracker.backends.redis_store import RedisStore
from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Outcome


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def real(redis_url: str) -> AsyncIterator[RealRedis]:
    backend = RealRedis()
    await backend.start(redis_url)
    await backend.store.open_log(LOG_ID, PARTITIONS)
    yield backend
    await backend.stop()


async def test_a_store_of_another_format_is_refused(real):
    await real.raw.hset(real.keys.installation, "format", "99")
    with pytest.raises(TrackerError, match=r"format 99.*tracker rebuild") as caught:
        await real.store.open_log(LOG_ID, PARTITIONS)
    assert caught.value.code == Code.STORE_MISCONFIGURED


async def test_a_foreign_key_is_refused_before_any_write(real):
    owner = await Owner.take(real.store)
    await owner.put({"a": {b"x": b"1"}})
    await real.raw.set(real.keys.hash(3, "z"), "foreign")
    before = await real.remember()
    puts = {"a": {b"x": b"2"}, "z": {b"y": b"1"}}
    with pytest.raises(TrackerError, match=r"foreign.*WRONGTYPE.*h:z.*tracker rebuild") as caught:
        await real.store.commit([owner.batch(puts)])
    assert caught.value.code == Code.STORE_MISCONFIGURED
    assert await real.remember() == before


@pytest.mark.parametrize("which", ["meta", "containers"])
async def test_a_foreign_key_in_our_own_names_is_refused(real, which):
    owner = await Owner.take(real.store)
    key = getattr(real.keys, which)(3)
    await real.raw.delete(key)
    await real.raw.set(key, "foreign")
    with pytest.raises(TrackerError, match="WRONGTYPE"):
        await real.store.commit([owner.batch({"a": {b"x": b"1"}})])
    assert not await real.raw.exists(real.keys.hash(3, "a"))
    await real.store.wipe()
    assert await real.every_key() == []


async def test_the_other_partitions_of_a_refused_call_were_applied(real):
    owners = [await Owner.take(real.store, partition) for partition in (1, 2, 3)]
    await real.raw.set(real.keys.hash(2, "a"), "foreign")
    commits = [owner.batch({"a": {b"x": b"1"}}) for owner in owners]
    with pytest.raises(TrackerError):
        await real.store.commit(commits)
    assert await real.store.commit([commits[0], commits[2]]) == ["duplicate", "duplicate"]


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-1], lambda raw: raw[:3]])
async def test_an_argument_that_was_cut_is_refused_before_any_write(real, monkeypatch, spoil):
    owner = await Owner.take(real.store)
    send = real.store._send

    async def cut(commands: Any, **how: Any) -> list[Any]:
        return await send([(*command[:-1], spoil(command[-1])) for command in commands], **how)

    before = await real.remember()
    monkeypatch.setattr(real.store, "_send", cut)
    with pytest.raises(TrackerError) as caught:
        await real.store.commit([owner.batch({"a": {b"x": None}})])
    assert caught.value.code == Code.STORE_UNAVAILABLE
    assert await real.remember() == before


async def test_an_error_in_the_middle_of_a_commit_leaves_the_partition_torn(real):
    """A user who may do everything but SADD gets past every check and stops after the mark."""
    await real.raw.execute_command(
        *("ACL", "SETUSER", "halfway", "on", ">secret", "allkeys", "allchannels", "+@all", "-sadd")
    )
    url = real.url.replace("unix://", "unix://halfway:secret@")
    limited = await RedisStore.connect(url, installation=real.keys.name)
    try:
        owner = await Owner.take(limited)
        with pytest.raises(TrackerError):
            await limited.commit([owner.batch({"a": {b"x": b"1"}})])
    finally:
        await limited.close()
        await real.raw.execute_command("ACL", "DELUSER", "halfway")
    meta, _ = await real.store.snapshot(3)
    assert (meta.torn, meta.position) == ("batch-0", 0)
    assert await real.store.commit([owner.batch({"a": {b"x": b"1"}})]) == [Outcome.TORN]


async def test_a_server_without_memory_refuses_before_the_first_write(real):
    owner = await Owner.take(real.store)
    before = await real.remember()
    await real.raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(TrackerError, match="memory") as caught:
            await real.store.commit([owner.batch({"a": {b"x": b"1"}})])
    finally:
        await real.raw.config_set("maxmemory", 0)
    assert caught.value.code == Code.STORE_UNAVAILABLE
    assert await real.remember() == before
    await owner.put({"a": {b"x": b"1"}})


async def test_a_server_that_forgot_the_script_is_told_again(real):
    owners = [await Owner.take(real.store, partition) for partition in range(3)]
    await real.raw.script_flush()
    commits = [owner.batch({"a": {b"x": b"1"}}) for owner in owners]
    assert await real.store.commit(commits) == ["applied"] * 3


async def test_a_call_that_was_cancelled_leaves_no_reply_for_the_next(real):
    owner = await Owner.take(real.store)
    await owner.put({"a": {b"x": b"1" * 50_000}})
    for _ in range(20):
        cancelled = asyncio.ensure_future(real.store.load_all(3, ["a"]))
        for _ in range(3):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert (await real.store.metas())[3] == owner.meta
    assert (await real.store.load_all(3, ["a"]))["a"][b"x"] == b"1" * 50_000


async def test_a_cancel_is_never_lost_whenever_it_comes(real):
    """A task that is told to stop must stop, or a shutdown would hang."""

    async def read_for_ever() -> None:
        while True:
            await real.store.metas()

    for turns in range(60):
        task = asyncio.ensure_future(read_for_ever())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=DEADLINE_S)
        assert done, turns
        assert task.cancelled(), turns


async def test_a_listener_whose_connection_was_cut_reads_again(real):
    async with aclosing(real.store.notices()) as notices:
        assert await heard(notices) is None
        await real.raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await heard(notices) is None
        owner = await Owner.take(real.store)
        await owner.put()
        notice = await heard(notices)
    assert notice is not None
    assert notice.position == 1


@asynccontextmanager
async def frozen(real: RealRedis) -> AsyncIterator[None]:
    """Hold the server still: connections stay open, and nothing answers."""
    pid = (await real.raw.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_commit_whose_reply_was_lost_is_sent_once_and_recognised_later(real, monkeypatch):
    owner = await Owner.take(real.store)
    monkeypatch.setattr(redis_store, "TIMEOUT_S", 0.2)
    impatient = await RedisStore.connect(real.url, installation=real.keys.name)
    commit = owner.batch({"a": {b"x": b"1"}})
    await real.raw.config_resetstat()
    try:
        async with frozen(real):
            with pytest.raises(TrackerError, match="did not answer") as caught:
                await impatient.commit([commit])
    finally:
        await impatient.close()
    assert caught.value.retryable
    # Its bytes lie in the server's socket, so it is applied now, and the reply goes nowhere.
    async with asyncio.timeout(DEADLINE_S):
        while (await real.store.metas())[3].position == 0:
            pass
    assert (await real.raw.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1
    assert await real.store.commit([commit]) == [Outcome.DUPLICATE]


async def test_a_listener_on_a_dead_connection_notices_and_reads_again(real, monkeypatch):
    assert 2 * redis_store.QUIET_S <= 5
    monkeypatch.setattr(redis_store, "QUIET_S", 0.1)
    async with aclosing(real.store.notices()) as notices, asyncio.TaskGroup() as tasks:
        assert await heard(notices) is None
        async with frozen(real):
            listening = tasks.create_task(heard(notices))
            done, _ = await asyncio.wait([listening], timeout=3 * redis_store.QUIET_S)
            assert not done
        assert await listening is None


async def test_a_listener_of_a_quiet_store_stays_connected(real, monkeypatch):
    monkeypatch.setattr(redis_store, "QUIET_S", 0.02)
    async with aclosing(real.store.notices()) as notices, asyncio.TaskGroup() as tasks:
        assert await heard(notices) is None
        await real.raw.config_resetstat()
        listening = tasks.create_task(heard(notices))
        async with asyncio.timeout(DEADLINE_S):
            while (await real.raw.info("commandstats")).get("cmdstat_ping", {}).get("calls", 0) < 4:
                pass
        await (await Owner.take(real.store)).put()
        notice = await listening
    assert notice is not None
    assert notice.position == 1


async def test_a_notice_that_is_too_large_says_to_read_again(real):
    async with aclosing(real.store.notices()) as notices:
        await heard(notices)
        owner = await Owner.take(real.store)
        await owner.put({"a": {b"x" * NOTICE_BYTES_MAX: b"1"}})
        await owner.put()
        told = [await heard(notices), await heard(notices)]
    assert [notice and notice.position for notice in told] == [None, 2]


async def test_a_server_that_may_evict_is_refused_with_the_command_that_mends_it(real):
    await real.raw.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(TrackerError, match=r"CONFIG SET maxmemory-policy noeviction") as caught:
            await RedisStore.connect(real.url)
    finally:
        await real.raw.config_set("maxmemory-policy", "noeviction")
    assert caught.value.code == Code.STORE_MISCONFIGURED


async def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrackerError, match=r"nobody.*check that it runs") as caught:
        await RedisStore.connect(f"unix://{tmp_path}/nobody")
    assert caught.value.code == Code.STORE_UNAVAILABLE
    assert caught.value.retryable


async def test_a_wrong_password_is_told_without_printing_it(real):
    with pytest.raises(TrackerError, match=r"name, password") as caught:
        await RedisStore.connect(real.url.replace("unix://", "unix://someone:hunter2@"))
    assert caught.value.code == Code.STORE_MISCONFIGURED
    assert "hunter2" not in caught.value.message


async def test_every_key_of_a_partition_lies_in_its_slot(real):
    owner = await Owner.take(real.store)
    await owner.put({"a": {b"x": b"1"}, "c:{odd}": {b"x": b"1"}})
    keys = [key for key in await real.every_key() if key != real.keys.installation.encode()]
    assert len(keys) == 4
    tag = keys[0].split(b"{")[1].split(b"}")[0]
    assert all(key.startswith(f"{real.keys.name}:{{{tag.decode()}}}:".encode()) for key in keys)


async def test_the_set_of_containers_names_those_that_exist_and_no_others(real):
    owner = await Owner.take(real.store)
    await owner.put({name: {b"x": b"1"} for name in "abc"})
    await owner.put({"b": {b"x": None}, "d": {b"x": None}}, drops=["c", "e"])
    assert await real.raw.smembers(real.keys.containers(3)) == {b"a"}


async def test_a_wipe_that_was_cut_leaves_partitions_torn_not_half_empty(real, monkeypatch):
    owner = await Owner.take(real.store)
    await owner.put({"a": {b"x": b"1"}, "b": {b"y": b"2"}})
    send = real.store._send

    async def cut(commands: Any, **how: Any) -> list[Any]:
        commands = list(commands)
        if commands and commands[0][0] == "UNLINK":
            raise RedisConnectionError("cut")
        return await send(commands, **how)

    with monkeypatch.context() as patched:
        patched.setattr(real.store, "_send", cut)
        with pytest.raises(TrackerError, match="cut"):
            await real.store.wipe()
    assert await real.store.commit([owner.batch({"a": {b"x": b"2"}})]) == [Outcome.TORN]
    await real.store.wipe()
    assert await real.every_key() == []


async def test_a_snapshot_whose_request_takes_the_server_several_reads_is_of_one_instant(real):
    """Redis reads 16 kB of one client, then may serve another: the first and the last container."""
    owner = await Owner.take(real.store)
    writer = await RedisStore.connect(real.url, installation=real.keys.name)
    owner.store = writer
    await owner.put({f"m{number:0200}": {b"x": b"1"} for number in range(500)})
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            here = b"%d" % (owner.meta.position + 1)
            await owner.put({"a": {b"at": here}, "z": {b"at": here}})

    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            await owner.put({name: {b"at": b"2"} for name in "az"})
            tasks.create_task(write())
            for _ in range(30):
                meta, containers = await real.store.snapshot(3)
                found = [int(containers[name][b"at"]) for name in "az"]
                assert found == [meta.position] * 2
            stop.set()
    finally:
        await writer.close()


async def test_a_wipe_leaves_other_installations_alone(real, redis_url):
    other = await RedisStore.connect(redis_url, installation=real.keys.name + "0")
    try:
        await (await Owner.take(other)).put({"a": {b"x": b"1"}})
        await real.store.wipe()
        assert (await other.snapshot(3))[1] == {"a": {b"x": b"1"}}
        await other.wipe()
    finally:
        await other.close()
