"""Listening: an application on a TCP port or on a Unix socket, and how it ends.

It knows no route. Whoever calls it decides when to stop, and gets the function that does it: no
new connections, requests in flight finish, what lives with the application ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from tracker.errors import Code, TrackerError

BACKLOG = 1_024
DRAIN_S = 3.0
"""Reports are read in milliseconds; a stream that is still open after this is cut."""

Close = Callable[[], Awaitable[None]]


async def serve_tcp(runner: web.AppRunner, host: str, port: int) -> Close:
    """Listen on a port and return what stops it.

    Errors: TrackerError PREREQUISITE when the port cannot be had.
    """
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port, backlog=BACKLOG).start()
    except OSError as error:
        await runner.cleanup()
        raise TrackerError(
            Code.PREREQUISITE,
            f"Port {port} of {host} cannot be used ({error.strerror or error}): stop the program "
            "that uses it, or choose another port with --port.",
        ) from error
    return runner.cleanup


async def serve_unix(app: web.Application, path: Path) -> Close:
    """Listen on a Unix socket, in place of a predecessor's, and return what stops it.

    Its directory keeps everybody else out.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=DRAIN_S)
    await runner.setup()
    _make_way(path)
    await web.UnixSite(runner, str(path), backlog=BACKLOG).start()
    return runner.cleanup


def _make_way(path: Path) -> None:
    path.unlink(missing_ok=True)
