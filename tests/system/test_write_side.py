"""The write side over HTTP: a real collector application, a real log in files, no mocks."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web

from tracker.backends.file_log import FileLogWriter, open_writer
from tracker.backends.file_reader import FileLogReader, open_reader
from tracker.codec import decode
from tracker.collect.definitions import DefinitionBook
from tracker.collect.refusals import Refusals
from tracker.errors import Code, TrackerError
from tracker.model.clock import SystemClock
from tracker.model.keys import PARTITIONS, Keys, read_click_id
from tracker.model.record import EventRecord, MarkerRecord, Record
from tracker.ports.log import Unappended
from tracker.web.app import CollectParts, create_app, make_runner, stop_taking
from tracker.web.collect import GIF

KEYS = Keys(b"k" * 32)
BROWSER = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36"
)
SITES: dict[str, object] = {
    "shop": {
        "domains": ["shop.example"],
        "secret": "env:SHOP_SECRET",
        "link": {
            "spring": {
                "target": "https://shop.example/spring?a=1&ref={click_id}#top",
                "utm_source": "newsletter",
            },
            "plain": {"target": "https://shop.example/"},
            "both": {"target": "https://shop.example/both"},
        },
    },
    "other": {"domains": ["other.example"], "link": {"both": {"target": "https://other.example/"}}},
}


class FailingWriter:
    """A log that answers with an error, or not at all, when told to."""

    def __init__(self, writer: FileLogWriter) -> None:
        self._writer = writer
        self.error: TrackerError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, records: list[Unappended]) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await self._writer.append(records)

    def unready(self) -> str | None:
        return self.error.message if self.error else self._writer.unready()

    async def close(self) -> None:
        await self._writer.close()


@dataclass
class Collector:
    """A running collector and what a test asks of it."""

    url: str
    app: web.Application
    session: aiohttp.ClientSession
    writer: FailingWriter
    reader: FileLogReader
    refusals: Refusals

    async def post(self, body: object, **headers: str) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(
            f"{self.url}/v1/events", data=data, headers=headers, skip_auto_headers=["Content-Type"]
        ) as answer:
            return answer.status, await answer.json()

    async def records(self) -> list[Record]:
        """Everything that is durable now."""
        positions = dict.fromkeys(range(PARTITIONS), 0)
        found: list[Record] = []
        ends = self.reader.ends()
        while any(positions[p] < ends[p] for p in positions):
            for batch in await self.reader.read(positions, records_max=10_000, wait_ms=1000):
                found += [decode(record.raw) for record in batch.records]
                positions[batch.partition] = batch.next_position
        return found

    async def events(self) -> list[EventRecord]:
        return [record for record in await self.records() if isinstance(record, EventRecord)]

    async def stored(self, count: int) -> list[EventRecord]:
        """The events, as soon as there are `count` of them."""
        async with asyncio.timeout(5):
            while len(found := await self.events()) < count:
                await pause()
        return found


async def pause() -> None:
    """Let the collector run; the caller waits for a condition, with a deadline."""
    await asyncio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, **settings: object) -> AsyncIterator[Collector]:
    writer = FailingWriter(await open_writer(directory / "log"))
    reader = await open_reader(directory / "log")
    book = DefinitionBook(directory / "definitions.json", {"SHOP_SECRET": "s3cret"})
    await book.catch_up(reader)
    await book.set_file_layer(SITES, writer, SystemClock())
    refusals = Refusals()
    parts = CollectParts(
        writer=writer,
        keys=KEYS,
        clock=SystemClock(),
        book=book,
        refusals=refusals,
        **settings,
    )
    app = create_app(parts)
    runner = make_runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    session = aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": BROWSER}
    )
    try:
        yield Collector(f"http://127.0.0.1:{port}", app, session, writer, reader, refusals)
    finally:
        await session.close()
        await runner.cleanup()
        await reader.close()
        await writer.close()


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    async with running(tmp_path) as started:
        yield started


# --- POST /v1/events ------------------------------------------------------------------------


async def test_an_acknowledged_event_is_durable(collector: Collector) -> None:
    sent = {"site": "shop", "type": "view", "event_id": "e1", "visitor_id": "v1"}
    assert await collector.post(sent) == (200, {"accepted": 1, "rejected": []})
    (event,) = await collector.events()
    assert (event.event_id, event.visitor_id, event.dims["device"]) == ("e1", "v1", "desktop")
    assert event.producer
    assert event.sequence == 1


async def test_one_bad_event_among_500_costs_only_itself(collector: Collector) -> None:
    batch = [{"type": "view", "visitor_id": f"v{n}"} for n in range(500)]
    batch[250] = {"type": "view", "visitor_id": {"not": "a text"}}
    status, told = await collector.post({"site": "shop", "events": batch})
    assert (status, told["accepted"]) == (200, 499)
    assert [(item["index"], item["reason"]) for item in told["rejected"]] == [(250, "bad_field")]
    assert len(await collector.events()) == 499


async def test_501_events_are_too_many_and_all_counted(collector: Collector) -> None:
    status, told = await collector.post({"site": "shop", "events": [{"type": "view"}] * 501})
    assert (status, told["reason"] if "reason" in told else told["code"]) == (413, "too_many")
    assert collector.refusals.rejected_total == {("shop", "too_many"): 501}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"site":"shop","events":[]}'])
async def test_a_request_without_events_is_a_400_of_the_usual_shape(
    collector: Collector, body: bytes
) -> None:
    status, told = await collector.post(body)
    assert status == 400
    assert told["accepted"] == 0
    assert [item["reason"] for item in told["rejected"]] == ["empty"]


async def test_a_body_of_exactly_1_mb_is_read_and_one_byte_more_is_not(
    collector: Collector,
) -> None:
    event = b'{"site":"shop","type":"view"}'
    assert (await collector.post(event.ljust(1_000_000)))[0] == 200
    status, told = await collector.post(event.ljust(1_000_001))
    assert (status, told["code"]) == (413, "too_large")
    status, told = await collector.post(gzip.compress(event.ljust(1_000_001)))
    assert (status, told["code"]) == (413, "too_large")
    assert len(await collector.events()) == 1


async def test_a_chunked_body_over_the_limit_is_refused_while_it_arrives(
    collector: Collector,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 50_000

    async with collector.session.post(f"{collector.url}/v1/events", data=endless()) as answer:
        assert answer.status == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "text/plain;x=y"]
)
async def test_json_is_json_whatever_the_content_type_says(
    collector: Collector, content_type: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    status, _ = await collector.post({"site": "shop", "type": "view"}, **headers)
    assert status == 200


async def test_gzip_is_understood_also_when_nobody_says_so(collector: Collector) -> None:
    packed = gzip.compress(b'{"site":"shop","type":"view"}')
    assert (await collector.post(packed))[0] == 200
    assert (await collector.post(packed, **{"Content-Encoding": "gzip"}))[0] == 200
    status, told = await collector.post(packed, **{"Content-Encoding": "gzip, gzip"})
    assert (status, told["code"]) == (415, "bad_encoding")


async def test_the_secret_key_is_trusted_and_a_wrong_one_is_a_401(collector: Collector) -> None:
    event = {"site": "shop", "type": "view"}
    assert (await collector.post(event, Authorization="Bearer s3cret"))[0] == 200
    status, told = await collector.post(event, Authorization="Bearer guess")
    assert (status, told["code"], told["accepted"]) == (401, "bad_secret", 0)
    (stored,) = await collector.events()
    assert (stored.trust, stored.visitor_id) == ("secret", "")


async def test_x_site_and_the_query_name_the_site(collector: Collector) -> None:
    assert (await collector.post({"type": "view"}, **{"X-Site": "shop"}))[0] == 200
    async with collector.session.post(
        f"{collector.url}/v1/events?site=other", data=b'{"type":"view"}'
    ) as answer:
        assert answer.status == 200
    assert {event.site for event in await collector.events()} == {"shop", "other"}


async def test_a_log_that_cannot_store_is_a_503_with_retry_after(collector: Collector) -> None:
    collector.writer.error = TrackerError(Code.LOG_FULL, "the log is full: make space")
    async with collector.session.post(
        f"{collector.url}/v1/events", data=b'{"site":"shop","type":"view"}'
    ) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.content_type == "application/problem+json"
    assert collector.refusals.shed_total == {("shop", "log_full"): 1}
    async with collector.session.get(f"{collector.url}/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["the log is full: make space"]


async def test_refusals_reach_the_log_as_a_marker(collector: Collector) -> None:
    await collector.post({"site": "shop", "type": "nonsense"})
    await collector.post({"site": "nobody", "type": "view"})

    async def told() -> dict[str, int]:
        markers = [r for r in await collector.records() if isinstance(r, MarkerRecord)]
        return {site: reasons for marker in markers for site, reasons in marker.rejected.items()}

    async with asyncio.timeout(10):
        while len(found := await told()) < 2:
            await pause()
    assert found == {"": {"unknown_site": 1}, "shop": {"bad_type": 1}}


# --- GET /p.gif -----------------------------------------------------------------------------


async def test_the_pixel_is_always_an_image(collector: Collector) -> None:
    for query, status, rejected in (
        ("site=shop", 200, None),
        ("site=shop&type=click&url=https%3A%2F%2Fshop.example%2F%3Futm_source%3Dx", 200, None),
        ("site=shop&type=conversion", 400, "missing_name"),
        ("site=nobody", 400, "unknown_site"),
        ("", 400, "unknown_site"),
    ):
        async with collector.session.get(f"{collector.url}/p.gif?{query}") as answer:
            assert answer.status == status
            assert answer.headers.get("X-Tracker-Rejected") == rejected
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.content_type == "image/gif"
            assert await answer.read() == GIF
    view, click = sorted(await collector.events(), key=lambda event: event.type, reverse=True)
    assert (view.type, click.type, click.dims["utm_source"]) == ("view", "click", "x")


async def test_the_pixel_can_answer_nothing(collector: Collector) -> None:
    async with collector.session.get(f"{collector.url}/p.gif?site=shop&r=204") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    (event,) = await collector.events()
    assert event.properties == {}


async def test_head_records_nothing(collector: Collector) -> None:
    for path in ("/p.gif?site=shop", "/c/plain"):
        async with collector.session.head(collector.url + path, allow_redirects=False) as answer:
            assert answer.status in (200, 302)
    assert await collector.events() == []


# --- cookies and consent --------------------------------------------------------------------


async def test_the_first_answer_keeps_the_visitor_that_it_counted(collector: Collector) -> None:
    async with collector.session.get(f"{collector.url}/p.gif?site=shop") as answer:
        cookie = answer.cookies["_tv"]
    assert (cookie["samesite"], cookie["path"], cookie["httponly"]) == ("Lax", "/", "")
    assert int(cookie["max-age"]) > 390 * 86_400
    async with collector.session.get(
        f"{collector.url}/p.gif?site=shop", headers={"Cookie": f"a=b; _tv={cookie.value}"}
    ) as answer:
        await answer.read()
    first, second = await collector.events()
    assert first.visitor_id == second.visitor_id == cookie.value
    assert {first.identified_by, second.identified_by} == {"estimate", "cookie"}


async def test_global_privacy_control_leaves_no_trace_of_the_person(collector: Collector) -> None:
    headers = {"Sec-GPC": "1", "Cookie": "_tv=somebody"}
    sent = {"site": "shop", "type": "view", "visitor_id": "somebody", "customer_id": "c7"}
    async with collector.session.post(
        f"{collector.url}/v1/events", json=sent, headers=headers
    ) as answer:
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers
    (event,) = await collector.events()
    assert (event.consent, event.visitor_id, event.customer_id) == ("gpc", "", "")


async def test_the_cookie_is_secure_and_of_the_domain_when_configured(tmp_path: Path) -> None:
    settings = {"public_url": "https://t.shop.example", "cookie_domain": "shop.example"}
    async with (
        running(tmp_path, **settings) as collector,
        collector.session.get(f"{collector.url}/p.gif?site=shop") as answer,
    ):
        cookie = answer.cookies["_tv"]
        assert (cookie["secure"], cookie["domain"]) == (True, "shop.example")


# --- GET /c/{link} --------------------------------------------------------------------------


async def test_a_link_redirects_with_its_marks_and_counts_the_click(collector: Collector) -> None:
    async with collector.session.get(
        f"{collector.url}/c/spring?gclid=G1&utm_source=forged", allow_redirects=False
    ) as answer:
        assert answer.status == 302
        assert answer.headers["Cache-Control"] == "no-store"
        location = urlsplit(answer.headers["Location"])
        cookie = answer.cookies["_tv"].value
    assert (location.netloc, location.path, location.fragment) == ("shop.example", "/spring", "top")
    marks = parse_qs(location.query)
    assert marks["utm_source"] == ["newsletter"]
    assert (marks["a"], marks["gclid"], "click_id" in marks) == (["1"], ["G1"], False)
    click = read_click_id(KEYS, marks["ref"][0])
    assert click is not None
    assert click.visitor_id == cookie
    (event,) = await collector.stored(1)
    assert (event.type, event.click_network, event.visitor_id) == ("click", "tracker", cookie)
    assert event.dims["utm_source"] == "newsletter"
    assert event.click_id == marks["ref"][0]


async def test_a_landing_adopts_the_visitor_of_a_fresh_click(collector: Collector) -> None:
    async with collector.session.get(
        f"{collector.url}/c/plain", allow_redirects=False, headers={"Cookie": "_tv=clicker"}
    ) as answer:
        location = answer.headers["Location"]
    await collector.post({"site": "shop", "type": "view", "url": location})
    found = await collector.stored(2)
    assert {event.visitor_id for event in found} == {"clicker"}
    assert {event.identified_by for event in found} == {"cookie", "click"}


async def test_an_unknown_link_is_a_404_and_counted(collector: Collector) -> None:
    async with collector.session.get(f"{collector.url}/c/nowhere", allow_redirects=False) as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        assert "Location" not in answer.headers
    assert collector.refusals.rejected_total == {("", "unknown_link"): 1}


async def test_a_name_of_two_sites_needs_the_site(collector: Collector) -> None:
    async with collector.session.get(f"{collector.url}/c/both", allow_redirects=False) as answer:
        assert answer.status == 400
    async with collector.session.get(
        f"{collector.url}/c/both?site=other", allow_redirects=False
    ) as answer:
        assert urlsplit(answer.headers["Location"]).netloc == "other.example"


async def test_a_redirect_does_not_wait_for_the_log(collector: Collector) -> None:
    collector.writer.gate.clear()
    async with asyncio.timeout(2):
        async with collector.session.get(
            f"{collector.url}/c/plain", allow_redirects=False
        ) as answer:
            assert answer.status == 302
    collector.writer.gate.set()
    await collector.stored(1)


async def test_a_redirect_survives_a_dead_log_and_the_loss_is_counted(
    collector: Collector,
) -> None:
    collector.writer.error = TrackerError(Code.LOG_UNAVAILABLE, "gone")
    async with collector.session.get(f"{collector.url}/c/plain", allow_redirects=False) as answer:
        assert answer.status == 302
    assert collector.refusals.shed_total == {("shop", "redirect_lost"): 1}


# --- CORS -----------------------------------------------------------------------------------


async def test_any_page_may_send_and_only_the_sites_own_with_cookies(collector: Collector) -> None:
    async def allowed(origin: str | None, site: str = "shop") -> tuple[str | None, str | None]:
        headers = {"Origin": origin} if origin else {}
        async with collector.session.post(
            f"{collector.url}/v1/events", json={"site": site, "type": "view"}, headers=headers
        ) as answer:
            found = answer.headers
            return (
                found.get("Access-Control-Allow-Origin"),
                found.get("Access-Control-Allow-Credentials"),
            )

    own = "https://www.shop.example"
    assert await allowed(own) == (own, "true")
    assert await allowed("https://evil.example") == ("*", None)
    assert await allowed("https://shop.example.evil.example") == ("*", None)
    assert await allowed("https://other.example") == ("*", None)
    assert await allowed("null") == ("*", None)
    assert await allowed(None) == (None, None)


async def test_a_preflight_is_cached_for_a_day(collector: Collector) -> None:
    for path in ("/v1/events", "/p.gif"):
        async with collector.session.options(
            collector.url + path,
            headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
        ) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Max-Age"] == "86400"
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]


# --- the rest -------------------------------------------------------------------------------


async def test_other_methods_and_addresses_are_problems(collector: Collector) -> None:
    for method, path, status in (
        ("PUT", "/p.gif", 405),
        ("GET", "/v1/events", 405),
        ("POST", "/c/plain", 405),
        ("GET", "/nothing", 404),
        ("GET", "/..;/p.gif", 404),
    ):
        async with collector.session.request(method, collector.url + path) as answer:
            assert (method, path, answer.status) == (method, path, status)
            assert answer.content_type == "application/problem+json"
            assert ("Allow" in answer.headers) == (status == 405)
            assert "Server" not in answer.headers
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_forwarded_addresses_count_only_from_trusted_proxies(tmp_path: Path) -> None:
    async def visitor(directory: Path, **settings: object) -> tuple[str, str]:
        async with running(directory, **settings) as collector:
            for address in ("203.0.113.5", "198.51.100.7"):
                headers = {"X-Forwarded-For": address, "CF-IPCountry": "DE"}
                await collector.post({"site": "shop", "type": "view"}, **headers)
            first, second = await collector.events()
            return len({first.visitor_id, second.visitor_id}), first.dims.get("country", "")

    assert await visitor(tmp_path / "a") == (1, "")
    assert await visitor(tmp_path / "b", trusted_proxies=("127.0.0.0/8",)) == (2, "DE")


async def test_metrics_tell_what_was_counted(collector: Collector) -> None:
    await collector.post([{"site": "shop", "type": "view"}, {"site": "shop", "type": "x"}])
    async with collector.session.get(f"{collector.url}/metrics") as answer:
        text = await answer.text()
    assert 'tracker_collect_accepted_total{site="shop"} 1.0' in text
    assert 'tracker_collect_rejected_total{reason="bad_type",site="shop"} 1.0' in text
    assert "tracker_collect_append_seconds_count 1.0" in text


async def test_readiness_ends_before_service_does(collector: Collector) -> None:
    async with collector.session.get(f"{collector.url}/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ready": True, "reasons": []})
    stop_taking(collector.app)
    async with collector.session.get(f"{collector.url}/readyz") as answer:
        assert answer.status == 503
    assert (await collector.post({"site": "shop", "type": "view"}))[0] == 200
    async with collector.session.get(f"{collector.url}/healthz") as answer:
        assert answer.status == 200


async def test_reads_are_forwarded_and_say_when_they_cannot_be(tmp_path: Path) -> None:
    socket = tmp_path / "q.sock"
    seen: list[tuple[str, str, str | None]] = []

    async def report(request: web.Request) -> web.Response:
        peer = request.headers["X-Tracker-Peer"]
        seen.append((request.method, request.path_qs, peer))
        return web.json_response({"rows": []}, status=203)

    async with running(tmp_path, query_socket=socket) as collector:
        url = f"{collector.url}/v1/report?site=a%20b"
        async with collector.session.get(url) as answer:
            assert answer.status == 503
            assert (await answer.json())["code"] == "query_unavailable"
            assert "Retry-After" in answer.headers
        query = web.Application()
        query.router.add_route("*", "/{tail:.*}", report)
        runner = web.AppRunner(query)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        try:
            for headers in ({"X-Tracker-Peer": "forged"}, {"X-Forwarded-For": "127.0.0.1"}):
                async with collector.session.get(url, headers=headers) as answer:
                    assert (answer.status, await answer.json()) == (203, {"rows": []})
                    assert "Server" not in answer.headers
        finally:
            await runner.cleanup()
    assert seen == [
        ("GET", "/v1/report?site=a%20b", "127.0.0.1"),
        ("GET", "/v1/report?site=a%20b", "unknown"),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"GET /p.gif?site=%ff%00%ed%a0%80&title=%ed%a0%bd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /p.gif?site=shop HTTP/1.1\r\nHost: x\r\nUser-Agent: \xff\xfe\r\nX-Site: \xff\r\n\r\n",
        b"GET /c/%00%ff?site=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_bad_input_leaves_no_traceback_and_the_next_request_is_served(
    collector: Collector,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    raw: bytes,
) -> None:
    port = urlsplit(collector.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    await writer.drain()
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read(100)
    writer.close()
    assert (await collector.post({"site": "shop", "type": "view"}))[0] == 200
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in said
