"""The routes of the write side: pixel, events, redirect, preflight.

Each handler reads a request, has it admitted, waits until the log has the events, and words the
answer. A 2xx follows the durable append; only a redirect does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import orjson
from aiohttp import http_exceptions, web

from tracker.collect.admit import admit_events, admit_raw
from tracker.collect.parse import BODY_BYTES_MAX, Refused, read_body, read_query
from tracker.collect.redirect import follow
from tracker.collect.refusals import REDIRECT_LOST
from tracker.collect.sender import Known, Sender, cookie_after
from tracker.errors import TrackerError
from tracker.model.definition import Link
from tracker.model.record import EventRecord, EventType
from tracker.model.rejection import Reason, Rejection
from tracker.web.problems import RETRY_AFTER_S, STATUS, problem, tell
from tracker.web.side import SIDE, WriteSide, cors

BODY_DEADLINE_S: Final = 15.0
"""1 MB takes this long at 0.5 Mbit/s; whoever is slower holds a connection open."""
PREFLIGHT_S: Final = 86_400
GIF: Final = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
"""One transparent dot in 43 bytes."""

_STATUS_OF: Final = {
    Reason.TOO_LARGE: 413,
    Reason.TOO_MANY: 413,
    Reason.BAD_ENCODING: 415,
    Reason.BAD_SECRET: 401,
}
_NO_STORE: Final = {"Cache-Control": "no-store"}


# --- GET /p.gif -----------------------------------------------------------------------------


async def pixel(request: web.Request) -> web.Response:
    """Record one event from the query; the answer is an image, whatever happens."""
    side = request.app[SIDE]
    raw = read_query(request.rel_url.raw_query_string)
    wants_nothing = raw.pop("r", None) == "204"
    if request.method == "HEAD":
        return _image(request, 204 if wants_nothing else 200, ())
    sender = side.sender(request, site=raw.get("site"))
    fate = admit_raw(raw, sender, side.rules, default_type=EventType.VIEW)
    if isinstance(fate, Refused):
        side.refuse(fate)
        reason = fate.rejection.reason
        return _image(request, 400, _known(side, fate.site), {"X-Tracker-Rejected": str(reason)})
    sites = _known(side, fate.site)
    try:
        await side.append([fate])
    except TrackerError as error:
        side.shed([fate], error.code)
        said = {"X-Tracker-Rejected": str(error.code), "Retry-After": str(RETRY_AFTER_S)}
        return _image(request, STATUS[error.code], sites, said)
    response = _image(request, 204 if wants_nothing else 200, sites)
    side.set_cookie(request, response, cookie_after((fate,)))
    return response


def _image(
    request: web.Request,
    status: int,
    sites: Sequence[Known],
    headers: dict[str, str] | None = None,
) -> web.Response:
    request.app[SIDE].answers["pixel", status] += 1
    sent = _NO_STORE | cors(request, sites) | (headers or {})
    if status == 204:
        return web.Response(status=204, headers=sent)
    return web.Response(status=status, body=GIF, content_type="image/gif", headers=sent)


def _known(side: WriteSide, site: str) -> tuple[Known, ...]:
    found = side.rules.sites.get(site)
    return (found,) if found else ()


# --- POST /v1/events ------------------------------------------------------------------------


async def events(request: web.Request) -> web.Response:
    """Record the events of the body; answered when they are durable."""
    side = request.app[SIDE]
    sender = side.sender(request, site=request.query.get("site"))
    body = await _body(request)
    if isinstance(body, web.Response):
        return body
    if isinstance(body, Rejection):
        return _refuse_all(request, sender, Refused("", body))
    envelope = read_body(body, request.headers.get("Content-Encoding", ""))
    if isinstance(envelope, Refused):
        return _refuse_all(request, sender, envelope)
    fates = admit_events(envelope, sender, side.rules)
    accepted = [fate for fate in fates if isinstance(fate, EventRecord)]
    for fate in fates:
        if isinstance(fate, Refused):
            side.refuse(fate)
    named = accepted[0].site if accepted else envelope.site or sender.site
    sites = _known(side, named)
    if accepted:
        try:
            await side.append(accepted)
        except TrackerError as error:
            side.shed(accepted, error.code)
            side.answers["events", STATUS[error.code]] += 1
            return problem(error, headers=cors(request, sites))
    response = _told(request, fates, len(accepted), sites)
    side.set_cookie(request, response, cookie_after(accepted))
    return response


async def _body(request: web.Request) -> bytes | Rejection | web.Response:
    """Read the body, at most BODY_BYTES_MAX of it and for at most BODY_DEADLINE_S."""
    length = request.content_length
    if length is not None and length > BODY_BYTES_MAX:
        return Rejection(Reason.TOO_LARGE)
    content = request.content
    parts = []
    size = 0
    try:
        if content.is_eof():  # it came with its headers, as nearly all do: no deadline to arm
            whole = content.read_nowait()
            return whole if len(whole) <= BODY_BYTES_MAX else Rejection(Reason.TOO_LARGE)
        async with asyncio.timeout(BODY_DEADLINE_S):
            while part := await content.readany():
                size += len(part)
                if size > BODY_BYTES_MAX:
                    return Rejection(Reason.TOO_LARGE)
                parts.append(part)
    except TimeoutError:
        late = tell(408, "request_timeout", f"The body took over {BODY_DEADLINE_S:.0f} s.")
        late.force_close()
        return late
    except (web.RequestPayloadError, http_exceptions.HttpProcessingError, ConnectionError):
        broken = tell(400, "bad_request", "The body is not framed as HTTP says.")
        broken.force_close()
        return broken
    return b"".join(parts)


def _refuse_all(request: web.Request, sender: Sender, refused: Refused) -> web.Response:
    """Answer a request of which nothing could be read."""
    side = request.app[SIDE]
    if not refused.site:
        refused = replace(refused, site=sender.site)
    side.refuse(refused)
    return _told(request, [refused], 0, _known(side, refused.site))


def _told(
    request: web.Request,
    fates: Sequence[EventRecord | Refused],
    accepted: int,
    sites: Sequence[Known],
) -> web.Response:
    """Word what became of each event; the status is that of the worst when nothing was taken."""
    rejected = [
        {
            "index": index,
            "reason": str(fate.rejection.reason),
            "detail": fate.rejection.sentence(),
        }
        for index, fate in enumerate(fates)
        if isinstance(fate, Refused)
    ]
    status = 200
    if not accepted:
        found = {fate.rejection.reason for fate in fates if isinstance(fate, Refused)}
        status = _STATUS_OF.get(next(iter(found)), 400) if len(found) == 1 else 400
    request.app[SIDE].answers["events", status] += 1
    body = {"accepted": accepted, "rejected": rejected}
    headers = cors(request, sites)
    if status in (200, 400):
        return web.Response(
            status=status,
            body=orjson.dumps(body),
            content_type="application/json",
            headers=_NO_STORE | headers,
        )
    first = next(fate.rejection for fate in fates if isinstance(fate, Refused))
    return tell(status, str(first.reason), first.sentence(), headers=headers, members=body)


# --- GET /c/{link} --------------------------------------------------------------------------


async def click(request: web.Request) -> web.Response:
    """Redirect to the link's target, and record the click without making anybody wait."""
    side = request.app[SIDE]
    query = read_query(request.rel_url.raw_query_string)
    sender = replace(side.sender(request, site=query.get("site")), key=None)
    found = _link(side, request.match_info["link"], sender.site)
    if isinstance(found, str):
        if request.method != "HEAD":
            side.refuse(Refused(sender.site, Rejection(Reason.UNKNOWN_LINK)))
        status = 404 if found == Reason.UNKNOWN_LINK else 400
        side.answers["click", status] += 1
        return tell(status, found, _LINK_SENTENCES[found])
    known, link = found
    redirect = follow(link, query, sender, known, side.parts.keys)
    response = web.Response(status=302, headers=_NO_STORE | {"Location": redirect.location})
    side.answers["click", 302] += 1
    if request.method == "HEAD":
        return response
    fate = admit_raw(redirect.event, sender, side.rules)
    if isinstance(fate, Refused):
        side.refuse(fate)
        return response
    side.set_cookie(request, response, cookie_after((fate,)))
    await _record_click(side, fate)
    return response


_AMBIGUOUS: Final = "ambiguous_link"
_LINK_SENTENCES: Final = {
    str(Reason.UNKNOWN_LINK): "No link of this name is configured here.",
    _AMBIGUOUS: "Several sites have a link of this name: say which with ?site=.",
}


def _link(side: WriteSide, name: str, site: str) -> tuple[Known, Link] | str:
    candidates = side.parts.book.links.get(name, [])
    if site:
        candidates = [item for item in candidates if item[0].site.key == site]
    if not candidates:
        return str(Reason.UNKNOWN_LINK)
    return candidates[0] if len(candidates) == 1 else _AMBIGUOUS


async def _record_click(side: WriteSide, event: EventRecord) -> None:
    def count(done: asyncio.Task[bool]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            if done.result():
                side.accepted[event.site] += 1
                return
        side.parts.refusals.shed(event.site, REDIRECT_LOST)

    task = await side.appender.append_click(event)
    if task is None:
        side.parts.refusals.shed(event.site, REDIRECT_LOST)
    else:
        task.add_done_callback(count)


# --- OPTIONS --------------------------------------------------------------------------------


async def preflight(request: web.Request) -> web.Response:
    """Tell a browser that any page may send, and which pages may send with cookies."""
    side = request.app[SIDE]
    allowed = "POST, OPTIONS" if request.path.startswith("/v1/") else "GET, HEAD, OPTIONS"
    site = request.query.get("site")
    sites = _known(side, site) if site else tuple(side.rules.sites.values())
    headers = cors(request, sites) | {"Allow": allowed}
    if "Origin" in request.headers:
        headers |= {
            "Access-Control-Allow-Methods": allowed,
            "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, X-Site",
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        }
    return web.Response(status=204, headers=headers)


def add_routes(app: web.Application) -> None:
    """Add the routes of this file to `app`."""
    app.router.add_get("/p.gif", pixel)
    app.router.add_options("/p.gif", preflight)
    app.router.add_post("/v1/events", events)
    app.router.add_options("/v1/events", preflight)
    app.router.add_get("/c/{link}", click)
