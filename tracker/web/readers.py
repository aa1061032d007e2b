"""Who may read: everybody on this machine, others with the token.

The page and its parts hold no data and are open; so is the health of the process.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tracker.errors import Code, TrackerError
from tracker.web.problems import tell

PEER = "X-Tracker-Peer"
"""Who asked, as the collector that forwards a request saw it. It can only take rights away: the
connection itself must come from this machine too."""

_RELAYED = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
"""A proxy that put one of these in speaks for somebody else, even when it runs on this machine."""

_HOSTS = ("Host", "X-Forwarded-Host")
"""What the browser believes that it talks to, here and at the collector."""

OPEN_PATHS = ("/healthz", "/readyz", "/")
OPEN_PREFIX = "/static/"


def admit_readers(read_token: str) -> Middleware:
    """Return the middleware that lets only those read who may.

    Errors: 401 with a wrong or missing token; 403 without any configured, which says how to set
    one.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or is_local(request):
            return await handler(request)
        if not read_token:
            return tell(
                403,
                "forbidden",
                "Reports are open only to this machine itself. To read them from elsewhere, set "
                "read_token under [server] in tracker.toml, or TRACKER_READ_TOKEN, and send "
                "`Authorization: Bearer TOKEN`.",
            )
        if not _has_token(request.headers.get("Authorization", ""), read_token):
            raise TrackerError(
                Code.UNAUTHORIZED,
                "Reports need `Authorization: Bearer TOKEN` with the read_token of this server.",
            )
        return await handler(request)

    return admit


def is_local(request: web.Request) -> bool:
    """Tell whether a program on this machine asks, and asks for itself.

    A Host with a dot that is no loopback address is refused: a page in the user's browser may
    have pointed a name of its own at this machine (DNS rebinding).
    """
    peer = request.headers.get(PEER)
    return (
        _is_loopback(request.remote or "")
        and (peer is None or _is_loopback(peer))
        and not any(name in request.headers for name in _RELAYED)
        and all(_is_own_name(request.headers.get(name, "")) for name in _HOSTS)
    )


def _is_loopback(address: str) -> bool:
    if not address:
        return True  # a Unix socket, in a directory that is this user's alone
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_own_name(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return ("." not in name.removesuffix(".localhost") and ":" not in name) or _is_loopback(name)


def _has_token(authorization: str, read_token: str) -> bool:
    scheme, _, token = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        token.strip().encode("utf-8", "surrogateescape"), read_token.encode()
    )
