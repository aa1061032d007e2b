"""How long from the 2xx of an event until `/v1/report` counts it, on one machine.

Run: make bench (or python tests/bench/freshness.py). Prints p50, p99 and the maximum over 200
events, quiet and beside 2,000 events/s, each as a ratio to the promised second and to a bare
request to `/healthz` of the same process in the same run: the yardstick for how fast this machine
is today. Exits 1 when a p99 is over the second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

EVENTS = 200
PROMISED_MS = 1_000
LOAD_RATE = 2_000
LOAD_REQUEST = 20
START_S = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def wait_ready(session, url):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            async with session.get(f"{url}/v1/report?site=shop&metrics=views") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("tracker up did not become ready")


async def measure(session, url, tag):
    """Return the milliseconds from each 2xx to the report that counts the event."""
    ages = []
    for number in range(EVENTS):
        event = {"site": "shop", "type": "conversion", "name": tag, "visitor_id": f"{tag}{number}"}
        async with session.post(f"{url}/v1/events", data=json.dumps(event)) as response:
            assert response.status == 200, await response.text()
        acknowledged = time.perf_counter()
        question = f"{url}/v1/report?site=shop&metrics=conversions:{tag}&window=1h"
        while True:
            async with session.get(question) as response:
                totals = (await response.json())["totals"]
            if totals[f"conversions:{tag}"] > number:
                break
        ages.append((time.perf_counter() - acknowledged) * 1000)
    return ages


async def load(session, url, stop):
    """Send LOAD_RATE views a second until `stop` is set."""
    start, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as tasks:
        while not stop.is_set():
            await asyncio.sleep(max(0, start + sent / LOAD_RATE - time.monotonic()))
            events = [
                {"site": "shop", "type": "view", "visitor_id": f"l{(sent + i) % 5000}"}
                for i in range(LOAD_REQUEST)
            ]
            tasks.create_task(post(session, url, events))
            sent += LOAD_REQUEST


async def post(session, url, events):
    async with session.post(f"{url}/v1/events", data=json.dumps(events)) as response:
        await response.read()


async def yardstick(session, url):
    times = []
    for _ in range(EVENTS):
        start = time.perf_counter()
        async with session.get(f"{url}/healthz") as response:
            await response.read()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def show(name, ages, bare_ms):
    p50, p99 = statistics.median(ages), statistics.quantiles(ages, n=100)[98]
    print(
        f"{name:<22} p50 {p50:7.1f} ms   p99 {p99:7.1f} ms   max {max(ages):7.1f} ms"
        f"   p99 ÷ promised {p99 / PROMISED_MS:5.2f}   p50 ÷ bare request {p50 / bare_ms:6.1f}"
    )
    return p99 <= PROMISED_MS


async def run(url):
    async with aiohttp.ClientSession() as session:
        await wait_ready(session, url)
        bare_ms = await yardstick(session, url)
        print(f"bare request           p50 {bare_ms:7.1f} ms")
        good = show("quiet", await measure(session, url, "quiet"), bare_ms)
        stop = asyncio.Event()
        background = asyncio.ensure_future(load(session, url, stop))
        good &= show(f"at {LOAD_RATE:,} events/s", await measure(session, url, "busy"), bare_ms)
        stop.set()
        await background
        return good


def main():
    with tempfile.TemporaryDirectory(prefix="tf") as data:
        port = free_port()
        environment = os.environ | {"TRACKER_DATA": data, "TRACKER_PORT": str(port)}
        with Path(data, "up.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tracker", "up"], env=environment, stdout=log, stderr=log
            )
            try:
                good = asyncio.run(run(f"http://127.0.0.1:{port}"))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
        sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
