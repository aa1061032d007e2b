"""Whether the collector lives, whether it can take events, and what it has counted.

Counting costs the hot path plain integers; they become metrics when somebody asks. Labels come
from closed sets: configured sites, reasons, routes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tracker.web.forward import FORWARDER
from tracker.web.side import SIDE, WriteSide

_NO_STORE: Final = {"Cache-Control": "no-store"}


def unready_reasons(side: WriteSide) -> list[str]:
    """Return why the collector takes no events now, in sentences."""
    reasons = []
    if side.is_stopping:
        reasons.append("the collector is stopping")
    unready = side.parts.writer.unready()
    if unready:
        reasons.append(unready)
    return reasons


async def healthz(request: web.Request) -> web.Response:
    """Say that the process answers."""
    del request
    return _json(200, {"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Say whether events can be taken, and why not."""
    reasons = unready_reasons(request.app[SIDE])
    return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})


def _json(status: int, body: object) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type="application/json",
        headers=_NO_STORE,
    )


async def metrics(request: web.Request) -> web.Response:
    """Return the figures of this process, and those of the query process while it is there."""
    own = generate_latest(request.app[SIDE].registry)
    others = await request.app[FORWARDER].metrics()
    return web.Response(
        body=own + others, headers=_NO_STORE | {"Content-Type": CONTENT_TYPE_LATEST}
    )


class _Figures(Collector):
    """The counts of one write side as metrics."""

    def __init__(self, side: WriteSide) -> None:
        self._side = side

    def collect(self) -> Iterable[Metric]:
        side = self._side
        refusals = side.parts.refusals
        accepted = CounterMetricFamily(
            "tracker_collect_accepted", "Events that are durable.", labels=["site"]
        )
        for site, count in side.accepted.items():
            accepted.add_metric([site], count)
        yield accepted
        yield _by_reason("rejected", "Events refused as bad input.", refusals.rejected_total)
        yield _by_reason("shed", "Good events that could not be stored.", refusals.shed_total)
        answers = CounterMetricFamily(
            "tracker_collect_answers", "Answers given.", labels=["route", "status"]
        )
        for (route, status), count in side.answers.items():
            answers.add_metric([route, str(status)], count)
        yield answers
        ready = not unready_reasons(side)
        yield GaugeMetricFamily("tracker_collect_ready", "1 when events are taken.", value=ready)


def _by_reason(name: str, text: str, counts: Counter[tuple[str, str]]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"tracker_collect_{name}", text, labels=["site", "reason"])
    for (site, reason), count in counts.items():
        family.add_metric([site, reason], count)
    return family


def add_routes(app: web.Application) -> None:
    """Add the routes of this file to `app`, and its figures to the registry."""
    side = app[SIDE]
    side.registry.register(_Figures(side))
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
