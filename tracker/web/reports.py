"""The read side's routes: reports, funnels, ledger, health, figures of the service.

Each handler reads the parameters, asks `tracker.query` and writes JSON. No metric is computed
here. Who may read is decided by `tracker.web.readers`, failures are worded by
`tracker.web.problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tracker.errors import TrackerError
from tracker.model.clock import Clock
from tracker.ports.log import LogReader
from tracker.query.freshness import read_freshness
from tracker.query.funnels import funnel_list, funnel_report
from tracker.query.ledger import ASIDES, FATES, REFUSALS, ledger, sum_ledgers
from tracker.query.mirror import AWAY_MAX_MS, Mirror
from tracker.query.question import Given
from tracker.query.report import report

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""A warm report takes 10 ms; nothing may take more than a second."""


class Reports:
    """The handlers, over one mirror of the store and one reader of the log."""

    def __init__(self, mirror: Mirror, reader: LogReader, clock: Clock) -> None:
        self._mirror = mirror
        self._reader = reader
        self._clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(mirror, reader, clock))
        self.requests = Counter(
            "tracker_query_requests",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "tracker_query_request_seconds",
            "Time to answer a request.",
            ("route",),
            registry=self._registry,
            buckets=SECONDS_BUCKETS,
        )

    def routes(self) -> list[web.RouteDef]:
        """Return every route; GET also answers HEAD."""
        return [
            web.get("/v1/report", self.report),
            web.get("/v1/funnels", self.funnels),
            web.get("/v1/funnels/{name}", self.funnel),
            web.get("/v1/ledger", self.ledger),
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
        ]

    async def report(self, request: web.Request) -> web.Response:
        """Answer GET /v1/report."""
        return _json(await report(self._mirror, self._reader, self._clock, _given(request)))

    async def funnels(self, request: web.Request) -> web.Response:
        """Answer GET /v1/funnels: which there are."""
        return _json(await funnel_list(self._mirror, _given(request)))

    async def funnel(self, request: web.Request) -> web.Response:
        """Answer GET /v1/funnels/{name}."""
        name = request.match_info["name"]
        return _json(
            await funnel_report(self._mirror, self._reader, self._clock, name, _given(request))
        )

    async def ledger(self, request: web.Request) -> web.Response:
        """Answer GET /v1/ledger."""
        return _json(await ledger(self._mirror, self._reader, self._clock, _given(request)))

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer GET /metrics in Prometheus' text form."""
        del request
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": EXPOSITION})

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer GET /healthz: this process lives."""
        del request
        return _json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer GET /readyz: whether reports can be answered now, and if not, why."""
        del request
        reasons = self._unready()
        body = {"ready": not reasons, "reasons": reasons}
        return _json(body, status=503 if reasons else 200)

    def _unready(self) -> list[str]:
        mirror = self._mirror
        if not mirror.metas:
            return ["The counters were not read from the store yet."]
        reasons = []
        if mirror.away_ms() > AWAY_MAX_MS:
            reasons.append(f"The store has not answered for {mirror.away_ms() // 1000} seconds.")
        if mirror.torn:
            numbers = ", ".join(map(str, mirror.torn))
            reasons.append(
                f"A commit of partition {numbers} was cut in the middle: run `tracker rebuild`."
            )
        try:
            read_freshness(mirror, self._reader, self._clock, "")
        except TrackerError as error:
            reasons.append(error.message)
        return reasons


class _Gauges(Collector):
    """What is read off the mirror when somebody asks."""

    def __init__(self, mirror: Mirror, reader: LogReader, clock: Clock) -> None:
        self._mirror = mirror
        self._reader = reader
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        mirror = self._mirror
        containers, pages = mirror.held()
        yield _gauge("store_away_seconds", "Time since the store answered.", mirror.away_ms() / 1e3)
        yield _gauge("held_containers", "Containers of counters held in memory.", containers)
        yield _gauge("held_pages", "Pages of counters held in memory.", pages)
        yield _gauge("torn_partitions", "Partitions that only a rebuild mends.", len(mirror.torn))
        if not mirror.metas:
            return
        yield from self._freshness()
        totals = sum_ledgers(mirror, None)
        events = GaugeMetricFamily(
            "tracker_query_ledger_events", "Events by what became of them.", labels=("fate",)
        )
        for fate in (*FATES, *ASIDES):
            events.add_metric((fate,), totals[fate])
        for kind in REFUSALS:
            events.add_metric((kind,), sum(totals[kind].values()))
        yield events

    def _freshness(self) -> Iterator[Metric]:
        now_ms = self._clock.now_ms()
        try:
            fresh = read_freshness(self._mirror, self._reader, self._clock, "")
        except TrackerError:
            return  # readiness says why; a figure that is made up would be worse than none
        lag = GaugeMetricFamily(
            "tracker_query_lag_records",
            "Records of the log that are not counted yet.",
            labels=("partition",),
        )
        for number, records in enumerate(fresh.lags):
            lag.add_metric((str(number),), records)
        yield lag
        if fresh.as_of_ms is not None:
            age = max(0, now_ms - fresh.as_of_ms) / 1e3
            yield _gauge("freshness_seconds", "Age of what answers show; 0 when all is read.", age)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tracker_query_{name}", meaning, value=value)


def _given(request: web.Request) -> Given:
    return {name: request.query.getall(name) for name in request.query}


def _json(body: Mapping[str, object], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
