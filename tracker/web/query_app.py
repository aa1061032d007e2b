"""The application of the query process: reports, the live page, and what guards them.

It is put together here and served elsewhere. It reads no settings and writes nothing.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tracker.model.clock import Clock
from tracker.ports.log import LogReader
from tracker.ports.store import Store
from tracker.query.mirror import Mirror
from tracker.web.problems import install
from tracker.web.readers import admit_readers
from tracker.web.reports import Reports

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_log = structlog.get_logger("tracker.web")

PAGE = "live.html"
STATIC_TYPES = {
    "live.js": "text/javascript",
    "live.css": "text/css",
    "icon.svg": "image/svg+xml",
}
"""All files of the page. Only what is named here is served."""


@dataclass(frozen=True, slots=True)
class QueryParts:
    """What the read side needs. The store is only read; of the log only its ends are."""

    store: Store
    reader: LogReader
    clock: Clock
    read_token: str = ""


def create_query_app(parts: QueryParts) -> web.Application:
    """Return the application; it follows the store from its start to its clean-up."""
    mirror = Mirror(parts.store, parts.clock)
    reports = Reports(mirror, parts.reader, parts.clock)
    app = web.Application(middlewares=[_measured(reports)])
    install(app)
    app.middlewares.append(admit_readers(parts.read_token))
    app.on_response_prepare.append(_secure)
    app.cleanup_ctx.append(_following(mirror))
    app.add_routes(reports.routes())
    app.add_routes(_page_routes())
    return app


def _following(mirror: Mirror) -> Callable[[web.Application], AsyncIterator[None]]:
    async def follow(app: web.Application) -> AsyncIterator[None]:
        del app
        task = asyncio.create_task(mirror.run(), name="mirror")
        task.add_done_callback(_end_with)
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return follow


def _end_with(task: asyncio.Task[None]) -> None:
    """End the process when its follower died of a fault of ours: whoever runs it starts it anew.

    Answering on would show numbers that never move again.
    """
    if not task.cancelled() and task.exception() is not None:
        _log.error("follower_died", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def _measured(reports: Reports) -> Middleware:
    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"
        reports.requests.labels(route, str(response.status)).inc()
        reports.seconds.labels(route).observe(time.perf_counter() - began)
        return response

    return measure


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers.update(SECURITY_HEADERS)


def _page_routes() -> list[web.RouteDef]:
    folder = files("tracker.web") / "static"
    page = (folder / PAGE).read_bytes()
    parts = {name: (folder / name).read_bytes() for name in STATIC_TYPES}
    routes = [web.get("/", _serving(page, "text/html"))]
    for name, content_type in STATIC_TYPES.items():
        routes.append(web.get(f"/static/{name}", _serving(parts[name], content_type)))
    return routes


def _serving(body: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(request: web.Request) -> web.Response:
        del request
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    return serve
