"""The private Redis with a real server: started, killed, left over, refused, damaged."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from redis.asyncio import Redis

from tracker.backends import embedded_redis
from tracker.backends.embedded_redis import EmbeddedRedis, _runs_on, find_server
from tracker.backends.redis_store import RedisStore
from tracker.errors import Code, TrackerError
from tracker.ports.store import Changes, Commit

DEADLINE_S = 20.0

PARENT = """
import asyncio, sys
from pathlib import Path
from tracker.backends.embedded_redis import EmbeddedRedis

async def main():
    async with EmbeddedRedis(Path(sys.argv[1]), Path(sys.argv[2])) as server:
        print(server.pid, flush=True)
        await server.wait()

asyncio.run(main())
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "data", tmp_path / "run")
    yield server
    await server.stop()


@pytest.fixture
def no_bundled_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave only what a test puts into the folder that this returns."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(embedded_redis, "_bundled_server", lambda: None)
    return folder


def socket_of(server: EmbeddedRedis) -> Path:
    return Path(unquote(urlsplit(server.url).path))


def put_program(path: Path, version: str, then: str) -> None:
    """Write a program that calls itself a server and does `then` when it is started as one."""
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "Redis server v={version} sha=0"; exit; fi\n'
        f"{then}\n"
    )
    path.chmod(0o755)


async def ask(server: EmbeddedRedis, *command: str) -> object:
    client = Redis.from_url(server.url, protocol=2, decode_responses=True)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_started_server_is_set_up_as_promised(server):
    await server.start()
    wanted = {
        "port": "0",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    for name, value in wanted.items():
        assert await ask(server, "CONFIG", "GET", name) == [name, value]
    assert server.set_aside is None


async def test_only_its_owner_can_reach_it(server, tmp_path):
    await server.start()
    for directory in (tmp_path / "data", tmp_path / "run"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_of(server).stat().st_mode) == 0o700
    assert stat.S_ISSOCK(socket_of(server).stat().st_mode)


async def test_directories_that_were_open_to_others_are_closed(server, tmp_path):
    for name in ("data", "run"):
        (tmp_path / name).mkdir(mode=0o755)
    await server.start()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


async def test_ctrl_c_in_the_terminal_does_not_reach_it(server):
    await server.start()
    assert os.getsid(server.pid) != os.getsid(0)


async def test_data_survives_a_stop_and_the_socket_does_not(server):
    await server.start()
    await ask(server, "SET", "k", "v")
    await server.stop()
    assert not socket_of(server).exists()
    await server.start()
    assert await ask(server, "GET", "k") == "v"


async def test_stopping_twice_or_before_the_start_does_nothing(server):
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


async def test_a_killed_server_is_seen_and_started_again_with_its_data(server):
    await server.start()
    await ask(server, "SET", "k", "v")
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert await ask(server, "GET", "k") == "v"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
async def test_the_server_dies_with_its_killed_parent_and_the_next_start_takes_over(
    server, tmp_path
):
    data, run = tmp_path / "data", tmp_path / "run"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(data), str(run), stdout=subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        pid = int(await parent.stdout.readline())
    assert _runs_on(pid, data, run / "redis.sock")
    with pytest.raises(TrackerError, match=rf"process {parent.pid}\).*stop it first") as caught:
        await server.start()
    assert caught.value.code == Code.STORE_MISCONFIGURED
    await ask(server, "SET", "k", "v")
    parent.kill()
    await parent.wait()
    await until(lambda: not _runs_on(pid, data, run / "redis.sock"))
    await server.start()
    assert await ask(server, "GET", "k") == "v"


async def test_a_second_start_on_the_same_data_is_refused_and_the_first_goes_on(server, tmp_path):
    await server.start()
    second = EmbeddedRedis(tmp_path / "data", tmp_path / "run")
    with pytest.raises(TrackerError, match="another tracker"):
        await second.start()
    await second.stop()
    assert (tmp_path / "data" / "redis.pid").exists()
    assert await ask(server, "PING")


async def test_a_server_that_outlived_its_parent_is_stopped_first(server, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    command = [str(find_server()), *server._settings()]
    old = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    await until(lambda: (run / "redis.sock").exists() and (data / "redis.pid").exists())
    await ask(server, "SET", "k", "v")
    await server.start()
    assert await old.wait() == 0
    assert server.pid != old.pid
    assert await ask(server, "GET", "k") == "v"


async def test_a_stale_pid_file_harms_no_other_process(server, tmp_path):
    (tmp_path / "data").mkdir()
    other = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path / "data")
    (tmp_path / "data" / "redis.pid").write_text(f"{other.pid}\n")
    await server.start()
    assert other.returncode is None
    other.kill()
    assert await other.wait() == -signal.SIGKILL


async def test_what_a_crash_left_lying_about_does_not_stop_a_start(server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "data" / "redis.pid").write_text("not a number")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "run" / "redis.sock"))
    await server.start()
    assert await ask(server, "PING")


async def test_a_long_path_is_served_from_a_private_directory_elsewhere(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = EmbeddedRedis(deep / "data", deep / "run")
    folder = socket_of(server).parent
    assert folder.parent == Path(tempfile.gettempdir())
    async with server:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert await ask(server, "PING")
    folder.rmdir()


async def test_a_directory_elsewhere_that_somebody_prepared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = EmbeddedRedis(deep / "data", deep / "run")
    (tmp_path / "trap").mkdir()
    socket_of(server).parent.symlink_to(tmp_path / "trap")
    with pytest.raises(TrackerError, match="not a directory of this user") as caught:
        await server.start()
    assert caught.value.code == Code.PREREQUISITE


async def test_a_path_with_odd_characters_works(tmp_path):
    async with EmbeddedRedis(tmp_path / "d", tmp_path / "run ?#%41 é") as server:
        store = await RedisStore.connect(server.url)
        await store.close()


async def test_files_broken_in_the_middle_are_moved_aside_and_the_store_is_empty(server, tmp_path):
    await server.start()
    for number in range(20):
        await ask(server, "SET", f"k{number}", "v" * 100)
    await server.stop()
    (broken,) = [path for path in (tmp_path / "data").rglob("appendonly*") if path.suffix == ".aof"]
    raw = bytearray(broken.read_bytes())
    # Longer than a command, so that its framing is hit; "#" would be an annotation to Redis 7.
    raw[len(raw) // 2 : len(raw) // 2 + 300] = b"!" * 300
    broken.write_bytes(raw)
    await server.start()
    assert await ask(server, "DBSIZE") == 0
    assert server.set_aside is not None
    assert [path.read_bytes() for path in server.set_aside.rglob("*.aof")] == [raw]
    await server.stop()
    await server.start()
    assert server.set_aside is None


async def test_a_file_cut_anywhere_comes_back_at_a_whole_commit(server, tmp_path):
    await server.start()
    store = await RedisStore.connect(server.url)
    await store.take_over(3)
    for position in range(6):
        puts = {name: {b"at": b"%d" % (position + 1)} for name in ("a", "b", f"n{position}")}
        commit = Commit(
            partition=3,
            expected=position,
            position=position + 1,
            epoch=1,
            log_id="log",
            token=str(position),
            watermark_ms=1,
            horizon_ms=1,
            changes=Changes(puts=puts),
        )
        assert await store.commit([commit]) == ["applied"]
    await store.close()
    await server.stop()
    (file,) = [path for path in (tmp_path / "data").rglob("appendonly*") if path.suffix == ".aof"]
    whole = file.read_bytes()
    seen = set()
    for length in random.Random(7).sample(range(len(whole) // 4, len(whole)), 12):
        file.write_bytes(whole[:length])
        await server.start()
        store = await RedisStore.connect(server.url)
        meta, containers = await store.snapshot(3)
        await store.close()
        await server.stop()
        seen.add(meta.position)
        assert not meta.torn
        assert len(containers) == (meta.position + 2 if meta.position else 0)
        assert {int(containers[name][b"at"]) for name in "ab" if containers} <= {meta.position}
    assert len(seen) > 1


async def test_a_server_that_ends_is_told_with_its_last_words(server, no_bundled_server):
    put_program(no_bundled_server / "redis-server", "6.2.0", "echo the disk is on fire; exit 3")
    with pytest.raises(TrackerError, match=r"ended with status 3(?s:.)*on fire") as caught:
        await server.start()
    assert caught.value.code == Code.STORE_UNAVAILABLE


async def test_a_server_that_never_answers_is_ended(server, no_bundled_server, monkeypatch):
    monkeypatch.setattr(embedded_redis, "START_S", 0.2)
    pid_file = no_bundled_server / "pid"
    put_program(
        no_bundled_server / "redis-server", "7.0.0", f"echo $$ > {pid_file}; exec /bin/sleep 60"
    )
    with pytest.raises(TrackerError, match="did not come up"):
        await server.start()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_server_that_does_not_stop_is_killed_when_the_caller_loses_patience(server):
    await server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.stop(), 0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_server_on_path_comes_first(no_bundled_server):
    put_program(no_bundled_server / "valkey-server", "8.1.0", "exit 1")
    assert find_server() == no_bundled_server / "valkey-server"
    put_program(no_bundled_server / "redis-server", "6.2.0", "exit 1")
    assert find_server() == no_bundled_server / "redis-server"


def test_a_server_that_is_too_old_is_passed_over(no_bundled_server):
    put_program(no_bundled_server / "redis-server", "6.0.16", "exit 1")
    put_program(no_bundled_server / "valkey-server", "7.2.5", "exit 1")
    assert find_server() == no_bundled_server / "valkey-server"


def test_without_a_server_one_sentence_says_what_to_install(no_bundled_server):
    put_program(no_bundled_server / "redis-server", "5.0.7", "exit 1")
    with pytest.raises(TrackerError, match=r"install .*redis-server") as caught:
        find_server()
    assert caught.value.code == Code.PREREQUISITE
    assert "\n" not in caught.value.message
    assert str(no_bundled_server) in caught.value.message


def test_the_log_of_the_server_is_bounded(tmp_path):
    asyncio.run(_start_twice(tmp_path))
    assert (tmp_path / "data" / "redis.log").stat().st_size < 10_000
    assert (tmp_path / "data" / "redis.log.1").exists()


async def _start_twice(directory: Path) -> None:
    server = EmbeddedRedis(directory / "data", directory / "run")
    async with server:
        (directory / "data" / "redis.log").write_bytes(b"x" * (embedded_redis.LOG_BYTES_MAX + 1))
    async with server:
        pass
