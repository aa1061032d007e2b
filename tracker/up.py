"""`tracker up`: the private Redis, collector, consumer and query process under one supervisor.

It holds the data directory's lock, starts the programs, starts again what ends, tells the user
where everything is, and stops all of it in order. It moves no event and reads no number. Whatever
kills it, nothing stays behind: the roles watch a pipe that it holds, and on Linux the kernel ends
them with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import structlog

from tracker.backends.embedded_redis import EmbeddedRedis
from tracker.errors import Code, TrackerError
from tracker.installation import Lock, Places, open_secret
from tracker.settings import Loaded
from tracker.units import Keeper, RoleUnit, Unit, describe_exit

READY_S = 60.0
"""A cold start takes two seconds; a slow disk with a log to recover from gets a minute before we
say so. We go on waiting after that: recovery must not be killed half-way again and again."""
READY_POLL_S = 0.1
PROBE_S = 2.0
CONTROL_LINE_S = 5.0
PORT_WAIT_S = 2.0
"""After a kill -9 the last collector may need a moment to let go of its port."""
STOP_BUDGET_S = {"demo": 1.0, "query": 4.0, "consumer": 8.0, "collector": 8.0, "redis": 4.0}
"""In this order; together they stay within 25 s, after which service managers kill us."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

logger = structlog.get_logger("tracker.up")


class RedisUnit:
    """The private Redis."""

    def __init__(self, redis: EmbeddedRedis) -> None:
        self._redis = redis
        self._is_running = False
        self._problem = ""

    @property
    def name(self) -> str:
        """Name the program."""
        return "redis"

    @property
    def pid(self) -> int | None:
        """Return its process id, None while it does not run."""
        return self._redis.pid if self._is_running else None

    async def start(self) -> None:
        """Start it; it answers when this returns."""
        try:
            await self._redis.start()
        except TrackerError as error:
            self._problem = error.message
            raise
        self._is_running = True
        if self._redis.set_aside:
            logger.warning("redis_files_unreadable", moved_to=str(self._redis.set_aside))

    async def ended(self) -> str:
        """Wait for its end and say how it ended."""
        if not self._is_running:
            return "stopped"
        status = await self._redis.wait()
        self._is_running = False
        return describe_exit(status)

    async def stop(self, within_s: float) -> None:
        """Stop it; `within_s` is a limit beside its own."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._redis.stop(), within_s)
        self._is_running = False

    def last_words(self) -> str:
        """Return why it could not be started."""
        return self._problem


class Supervisor:
    """One run of `tracker up`."""

    def __init__(self, loaded: Loaded, *, demo: bool, announce: Callable[[str], None]) -> None:
        self._settings = loaded.settings
        self._config = loaded.config
        self._sites = loaded.sites
        self._places = Places(loaded.settings.data)
        self._announce = announce
        self._stop = asyncio.Event()
        self._failure = ""
        self._keepers = {unit.name: Keeper(unit, self._fail) for unit in self._units(demo=demo)}

    async def run(self) -> None:
        """Run until a signal comes.

        Errors: TrackerError with what to do, when it cannot start.
        """
        self._places.prepare()
        lock = Lock(self._places.lock)
        await asyncio.to_thread(lock.take)
        try:
            await check_port(self._settings.host, self._settings.port)
            open_secret(self._places.secret)
            self._listen_for_signals()
            control = await asyncio.start_unix_server(
                self._control, self._fresh_socket("control"), limit=1024
            )
            try:
                await self._supervise()
            finally:
                control.close()
                self._places.socket("control").unlink(missing_ok=True)
        finally:
            lock.release()
        if self._failure:
            raise TrackerError(Code.PREREQUISITE, self._failure)

    def _units(self, *, demo: bool) -> list[Unit]:
        settings, places = self._settings, self._places
        environment = os.environ | {
            "TRACKER_DATA": str(settings.data.absolute()),
            "TRACKER_PORT": str(settings.port),
            "TRACKER_HOST": settings.host,
            "TRACKER_LOG": settings.log,
            "TRACKER_STORE": settings.store,
            "TRACKER_LOG_FORMAT": settings.log_format,
        }
        if self._config:
            environment["TRACKER_CONFIG"] = str(self._config.absolute())
        units: list[Unit] = []
        if settings.store.startswith("embedded:"):
            units.append(RedisUnit(EmbeddedRedis(places.redis, places.run)))
        roles = {"collector": "collect", "consumer": "consume", "query": "query"}
        units += [
            RoleUnit(name, ["tracker", command], environment) for name, command in roles.items()
        ]
        if demo:
            site = next(iter(self._sites), "shop")
            units.append(RoleUnit("demo", ["tracker.demo", self._local_url(), site], environment))
        return units

    async def _supervise(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._start_redis_first(k)) for k in self._keepers.values()
            ]
            waiting = tasks.create_task(self._tell_when_ready())
            await self._stop.wait()
            waiting.cancel()
            logger.info("stopping")
            for name, budget_s in STOP_BUDGET_S.items():
                if name in self._keepers:
                    await self._keepers[name].pause(budget_s)
            for task in running:
                task.cancel()

    async def _start_redis_first(self, keeper: Keeper) -> None:
        redis = self._keepers.get("redis")
        if redis and keeper is not redis:
            await redis.has_started.wait()
        if keeper.unit.name == "demo":
            await self._ready()
        await keeper.run()

    async def _tell_when_ready(self) -> None:
        try:
            await asyncio.wait_for(self._ready(), READY_S)
        except TimeoutError:
            logger.warning("not_ready_yet", waited_s=READY_S)
            await self._ready()
        for keeper in self._keepers.values():
            keeper.is_proven = True
        logger.info("ready", port=self._settings.port)
        self._announce(self._welcome())

    async def _ready(self) -> None:
        await self._keepers["consumer"].has_started.wait()
        host, port = self._reachable_host(), self._settings.port
        query = str(self._places.socket("query"))
        # The page that is announced must work: its site reaches the reports through the consumer.
        site = next(iter(self._sites), "")
        report = f"/v1/report?{urlencode({'site': site})}" if site else "/readyz"
        # Other processes become ready: there is nothing of ours to wait for.
        while True:
            if await answers(host, port, "/readyz") and await answers(query, None, report):
                return
            await asyncio.sleep(READY_POLL_S)

    def _welcome(self) -> str:
        public = self._settings.public_url or self._local_url()
        site = next(iter(self._sites), "shop")
        event = json.dumps(
            {"site": site, "type": "view", "url": "https://shop.example/?utm_source=me"}
        )
        return (
            "tracker is ready.\n\n"
            f"  Live page   {public}/?site={site}\n"
            f'  Pixel       <img src="{public}/p.gif?site={site}" width="1" height="1" alt="">\n'
            f"  An event    curl {public}/v1/events -d '{event}'\n"
            f"  Data        {self._places.data.absolute()}\n\n"
            "Ctrl-C stops it; the next start goes on with the same numbers."
        )

    def _local_url(self) -> str:
        host = self._reachable_host()
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._settings.port}"

    def _reachable_host(self) -> str:
        host = self._settings.host
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop.set)

    def _fail(self, sentence: str) -> None:
        self._failure = self._failure or sentence
        self._stop.set()

    def _fresh_socket(self, name: str) -> Path:
        # We hold the lock, so a socket that lies there belongs to nobody any more.
        path = self._places.socket(name)
        path.unlink(missing_ok=True)
        return path

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the commands of one connection; what it paused resumes when it closes."""
        consumer = self._keepers["consumer"]
        has_paused = False
        try:
            while line := await reader.readline():
                command = line.decode("ascii", "replace").strip()
                if command == "pause consumer":
                    has_paused = True
                    logger.info("consumer_paused")
                    await consumer.pause(STOP_BUDGET_S["consumer"])
                    answer = "paused"
                elif command == "status":
                    answer = json.dumps(self._status())
                else:
                    answer = "unknown command; known are: pause consumer, status"
                writer.write(answer.encode() + b"\n")
                await asyncio.wait_for(writer.drain(), CONTROL_LINE_S)
        except (OSError, ValueError, TimeoutError):
            logger.debug("control_connection_lost")
        finally:
            if has_paused and not self._stop.is_set():
                logger.info("consumer_resumed")
                consumer.resume()
            writer.close()

    def _status(self) -> dict[str, object]:
        return {
            name: {"pid": keeper.unit.pid, "restarts": keeper.restarts}
            for name, keeper in self._keepers.items()
        }


async def check_port(host: str, port: int) -> None:
    """Tell in one sentence when the public port cannot be had, before anything is started.

    Errors: TrackerError PREREQUISITE.
    """
    deadline = asyncio.get_running_loop().time() + PORT_WAIT_S
    while (problem := _bind_problem(host, port)) is not None:
        if problem.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() > deadline:
            raise TrackerError(
                Code.PREREQUISITE,
                f"Port {port} of {host} cannot be used ({problem.strerror or problem}): stop the "
                "program that uses it, or choose another port with --port.",
            )
        await asyncio.sleep(READY_POLL_S)


def _bind_problem(host: str, port: int) -> OSError | None:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


async def answers(where: str, port: int | None, path: str) -> bool:
    """Tell whether `path` is answered with 200 over TCP, or over the Unix socket `where`."""
    try:
        async with asyncio.timeout(PROBE_S):
            if port is None:
                reader, writer = await asyncio.open_unix_connection(where)
            else:
                reader, writer = await asyncio.open_connection(where, port)
            with contextlib.closing(writer):
                request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                await writer.drain()
                status = await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return False
    return b" 200 " in status
