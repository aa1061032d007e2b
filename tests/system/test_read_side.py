"""The query application over HTTP, on counters that the test wrote."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from counted_pages import DEADLINE_S, Counted

from tracker.model.cell import funnel_unique, last_column
from tracker.model.clock import SystemClock
from tracker.model.window import DAY_MS, MINUTE_MS
from tracker.ports.log import Unappended
from tracker.web.query_app import QueryParts, create_query_app

SITES = {
    "shop": {
        "dimensions": ["utm_campaign"],
        "funnel": {"checkout": {"steps": ["view", "conversion:purchase"], "within": "24h"}},
    }
}
TOKEN = "a token of the test"  # noqa: S105 - of nothing
FAR = {"X-Tracker-Peer": "203.0.113.9"}


@pytest.fixture
async def counted() -> Counted:
    counted = Counted()
    counted.define(SITES, since={"shop/checkout": 1})
    now_ms = SystemClock().now_ms()
    at = (now_ms - MINUTE_MS, (now_ms - MINUTE_MS) // DAY_MS)
    counted.watermark_ms = now_ms
    reached = {last_column(funnel_unique("checkout", 1, step, 0)): 5 - step for step in (1, 2)}
    counted.count(0, at, views=40, clicks=10, conversions=3, **reached)
    counted.count(17, at, "utm_campaign=<b>spring</b>", views=40, clicks=10)
    counted.fate(0, "shop", applied=53)
    await counted.commit()
    return counted


@asynccontextmanager
async def serving(counted: Counted, read_token: str = ""):
    parts = QueryParts(counted.store, counted.reader, SystemClock(), read_token)
    runner = web.AppRunner(create_query_app(parts), access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    try:
        async with aiohttp.ClientSession(address, timeout=timeout) as session:
            yield session
    finally:
        await runner.cleanup()


async def test_a_report_is_answered(counted):
    async with serving(counted) as session:
        query = {"site": "shop", "window": "1h", "by": "utm_campaign", "metrics": "views,cr"}
        async with session.get("/v1/report", params=query) as response:
            answer = await response.json()
    assert response.status == 200
    assert answer["totals"] == {
        "views": 40,
        "cr": {"value": 0.3, "numerator": 3, "denominator": 10},
    }
    assert [row["utm_campaign"] for row in answer["rows"]] == ["<b>spring</b>"]
    assert answer["complete"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer["as_of"])


async def test_a_commit_shows_in_the_next_reports_within_a_second(counted):
    async with serving(counted) as session:
        query = {"window": "1h", "metrics": "views"}
        async with session.get("/v1/report", params=query) as response:
            assert (await response.json())["totals"] == {"views": 40}
        now_ms = SystemClock().now_ms()
        counted.count(3, (now_ms, now_ms // DAY_MS), views=1)
        await counted.commit()
        async with asyncio.timeout(1):
            while True:
                async with session.get("/v1/report", params=query) as response:
                    if (await response.json())["totals"] == {"views": 41}:
                        break


async def test_a_funnel_is_answered_and_listed(counted):
    async with serving(counted) as session:
        async with session.get("/v1/funnels/checkout?window=1h&site=shop") as response:
            steps = (await response.json())["steps"]
        async with session.get("/v1/funnels?site=shop") as response:
            names = [funnel["name"] for funnel in (await response.json())["funnels"]]
        async with session.get("/v1/funnels/nothing") as response:
            assert response.status == 404
    assert [step["reached"] for step in steps] == [4, 3]
    assert steps[0]["abandonment"] == {"value": 0.25, "numerator": 1, "denominator": 4}
    assert names == ["checkout"]


async def test_the_ledger_is_answered_with_what_is_in_flight(counted):
    counted.log.add([Unappended(4, b"{}")])
    async with serving(counted) as session, session.get("/v1/ledger?site=shop") as response:
        answer = await response.json()
    assert answer["applied"] == 53
    assert answer["in_flight"] == 1
    assert answer["received"] == answer["accepted"] == 54


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        ("/v1/report?site=nowhere", 404, "not_found", "there are shop"),
        ("/v1/report?colour=red", 400, "invalid", "there are basis, bots"),
        ("/v1/report?window=1h&window=2h", 400, "invalid", "given 2 times"),
        ("/v1/ledger?by=x", 400, "invalid", "there are site"),
        ("/v1/nothing", 404, "not_found", "nothing at this address"),
        ("/static/query_app.py", 404, "not_found", "nothing"),
    ],
)
async def test_a_bad_question_is_a_problem_in_plain_words(counted, path, status, code, words):
    async with serving(counted) as session, session.get(path) as response:
        answer = await response.json(content_type="application/problem+json")
    assert response.status == status
    assert answer["code"] == code
    assert words in answer["detail"]


async def test_only_reading_is_allowed(counted):
    async with serving(counted) as session:
        async with session.post("/v1/report") as response:
            assert response.status == 405
            assert "GET" in response.headers["Allow"]
        async with session.head("/v1/report") as response:
            assert response.status == 200
            assert await response.read() == b""


@pytest.mark.parametrize("path", ["/", "/static/live.js", "/v1/report", "/v1/nothing"])
async def test_every_answer_is_hardened(counted, path):
    async with serving(counted) as session, session.get(path) as response:
        headers = response.headers
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers


async def test_the_page_loads_only_its_own_parts_and_no_markup_is_made_of_data(counted):
    async with serving(counted) as session:
        async with session.get("/") as response:
            page = await response.text()
            assert response.content_type == "text/html"
        for link in re.findall(r'(?:src|href)="([^"]+)"', page):
            async with session.get(link) as response:
                assert response.status == 200, link
        async with session.get("/static/live.js") as response:
            script = await response.text()
            assert response.content_type == "text/javascript"
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|https?://", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


LOCAL_ONLY = "Reports are open only to this machine"


@pytest.mark.parametrize(
    "headers",
    [
        FAR,
        {"X-Forwarded-For": "203.0.113.9"},
        {"Host": "rebound.example:8400"},
        {"X-Forwarded-Host": "rebound.example:8400"},
        {"X-Tracker-Peer": "x"},
    ],
)
async def test_without_a_token_only_this_machine_reads(counted, headers):
    async with serving(counted) as session:
        async with session.get("/v1/report", headers=headers) as response:
            answer = await response.json(content_type="application/problem+json")
        assert response.status == 403
        assert LOCAL_ONLY in answer["detail"]
        assert "TRACKER_READ_TOKEN" in answer["detail"]
        for path in ("/healthz", "/", "/static/live.css"):
            async with session.get(path, headers=headers) as response:
                assert response.status == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "127.8.0.1"])
@pytest.mark.parametrize("host", ["localhost:8400", "127.0.0.1", "[::1]:8400", "a.localhost", "pc"])
async def test_a_forwarded_request_of_this_machine_reads(counted, peer, host):
    async with serving(counted, TOKEN) as session:
        headers = {"X-Tracker-Peer": peer, "Host": "query", "X-Forwarded-Host": host}
        async with session.get("/v1/report", headers=headers) as response:
            assert response.status == 200


async def test_with_a_token_others_read_too(counted):
    async with serving(counted, TOKEN) as session:
        for sent, status in (
            ("", 401),
            ("Bearer wrong", 401),
            (TOKEN, 401),
            (f"Bearer {TOKEN}", 200),
            (f"bearer {TOKEN}", 200),
        ):
            headers = FAR | ({"Authorization": sent} if sent else {})
            async with session.get("/v1/report", headers=headers) as response:
                assert response.status == status, sent
            if status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_readiness_says_why_not(counted):
    async with serving(counted) as session:
        async with session.get("/v1/report") as response:
            assert response.status == 200
        async with session.get("/readyz") as response:
            assert response.status == 200
            assert await response.json() == {"ready": True, "reasons": []}
    counted.store.tear(3, "batch")
    async with serving(counted) as session:
        async with session.get("/v1/report") as response:
            assert response.status == 200
        async with session.get("/readyz") as response:
            assert response.status == 503
            assert "partition 3" in (await response.json())["reasons"][0]
        async with session.get("/healthz") as response:
            assert response.status == 200


async def test_figures_of_the_service_have_fixed_labels(counted):
    counted.log.add([Unappended(4, b"{}")] * 2)
    async with serving(counted) as session:
        async with session.get("/v1/report") as response:
            assert response.status == 200
        async with session.get("/v1/nothing/at/all") as response:
            assert response.status == 404
        async with session.get("/metrics") as response:
            text = await response.text()
    assert 'tracker_query_lag_records{partition="4"} 2.0' in text
    assert text.count("tracker_query_lag_records{") == 32
    assert 'tracker_query_ledger_events{fate="applied"} 53.0' in text
    assert 'tracker_query_requests_total{route="/v1/report",status="200"} 1.0' in text
    assert 'route="other",status="404"' in text
    assert "at/all" not in text
