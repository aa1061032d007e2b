"""Failures as HTTP answers: RFC 9457 problem+json, and the one table from error code to status.

Every process that speaks HTTP puts `answer_problems` around its handlers. Nothing here decides
what is a failure; it only words it. Answers never echo what was sent.

Source: RFC 9457 for the shape; `accepted`, `rejected` and `reason` are extension members.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from tracker.errors import Code, TrackerError

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""A restart of one of our processes takes about a second; clients back off on their own."""

STATUS: dict[Code, int] = {
    Code.INVALID: 400,
    Code.NOT_FOUND: 404,
    Code.UNAUTHORIZED: 401,
    Code.LOG_UNAVAILABLE: 503,
    Code.LOG_FULL: 503,
    Code.LOG_LOCKED: 503,
    Code.LOG_CHANGED: 503,
    Code.STORE_UNAVAILABLE: 503,
    Code.STORE_MISCONFIGURED: 503,
    Code.TORN: 503,
    Code.PREREQUISITE: 500,
    Code.CONFIGURATION: 500,
}

_log = structlog.get_logger("tracker.web")


def tell(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> web.Response:
    """Return one problem.

    Shape: {"type": "urn:tracker:problem:CODE", "title", "status", "code", "detail", …members}.
    """
    body: dict[str, object] = {
        "type": f"urn:tracker:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    body.update(members or {})
    sent = dict(headers or {})
    if status in (429, 503):
        sent.setdefault("Retry-After", str(RETRY_AFTER_S))
    if status == 401:
        sent.setdefault("WWW-Authenticate", "Bearer")
    sent.setdefault("Cache-Control", "no-store")
    return web.Response(
        status=status, body=orjson.dumps(body), content_type=CONTENT_TYPE, headers=sent
    )


def problem(error: TrackerError, **options: Any) -> web.Response:
    """Return the problem that tells `error`; `options` are those of `tell`."""
    return tell(STATUS[error.code], error.code, error.message, **options)


_SENTENCES = {
    400: "The request cannot be understood.",
    404: "There is nothing at this address.",
    405: "This address does not answer to this method; see the Allow header.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
}


def _from_http(error: web.HTTPException) -> web.Response:
    code = HTTPStatus(error.status).name.lower()
    detail = _SENTENCES.get(error.status, HTTPStatus(error.status).description)
    kept = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
    return tell(error.status, code, detail or error.reason, headers=kept)


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure of `handler` into a problem: the outermost handler."""
    try:
        return await handler(request)
    except TrackerError as error:
        return problem(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _from_http(error)
    except ConnectionError:
        # The client went away: nobody reads this. Raised on, it would be logged with an address.
        return tell(400, "disconnected", "The connection was lost.")
    except Exception:  # noqa: BLE001 - the outermost handler
        # Our bug. The route's template names the place; addresses may hold personal data.
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else ""
        _log.exception("request_failed", method=request.method, route=route)
        return tell(500, "internal_error", "This is a fault of ours; it was logged.")


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Put on every answer what browsers need to know, and off what tells versions."""
    del request
    response.headers.popall("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"


def install(app: web.Application) -> None:
    """Make `app` answer failures as problems, hardened."""
    app.middlewares.append(answer_problems)
    app.on_response_prepare.append(harden)
