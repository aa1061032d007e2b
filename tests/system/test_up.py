"""`tracker up` as a user runs it: start, count, survive every kill, stop, go on."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import socket
import time

from conftest import is_alive, until


def view(number, **more):
    return {
        "site": "shop",
        "type": "view",
        "event_id": f"event-{number}",
        "visitor_id": f"visitor-{hash(number) % 97}",
        "url": "https://shop.example/?utm_campaign=spring",
        **more,
    }


def settled(installation):
    """Wait until everything is folded, and return the ledger."""

    def quiet():
        try:
            status, raw = installation.request("GET", "/v1/ledger?site=shop")
        except OSError:
            return None
        ledger = json.loads(raw)
        return ledger if status == 200 and ledger["in_flight"] == 0 else None

    return until(quiet, 40, "the consumer did not catch up")


def test_the_start_says_where_everything_is(up):
    said = up.output.read_text()
    for part in (
        f"http://127.0.0.1:{up.port}/?site=shop",
        f'<img src="http://127.0.0.1:{up.port}/p.gif?site=shop"',
        f"curl http://127.0.0.1:{up.port}/v1/events -d",
        str(up.data),
    ):
        assert part in said


def test_the_printed_curl_line_sends_an_event_that_is_counted_within_seconds(up):
    line = next(one for one in up.output.read_text().splitlines() if "curl " in one)
    url, option, body = shlex.split(line.partition("curl ")[2])
    assert (url, option) == (f"http://127.0.0.1:{up.port}/v1/events", "-d")
    before = up.totals()["views"]
    headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "curl/8.5.0"}
    status, answer = up.request("POST", "/v1/events", body.encode(), headers)
    assert (status, answer) == (200, b'{"accepted":1,"rejected":[]}')
    until(lambda: up.totals()["views"] == before + 1, 5)


def test_the_command_line_reports_what_http_reports(up):
    assert up.send(view("cli")) == 200
    until(lambda: up.totals()["views"] > 0, 5)
    answer = up.cli_json("report", "--site", "shop", "--metrics", "views", "--window", "1h")
    assert answer["totals"]["views"] == up.totals()["views"]
    table = up.cli("report", "--site", "shop", "--by", "utm_campaign", "--window", "1h").stdout
    assert "spring" in table
    assert "total" in table
    assert "conversion:purchase" in up.cli("funnel", "purchase", "--site", "shop").stdout
    status = up.cli("status").stdout
    assert "ready" in status
    assert "collector: process" in status


def test_a_refused_question_is_one_sentence(up):
    found = up.cli("report", "--site", "shop", "--metrics", "dance", check=False)
    assert found.returncode == 1
    assert "dance" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_second_start_is_refused_with_a_sentence(up):
    found = up.cli("up", "--port", up.port + 1, check=False)
    assert found.returncode == 1
    assert f"process {up.process.pid}) already runs on {up.data}" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_port_in_use_is_one_sentence(up, tmp_path):
    found = up.cli("up", "--data", tmp_path / "d", check=False)
    assert found.returncode == 1
    assert f"Port {up.port}" in found.stderr
    assert "--port" in found.stderr
    assert found.stderr.count("\n") == 1


def test_reconcile_and_rebuild_work_beside_a_running_tracker(up):
    assert up.send(*[view(f"r{n}") for n in range(100)]) == 200
    settled(up)
    before = up.totals("views,visitors,sessions")
    assert up.cli_json("reconcile")["equal"] is True
    assert up.cli_json("rebuild")["records"] > 100
    until(lambda: up.totals("views,visitors,sessions") == before, 10)
    assert up.cli_json("reconcile")["equal"] is True
    assert up.send(view("after the rebuild")) == 200
    until(lambda: up.totals()["views"] == before["views"] + 1, 10)


def test_the_consumer_resumes_when_a_rebuild_is_killed(up):
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(up.data / "run" / "control.sock"))
    control.sendall(b"pause consumer\n")
    assert control.makefile().readline() == "paused\n"
    assert up.processes()["consumer"]["pid"] is None
    assert up.send(view("while paused")) == 200
    control.close()
    until(lambda: up.processes()["consumer"]["pid"], 10)
    settled(up)


def test_state_survives_sigterm_and_a_kill_of_everything(make_installation):
    installation = make_installation().start()
    assert installation.send(*[view(n) for n in range(50)]) == 200
    settled(installation)
    began = time.monotonic()
    assert installation.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 25
    offline = installation.cli_json("reconcile")
    assert (offline["equal"], offline["different"]) == (True, 0)

    installation.start()
    assert installation.totals()["views"] == 50
    pids = [process["pid"] for process in installation.processes().values()]
    pids.append(installation.process.pid)
    assert installation.send(*[view(n) for n in range(40, 60)]) == 200
    installation.stop(signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)), 10, "processes outlived the supervisor")

    installation.start()
    assert settled(installation)["duplicate"] == 10
    assert installation.totals()["views"] == 60
    assert installation.stop(signal.SIGINT) == 0

    shutil.rmtree(installation.data / "redis")
    assert installation.cli_json("rebuild")["records"] > 60
    installation.start()
    assert installation.totals()["views"] == 60
    assert installation.cli_json("reconcile")["equal"] is True
    installation.stop()


def test_the_demo_plays_traffic_that_is_counted(make_installation):
    installation = make_installation("--demo").start()
    until(lambda: installation.totals("views,clicks,impressions")["views"] > 3, 30)
    assert installation.processes()["demo"]["pid"]
    assert installation.stop() == 0
