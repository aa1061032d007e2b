"""Hands every request that the collector does not serve itself to the query process.

One public port serves both sides. Bytes pass as they are, in both directions and as they come;
nothing is kept, cached or understood here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, UnixConnector, web
from multidict import CIMultiDict
from yarl import URL

from tracker.web.problems import tell
from tracker.web.side import SIDE

PEER_HEADER: Final = "X-Tracker-Peer"
"""Tells the query process who asks; what a client sends under this name never gets there."""
CONNECTIONS_MAX: Final = 512
_CONNECT_S: Final = 1.0
_SILENCE_S: Final = 60.0
"""Streams beat more often than this; a report takes milliseconds."""
_METRICS_S: Final = 1.0
_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer "
    "transfer-encoding upgrade host".split()
)
_OWN: Final = {"/p.gif": "GET, HEAD, OPTIONS", "/v1/events": "POST, OPTIONS"}
_OWN_GET: Final = ("/healthz", "/readyz", "/metrics")


class Forwarder:
    """A connection pool to the query process."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._session: ClientSession | None = None

    async def open(self) -> None:
        """Make the pool; nothing is connected before the first request."""
        if self._socket is not None:
            self._session = ClientSession(
                connector=UnixConnector(path=str(self._socket), limit=CONNECTIONS_MAX),
                timeout=ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            )

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def metrics(self) -> bytes:
        """Return the query process' metrics, nothing while it is away."""
        if self._session is None:
            return b""
        try:
            async with (
                asyncio.timeout(_METRICS_S),
                self._session.get("http://query/metrics") as answer,
            ):
                return await answer.read() if answer.status == 200 else b""
        except (ClientError, OSError, TimeoutError):
            return b""

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Pass `request` on and its answer back."""
        if self._session is None:
            return tell(404, "not_found", "There is nothing at this address.")
        headers = CIMultiDict(
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP and name.lower() != PEER_HEADER.lower()
        )
        headers[PEER_HEADER] = request.app[SIDE].peer_for_query(request)
        headers["X-Forwarded-Host"] = request.host
        try:
            answer = await self._session.request(
                request.method,
                URL("http://query").join(URL(str(request.rel_url), encoded=True)),
                headers=headers,
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            )
        except (ClientError, OSError, TimeoutError):
            return tell(
                503, "query_unavailable", "Reports are starting or restarting: ask again shortly."
            )
        async with answer:
            return await _passed_on(request, answer)


async def _passed_on(request: web.Request, answer: ClientResponse) -> web.StreamResponse:
    headers = CIMultiDict(
        (name, value) for name, value in answer.headers.items() if name.lower() not in _HOP
    )
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except ConnectionResetError:
        pass  # the browser went away
    except (ClientError, TimeoutError):
        # The rest will not come: the browser must not take a part for the whole.
        if request.transport is not None:
            request.transport.abort()
    return response


FORWARDER: Final = web.AppKey("forwarder", Forwarder)


async def anything_else(request: web.Request) -> web.StreamResponse:
    """Serve what no other route serves."""
    allowed = _OWN.get(request.path)
    if allowed is None and (request.path in _OWN_GET or request.path.startswith("/c/")):
        allowed = "GET, HEAD"
    if allowed is not None and request.method not in allowed.split(", "):
        detail = f"This address answers to {allowed}."
        return tell(405, "method_not_allowed", detail, headers={"Allow": allowed})
    return await request.app[FORWARDER].forward(request)


def add_routes(app: web.Application) -> None:
    """Add the last route, which takes everything."""
    app.router.add_route("*", "/{tail:.*}", anything_else)
