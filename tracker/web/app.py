"""The collector's web application: put together here, started by `tracker.main`.

It appends through the writer that it is given and closes nothing that it did not open. Stop in
this order: `stop_taking`, then the runner's cleanup (finishes requests, writes the last refusals),
then the writer.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import http_exceptions, http_parser, web

from tracker.collect import agents
from tracker.collect.parse import BODY_BYTES_MAX
from tracker.web import collect, forward, health, problems
from tracker.web.forward import FORWARDER, Forwarder
from tracker.web.side import SIDE, CollectParts, WriteSide

__all__ = ["CollectParts", "create_app", "make_runner", "missing_speedups", "stop_taking"]

KEEP_ALIVE_S: Final = 75.0
"""Longer than the 60 s for which the usual load balancers keep an idle connection."""
SHUTDOWN_S: Final = 10.0
"""How long requests that are under way may take when we stop."""


def create_app(parts: CollectParts) -> web.Application:
    """Return the collector's application."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[SIDE] = WriteSide(parts)
    app[FORWARDER] = Forwarder(parts.query_socket)
    problems.install(app)
    collect.add_routes(app)
    health.add_routes(app)
    forward.add_routes(app)
    app.cleanup_ctx.append(_serve)
    return app


async def _serve(app: web.Application) -> AsyncIterator[None]:
    """Hold what lives as long as the application: the pool, and the counting of refusals."""
    side = app[SIDE]
    parts = side.parts
    agents.warm()
    stop = asyncio.Event()
    flushing = asyncio.create_task(parts.refusals.run(parts.writer, parts.clock, stop))
    await app[FORWARDER].open()
    yield
    await app[FORWARDER].close()
    await side.appender.drain()
    stop.set()
    await flushing


def stop_taking(app: web.Application) -> None:
    """Make /readyz say that nothing more should be sent here; requests are still served."""
    app[SIDE].is_stopping = True


def make_runner(app: web.Application) -> web.AppRunner:
    """Return a runner with the limits that this application counts on.

    Bodies are not unpacked by aiohttp: we do it with a cap. There is no access log: lines with
    addresses and queries are personal data.
    """
    return web.AppRunner(
        app,
        access_log=None,
        logger=_server_log(),
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )


def _server_log() -> logging.Logger:
    log = logging.getLogger("tracker.web.server")
    if _keep not in log.filters:
        log.addFilter(_keep)
    return log


def _keep(record: logging.LogRecord) -> bool:
    """Let through what aiohttp says about itself, without addresses.

    It logs every request that is no HTTP with a traceback: whoever sends garbage would fill disks.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, http_exceptions.HttpProcessingError | ConnectionError):
        return False
    if error is not None:
        record.msg, record.args = "a connection failed", ()
    return True


def missing_speedups() -> list[str]:
    """Return a sentence for each part that is missing and makes serving slower."""
    said = []
    if importlib.util.find_spec("uvloop") is None:
        said.append("uvloop is not installed: requests take about twice the time.")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        said.append("aiohttp runs without its C parser: requests take several times the time.")
    return said
