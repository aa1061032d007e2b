"""The composition root: the only file that knows every part, and puts the roles together.

A role is: build its parts from the settings, run, and on SIGTERM or SIGINT end in order. Back ends
are chosen here, by the scheme of a URL, from one table a kind. No part is configured anywhere
else, and nothing here counts, folds or answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import structlog

from consumers.runner import Parts, Runner
from tracker.backends.append_socket import AppendClient, AppendServer
from tracker.backends.embedded_redis import EmbeddedRedis
from tracker.backends.file_log import open_reader, open_writer
from tracker.backends.redis_store import RedisStore
from tracker.collect.definitions import DefinitionBook, DefinitionKeeper
from tracker.collect.refusals import Refusals
from tracker.errors import Code, TrackerError
from tracker.installation import Places, open_secret
from tracker.model.clock import SystemClock
from tracker.ports.log import LogReader, LogWriter
from tracker.ports.store import Store
from tracker.settings import Loaded, Settings
from tracker.web.app import (
    CollectParts,
    create_app,
    make_runner,
    missing_speedups,
    stop_taking,
)
from tracker.web.query_app import QueryParts, create_query_app
from tracker.web.serving import serve_tcp, serve_unix

GC_THRESHOLDS = (50_000, 20, 50)
"""Against Python's (700, 10, 10): a batch makes some 20,000 objects, none of them a cycle."""
OPEN_PAUSE_FIRST_S = 0.2
OPEN_PAUSE_MAX_S = 2.0
"""A store that comes back is found within two seconds, and a dead one is not hammered."""

Opener = TypeVar("Opener")
Part = TypeVar("Part")

logger = structlog.get_logger("tracker.main")


async def _file_writer(address: str) -> LogWriter:
    return await open_writer(Path(address))


async def _file_reader(address: str) -> LogReader:
    return await open_reader(Path(address))


async def _redis_store(url: str) -> Store:
    return await RedisStore.connect(url)


LOGS: dict[
    str, tuple[Callable[[str], Awaitable[LogWriter]], Callable[[str], Awaitable[LogReader]]]
] = {"file": (_file_writer, _file_reader)}
"""Scheme → how to open the log for writing, and for reading."""

STORES: dict[str, Callable[[str], Awaitable[Store]]] = {
    "embedded": _redis_store,  # the address is its socket, see `store_url`
    "redis": _redis_store,
    "rediss": _redis_store,
    "unix": _redis_store,
}
"""Scheme → how to open the store."""


def log_url(settings: Settings) -> str:
    """Return where the log is, the default made explicit."""
    return settings.log or f"file:{settings.data / 'log'}"


def store_url(settings: Settings) -> str:
    """Return where the store is; the private Redis by its socket."""
    if settings.store.startswith("embedded:"):
        places = Places(settings.data)
        return EmbeddedRedis(places.redis, places.run).url
    return settings.store


async def open_log_writer(settings: Settings) -> LogWriter:
    """Open the log as its one writer.

    Errors: TrackerError CONFIGURATION for a scheme without a back end, else the back end's own.
    """
    url = log_url(settings)
    return await _chosen(LOGS, url, "TRACKER_LOG")[0](url.partition(":")[2])


async def open_log_reader(settings: Settings) -> LogReader:
    """Open the log for reading."""
    url = log_url(settings)
    return await _chosen(LOGS, url, "TRACKER_LOG")[1](url.partition(":")[2])


async def open_store(settings: Settings) -> Store:
    """Open the store."""
    url = store_url(settings)
    return await _chosen(STORES, url, "TRACKER_STORE")(url)


def _chosen(table: Mapping[str, Opener], url: str, variable: str) -> Opener:
    scheme = url.partition(":")[0]
    if scheme not in table:
        known = ", ".join(f"{name}:" for name in table)
        raise TrackerError(
            Code.CONFIGURATION,
            f"{variable}: this version has no back end for {scheme}:; it has {known}.",
        )
    return table[scheme]


Role = Callable[[Loaded, asyncio.Event], Coroutine[Any, Any, None]]


def run(role: Role, loaded: Loaded) -> None:
    """Run one role until SIGTERM or SIGINT, on uvloop where it is installed."""
    # What is loaded by now lives as long as the process, and what we make is freed by reference
    # counts: looking for cycles rarely saves a quarter of the time of a busy consumer.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

    async def until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await role(loaded, stop)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(until_stopped())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform; the collector says so at start
    except ImportError:
        return None
    return uvloop.new_event_loop


async def run_collector(loaded: Loaded, stop: asyncio.Event) -> None:
    """Take events until `stop`: then say so, finish what came, and let go of the log."""
    settings = loaded.settings
    places = Places(settings.data)
    places.prepare()
    clock = SystemClock()
    for sentence in missing_speedups():
        logger.warning("slower", reason=sentence)
    async with AsyncExitStack() as stack:
        writer = await open_log_writer(settings)
        stack.push_async_callback(writer.close)
        book = await _definitions(loaded, places, writer)
        # Through the keeper, so that sites which an import creates are known here at once.
        server = AppendServer(DefinitionKeeper(writer, book), places.socket("append"))
        await server.start()
        stack.push_async_callback(server.close)
        parts = CollectParts(
            writer=writer,
            keys=open_secret(places.secret),
            clock=clock,
            book=book,
            refusals=Refusals(),
            public_url=settings.public_url,
            cookie_domain=settings.cookie_domain,
            trusted_proxies=settings.trusted_proxies,
            max_age_ms=settings.max_age_ms,
            query_socket=places.socket("query"),
        )
        app = create_app(parts)
        stack.push_async_callback(await serve_tcp(make_runner(app), settings.host, settings.port))
        logger.info("collecting", host=settings.host, port=settings.port, log=log_url(settings))
        await stop.wait()
        stop_taking(app)


async def _definitions(loaded: Loaded, places: Places, writer: LogWriter) -> DefinitionBook:
    """Return the definitions in force: what the log says, and what this start's file says now."""
    book = DefinitionBook(places.definitions, os.environ)
    reader = await open_log_reader(loaded.settings)
    try:
        await book.catch_up(reader)
    finally:
        await reader.close()
    if await book.set_file_layer(loaded.sites, writer, SystemClock()):
        logger.info("definitions_changed", sites=sorted(book.sites))
    for problem in book.problems:
        logger.warning("definition", problem=problem)
    return book


async def run_consumer(loaded: Loaded, stop: asyncio.Event) -> None:
    """Fold the log into the store until `stop`, which takes effect at a commit."""
    settings = loaded.settings
    places = Places(settings.data)
    places.prepare()
    keys = open_secret(places.secret)
    async with AsyncExitStack() as stack:
        reader = await _patiently("log", lambda: open_log_reader(settings), stop)
        store = await _patiently("store", lambda: open_store(settings), stop)
        if reader is None or store is None:
            return
        stack.push_async_callback(reader.close)
        stack.push_async_callback(store.close)
        writer = AppendClient(places.socket("append"))
        stack.push_async_callback(writer.close)
        logger.info("consuming", log=log_url(settings), store=shown_store(settings))
        await Runner(Parts(reader, writer, store, keys, SystemClock())).run(stop)


async def run_query(loaded: Loaded, stop: asyncio.Event) -> None:
    """Answer reports on the query socket until `stop`."""
    settings = loaded.settings
    places = Places(settings.data)
    places.prepare()
    async with AsyncExitStack() as stack:
        reader = await _patiently("log", lambda: open_log_reader(settings), stop)
        store = await _patiently("store", lambda: open_store(settings), stop)
        if reader is None or store is None:
            return
        stack.push_async_callback(reader.close)
        stack.push_async_callback(store.close)
        parts = QueryParts(
            store=store, reader=reader, clock=SystemClock(), read_token=settings.read_token
        )
        path = places.socket("query")
        stack.push_async_callback(await serve_unix(create_query_app(parts), path))
        logger.info("answering", socket=str(path))
        await stop.wait()


async def _patiently(
    what: str, open_part: Callable[[], Awaitable[Part]], stop: asyncio.Event
) -> Part | None:
    """Open a part that may not be there yet; None when `stop` came first.

    Errors: TrackerError when waiting does not help.
    """
    pause_s = OPEN_PAUSE_FIRST_S
    while not stop.is_set():
        try:
            return await open_part()
        except TrackerError as error:
            if not error.retryable:
                raise
            logger.warning("waiting", part=what, reason=error.message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
        pause_s = min(2 * pause_s, OPEN_PAUSE_MAX_S)
    return None


def shown_store(settings: Settings) -> str:
    """Return the store's address without the password that may stand in it."""
    scheme, colon, rest = store_url(settings).partition(":")
    return scheme + colon + ("//" + rest.rpartition("@")[2] if "@" in rest else rest)
