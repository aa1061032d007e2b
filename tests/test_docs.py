"""The documents say what the program does: names by equality, the README's commands by running.

A list in a document is compared with the list in the code, in both directions, so that a new
setting, route, reason, metric or command fails here until it is written down, and a removed one
until it is taken out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tracker.backends.memory_log import MemoryLog, MemoryLogReader, MemoryLogWriter
from tracker.backends.memory_store import MemoryStore
from tracker.cli import app as command_line
from tracker.collect.definitions import DefinitionBook
from tracker.collect.refusals import Refusals
from tracker.model.clock import SystemClock
from tracker.model.keys import Keys
from tracker.model.metric import METRICS
from tracker.model.rejection import SENTENCES, Reason
from tracker.settings import SERVER, TOP_LEVEL, Settings, load_settings
from tracker.web.app import CollectParts, create_app
from tracker.web.query_app import QueryParts, create_query_app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "deploy" / "docs"
README = ROOT / "README.md"
REFERENCE = ROOT / "deploy" / "reference.toml"

ADR_HEADINGS = [
    "Context",
    "Decision",
    "Alternatives",
    "Drawbacks",
    "How we will know it was wrong",
]
ADR_LINES_MAX = 80
START_S = 60.0
STOP_S = 30.0
ANSWER_S = 20.0
COMMAND_S = 90.0
POLL_S = 0.05


def table(text, heading):
    """Return the rows of the first table whose header begins with `heading`, as lists of cells."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    else:
        pytest.fail(f"there is no table of {heading}")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


# --- settings -------------------------------------------------------------------------------


def test_the_reference_names_every_setting_with_its_default():
    stated = tomllib.loads(REFERENCE.read_text())
    flat = {key: value for key, value in stated.items() if key not in ("server", "site")}
    assert set(flat) == set(TOP_LEVEL)
    assert set(stated["server"]) == set(SERVER)
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    for name, value in (flat | stated["server"]).items():
        default = defaults.pop(name)
        assert value == (list(default) if isinstance(default, tuple) else type(value)(default)), (
            name
        )
    assert not defaults, "settings that the reference does not name"


def test_a_comment_stands_above_every_setting_of_the_reference():
    lines = REFERENCE.read_text().splitlines()
    seen_comment = False
    for line in lines:
        if not line.strip():
            seen_comment = False
        elif line.startswith("#"):
            seen_comment = True
        elif not line.startswith("["):
            assert seen_comment, f"nothing explains {line!r}"


def test_the_reference_can_be_loaded(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TRACKER_")]:
        monkeypatch.delenv(name)
    assert "shop" in load_settings({}, config=REFERENCE).sites


# --- routes ---------------------------------------------------------------------------------


def routes_of(app):
    """Return the (method, path) pairs of an application; HEAD comes with GET."""
    found = ((route.method, route.resource.canonical) for route in app.router.routes())
    return {pair for pair in found if pair[0] != "HEAD"}


def documented_routes(section):
    text = (DOCS / "http.md").read_text().split(section, 1)[1].split("\n## ", 1)[0]
    return {tuple(row[0].strip("`").split(" ", 1)) for row in table(text, "route")}


async def test_http_md_names_the_routes_of_the_write_side():
    parts = CollectParts(
        writer=MemoryLogWriter(MemoryLog()),
        keys=Keys(bytes(32)),
        clock=SystemClock(),
        book=DefinitionBook(),
        refusals=Refusals(),
    )
    assert documented_routes("## Write side") == routes_of(create_app(parts))


async def test_http_md_names_the_routes_of_the_read_side():
    parts = QueryParts(
        store=MemoryStore(), reader=MemoryLogReader(MemoryLog()), clock=SystemClock()
    )
    assert documented_routes("## Read side") == routes_of(create_query_app(parts))


# --- reasons, metrics, commands -------------------------------------------------------------


def test_rejections_md_says_of_every_reason_what_answers_say():
    rows = table((DOCS / "rejections.md").read_text(), "reason")
    assert rows == [[f"`{reason}`", SENTENCES[reason]] for reason in Reason]


def test_the_readme_lists_the_metrics_of_the_registry():
    rows = table(README.read_text(), "metric")
    assert rows == [[f"`{metric.name}`", metric.meaning] for metric in METRICS.values()]


def commands():
    return typer.main.get_command(command_line).commands


def test_the_readme_lists_the_commands_with_their_own_words():
    rows = table(README.read_text(), "command")
    own = [[f"`tracker {name}`", one.help.splitlines()[0]] for name, one in commands().items()]
    assert rows == own


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_of_every_command_explains_it(name):
    answer = CliRunner().invoke(command_line, [name, "--help"])
    assert answer.exit_code == 0, answer.output
    assert commands()[name].help.split()[0] in answer.output


# --- decision records and links -------------------------------------------------------------


def records():
    return sorted((DOCS / "adr").glob("*.md"))


@pytest.mark.parametrize("path", records(), ids=lambda path: path.stem)
def test_a_decision_record_has_the_five_headings_and_fits_a_page(path):
    lines = path.read_text().splitlines()
    assert [line[3:] for line in lines if line.startswith("## ")] == ADR_HEADINGS
    assert lines[0].startswith(f"# {path.stem[:4]}. ")
    assert len(lines) <= ADR_LINES_MAX


def test_decision_records_are_numbered_without_gaps_and_listed():
    numbers = [int(path.stem[:4]) for path in records()]
    assert numbers == list(range(1, len(numbers) + 1))
    listed = (DOCS / "architecture.md").read_text()
    assert [
        path.name for path in records() if f"* [{path.stem[:4]}](adr/{path.name})" in listed
    ] == [path.name for path in records()]


def markdown():
    return [README, *sorted((ROOT / "deploy").rglob("*.md"))]


@pytest.mark.parametrize("path", markdown(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_commands_that_status_md_names_exist():
    for row in table((DOCS / "status.md").read_text(), "what holds"):
        for path in re.findall(r"tests/[\w/]+\.py", row[1]):
            assert (ROOT / path).is_file(), path


# --- the README, run ------------------------------------------------------------------------


def blocks():
    """Return the README's shell blocks in order; each is one command."""
    return [
        block.strip()
        for block in re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Session:
    """A new user's terminal: an empty folder with the product's .venv in it."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TRACKER_")
        } | {
            "TRACKER_DATA": str(folder / "data"),
            "TRACKER_PORT": str(self.port),
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }
        (folder / ".venv").symlink_to(sys.prefix)

    def run(self, block):
        """Run a block as it stands, but for the port, and return what it printed."""
        done = subprocess.run(
            ["sh", "-c", block.replace("127.0.0.1:8400", f"127.0.0.1:{self.port}")],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def up(self):
        """Run what `make up` runs, and stop it as Ctrl-C does."""
        said = self.folder / "said"
        with said.open("wb") as out:
            process = subprocess.Popen(
                [".venv/bin/tracker", "up"],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready(process, said)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        assert process.returncode == 0, said.read_text()

    def _wait_until_ready(self, process, said):
        deadline = time.monotonic() + START_S
        while "tracker is ready" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(POLL_S)

    def until(self, block, is_right):
        """Run a block until its answer is right, as a user who asks again would."""
        deadline = time.monotonic() + ANSWER_S
        while not is_right(answer := self.run(block)):
            assert time.monotonic() < deadline, f"{block}\n{answer}"
        return answer


def is_first_report(answer):
    return json.loads(answer).get("totals") == {
        "views": 1,
        "orders": 1,
        "revenue": {"amount": "49.90", "currency": "USD"},
    }


def is_past_report(answer):
    rows = [
        [cell.strip() for cell in line.split("│")] for line in answer.splitlines() if "│" in line
    ]
    return [row[:5] for row in rows] == [
        ["spring", "1", "1", "1", "59.90 EUR"],
        ["winter", "1", "1", "0", "0.00 EUR"],
        ["total", "2", "2", "1", "59.90 EUR"],
    ]


def is_past_funnel(answer):
    reached = re.findall(r"^ \d+ +│ \S+ +│ +(\d+) ", answer, re.MULTILINE)
    return reached == ["2", "1", "1"]


# How the command begins → what its answer has to be.
ANSWERS = {
    "curl -s -o /dev/null": lambda answer: answer.strip() == "200",
    "curl -s http://127.0.0.1:8400/v1/events": (
        lambda answer: json.loads(answer) == {"accepted": 1, "rejected": []}
    ),
    "curl -s 'http://127.0.0.1:8400/v1/report": is_first_report,
    "cat > ": lambda answer: answer == "",
    ".venv/bin/tracker import": lambda answer: "4 are new, 0 were counted before." in answer,
    ".venv/bin/tracker report": is_past_report,
    ".venv/bin/tracker funnel": is_past_funnel,
    ".venv/bin/tracker status": lambda answer: ": ready" in answer,
    ".venv/bin/tracker reconcile": lambda answer: answer.startswith("Equal:"),
}
LIVE_PAGE = "http://127.0.0.1:8400/?site=shop"
REPEATED = ("curl -s 'http://127.0.0.1:8400/v1/report", ".venv/bin/tracker report")
"""Questions whose answer follows an event by a moment."""


def test_make_up_and_make_test_are_targets_and_up_runs_the_product():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test:", makefile, re.MULTILINE)
    assert re.search(r"^up:.*\n\t@exec \$\(BIN\)/tracker up", makefile, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the package curl")
def test_every_command_of_the_readme_works_in_one_session():
    assert blocks()[0] == "make up"
    assert f"<{LIVE_PAGE}>" in README.read_text()
    with tempfile.TemporaryDirectory(prefix="tr") as folder:
        session = Session(Path(folder))
        with session.up():
            for block in blocks()[1:]:
                starts = [start for start in ANSWERS if block.startswith(start)]
                assert len(starts) == 1, f"no answer is known for {block!r}"
                if starts[0] in REPEATED:
                    session.until(block, ANSWERS[starts[0]])
                else:
                    answer = session.run(block)
                    assert ANSWERS[starts[0]](answer), f"{block}\n{answer}"
                if starts[0] == ".venv/bin/tracker import":
                    assert "0 are new, 4 were counted before." in session.run(block)
            assert "<title>" in session.run(f"curl -sf '{LIVE_PAGE}'")
