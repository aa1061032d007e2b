"""The command line: help, exit codes, plain errors on stderr, and how answers look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from urllib.parse import parse_qsl, urlsplit

import pytest
from rich.console import Console

from tracker.cli import app
from tracker.cli.appending import ATTEMPTS_MAX, GROUP_RECORDS, append_all
from tracker.cli.imports import load_mapping, shipped_mappings
from tracker.cli.queries import funnel_table, ledger_table, report_table
from tracker.cli.terminal import show_value
from tracker.errors import Code, TrackerError
from tracker.ports.log import Unappended

COMMANDS = "up collect consume query import report funnel status reconcile rebuild version".split()
REPORT = {
    "as_of": "2026-01-05T10:00:01.250Z",
    "complete": True,
    "from": "2026-01-05T09:00:00Z",
    "to": "2026-01-05T10:00:00Z",
    "rows": [
        {"utm_campaign": "spring", "clicks": 48, "ctr": {"value": 0.04, "numerator": 48,
         "denominator": 1200}},
        {"utm_campaign": "__other__", "clicks": 2, "at_least": True,
         "ctr": {"value": None, "numerator": 2, "denominator": 0}},
    ],
    "totals": {"clicks": 1804, "ctr": {"value": 0.019998, "numerator": 1804,
               "denominator": 90210}},
}  # fmt: skip


def run(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRACKER_")}
    return subprocess.run(
        [sys.executable, "-m", "tracker", *arguments],
        capture_output=True,
        text=True,
        env=kept | {"NO_COLOR": "1", "COLUMNS": "200"} | environment,
        timeout=60,
        check=False,
    )


def shown(table):
    console = Console(file=StringIO(), width=200, no_color=True)
    console.print(table)
    return console.file.getvalue()


@pytest.fixture
def server():
    """Answer like the API, and remember what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            asked.append((parts.path, parse_qsl(parts.query)))
            status, answer = 200, REPORT
            if parts.path != "/v1/report":
                status, answer = 404, {"status": 404, "detail": "There is no such funnel."}
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_every_command_is_there():
    names = {one.name or one.callback.__name__ for part in app.registered_groups
             for one in part.typer_instance.registered_commands}  # fmt: skip
    assert names == set(COMMANDS)


def test_help_names_every_command_and_exits_well():
    found = run("--help")
    assert found.returncode == 0
    for command in COMMANDS:
        assert command in found.stdout


@pytest.mark.parametrize("command", ["import", "report", "up"])
def test_every_command_has_help(command):
    found = run(command, "--help")
    assert found.returncode == 0
    assert "--" in found.stdout


def test_the_version_is_an_answer():
    found = run("version")
    assert found.stdout.startswith("tracker ")
    assert found.stderr == ""


def test_wrong_usage_exits_with_2():
    assert run("report").returncode == 2
    assert run("dance").returncode == 2
    assert run("up", "--port", "many").returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--site", "shop"),
        ("funnel", "checkout", "--site", "shop"),
        ("status",),
    ],
)
def test_without_a_server_one_sentence_says_how_to_start_it(command, tmp_path):
    found = run(*command, TRACKER_PORT="1", TRACKER_DATA=str(tmp_path))
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert "start it with `tracker up`" in found.stderr


@pytest.mark.parametrize("command", ["reconcile", "rebuild"])
def test_upkeep_without_an_installation_is_one_sentence(command, tmp_path):
    found = run(command, "--data", str(tmp_path / "none"))
    assert found.returncode == 1
    assert "There is no installation" in found.stderr
    assert "Traceback" not in found.stderr


def test_wrong_settings_are_said_without_a_traceback(tmp_path):
    (tmp_path / "my.toml").write_text("prt = 1\n")
    found = run("up", "--config", str(tmp_path / "my.toml"))
    assert found.returncode == 1
    assert "prt: no such setting" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_back_end_we_do_not_have_is_named(tmp_path):
    found = run("collect", "--data", str(tmp_path / "d"), "--log", "kafka://h:9092/t")
    assert found.returncode == 1
    assert "no back end for kafka:" in found.stderr


def test_a_report_passes_its_options_on_and_prints_a_table(server):
    url, asked = server
    found = run(
        *("report", "--site", "shop", "--by", "utm_campaign", "--metrics", "clicks,ctr"),
        *("--window", "1h", "--where", "country:DE", "--where", "device:mobile", "--sort", "-ctr"),
        TRACKER_URL=url,
    )
    assert found.returncode == 0, found.stderr
    (path, parameters), *_ = asked
    assert path == "/v1/report"
    assert ("site", "shop") in parameters
    assert [value for name, value in parameters if name == "where"] == [
        "country:DE",
        "device:mobile",
    ]
    assert "4.00% (48 / 1,200)" in found.stdout
    assert "as of 2026-01-05T10:00:01.250Z, complete" in found.stdout


def test_json_is_the_answer_of_the_api(server):
    found = run("report", "--site", "shop", "--url", server[0], "--json")
    assert json.loads(found.stdout) == REPORT


def test_a_refusal_is_told_in_the_servers_words(server):
    found = run("funnel", "none", "--site", "shop", "--url", server[0])
    assert (found.returncode, found.stderr) == (1, "There is no such funnel.\n")


def test_an_address_that_is_none_is_said():
    assert "no address like" in run("report", "--site", "shop", "--url", "nonsense").stderr


def test_import_says_what_is_missing(tmp_path):
    found = run("import", str(tmp_path / "no.csv"), "--site", "shop", "--mapping", "rees46")
    assert (found.returncode, "There is no file" in found.stderr) == (1, True)
    (tmp_path / "a.csv").write_text("x\n")
    found = run("import", str(tmp_path / "a.csv"), "--site", "shop", "--mapping", "none")
    assert "one of apache-combined, rees46" in found.stderr
    found = run(
        *("import", str(tmp_path / "a.csv"), "--site", "shop", "--mapping", "rees46"),
        *("--data", str(tmp_path / "d")),
    )
    assert "start it with `tracker up`" in found.stderr


def test_shipped_mappings_are_found_by_name_and_by_path():
    assert {"rees46", "apache-combined"} <= set(shipped_mappings())
    assert load_mapping("rees46") == load_mapping("rees46.toml")
    assert load_mapping("deploy/mappings/rees46.toml") == load_mapping("rees46")
    assert load_mapping("rees46", "\\t").delimiter == "\t"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1234567, "1,234,567"),
        (None, "—"),
        ({"value": 0.04, "numerator": 48, "denominator": 1200}, "4.00% (48 / 1,200)"),
        ({"value": None, "numerator": 0, "denominator": 0}, "— (0 / 0)"),
        ({"amount": "59442.63", "currency": "USD"}, "59,442.63 USD"),
        (
            {"amount": None, "by_currency": {"EUR": "1000.50", "USD": "2.00"}},
            "1,000.50 EUR + 2.00 USD",
        ),
        (
            {"value": 277.769, "numerator": "59442.63", "denominator": 214, "currency": "USD"},
            "277.77 USD (59,442.63 / 214)",
        ),
        ({"value": 1200, "estimate": True, "error": 0.008}, "≈ 1,200"),
    ],
)
def test_values_are_shown_with_what_they_are_made_of(value, expected):
    assert show_value(value) == expected


def test_a_report_marks_rows_that_were_folded_away():
    text = shown(report_table(REPORT, ["utm_campaign"]))
    assert "≥ 2" in text
    assert "1,804" in text


def test_a_funnel_has_one_line_a_step():
    steps = [
        {"step": 1, "event": "view", "reached": 4504, "abandonment": None},
        {"step": 2, "event": "conversion:purchase", "reached": 192},
    ]
    text = shown(funnel_table(steps, "purchase"))
    assert "4,504" in text
    assert "conversion:purchase" in text


def test_a_ledger_lists_reasons_below_their_fate():
    text = shown(ledger_table({"received": 7, "rejected": {"bad_type": 2, "too_old": 1}}))
    assert [line.replace("│", " ").split() for line in text.splitlines()[2:]] == [
        ["received", "7"],
        ["rejected", "3"],
        ["bad_type", "2"],
        ["too_old", "1"],
    ]


class FlakyLog:
    """A log that fails at given calls, once each."""

    def __init__(self, *failing, error=Code.LOG_UNAVAILABLE):
        self.failing = set(failing)
        self.error = error
        self.calls = 0
        self.records = []

    async def append(self, records):
        self.calls += 1
        if self.calls in self.failing:
            raise TrackerError(self.error, "away")
        self.records += records

    def unready(self):
        return None

    async def close(self):
        pass


def unappended(count):
    return [Unappended(0, str(number).encode()) for number in range(count)]


async def test_records_are_appended_in_order_and_told():
    log, told = FlakyLog(), []
    records = unappended(3 * GROUP_RECORDS + 1)
    await append_all(log, records, lambda done, total: told.append((done, total)))
    assert log.records == records
    assert told[-1] == (len(records), len(records))


async def test_after_a_failure_everything_from_there_on_is_sent_again(monkeypatch):
    monkeypatch.setattr("tracker.cli.appending.PAUSE_S", 0)
    log = FlakyLog(2)
    records = unappended(4 * GROUP_RECORDS)
    await append_all(log, records, lambda _done, _total: None)
    assert log.records[-3 * GROUP_RECORDS :] == records[GROUP_RECORDS:]
    assert set(log.records) == set(records)


async def test_a_log_that_never_takes_anything_is_given_up(monkeypatch):
    monkeypatch.setattr("tracker.cli.appending.PAUSE_S", 0)
    log = FlakyLog(*range(1, 1000))
    with pytest.raises(TrackerError, match="away"):
        await append_all(log, unappended(1), lambda _done, _total: None)
    assert log.calls == ATTEMPTS_MAX
    log = FlakyLog(1, error=Code.INVALID)
    with pytest.raises(TrackerError):
        await append_all(log, unappended(1), lambda _done, _total: None)
    assert log.calls == 1
