"""Real processes for the system tests: `tracker up` on a free port, in a short directory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 60.0
STOP_S = 30.0
POLL_S = 0.05


def until(condition, deadline_s=20.0, what=""):
    """Return the first true answer of `condition`; fail when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, what or f"{condition} stayed {answer!r}"
        time.sleep(POLL_S)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Installation:
    """One data directory and the `tracker up` that runs on it."""

    data: Path
    port: int
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen | None = None
    answers: list[bytes] = field(default_factory=list)

    @property
    def environment(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TRACKER_")}
        return kept | {"TRACKER_DATA": str(self.data), "TRACKER_PORT": str(self.port)}

    @property
    def log(self):
        return self.data.with_name(self.data.name + ".log")

    @property
    def output(self):
        return self.data.with_name(self.data.name + ".out")

    def start(self):
        with self.log.open("ab") as log, self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tracker", "up", *self.arguments],
                env=self.environment,
                stdout=output,
                stderr=log,
                cwd=self.data.parent,
                start_new_session=True,
            )
        until(self._is_ready, START_S, "tracker up did not become ready")
        return self

    def _is_ready(self):
        assert self.process.poll() is None, f"tracker up ended:\n{self.log.read_text()[-3000:]}"
        return "tracker is ready" in self.output.read_text()

    def stop(self, number=signal.SIGTERM):
        if self.process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        status = self.process.wait(STOP_S)
        self.process = None
        return status

    def cli(self, *arguments, check=True):
        found = subprocess.run(
            [sys.executable, "-m", "tracker", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check:
            assert found.returncode == 0, found.stdout + found.stderr
        return found

    def cli_json(self, *arguments):
        return json.loads(self.cli(*arguments, "--json").stdout)

    def processes(self):
        # Exits with 1 while a process is away, and says which ones run all the same.
        return json.loads(self.cli("status", "--json", check=False).stdout)["processes"]

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path):
        status, raw = self.request("GET", path)
        assert status == 200, (status, raw)
        return json.loads(raw)

    def send(self, *events):
        """Send events; return the status, 0 when nothing answered."""
        try:
            return self.request("POST", "/v1/events", json.dumps(events).encode())[0]
        except (OSError, http.client.HTTPException):
            return 0

    def totals(self, metrics="views", site="shop", query="window=1h"):
        answer = self.get(f"/v1/report?site={site}&metrics={metrics}&{query}")
        return answer["totals"]


@pytest.fixture(scope="session")
def make_installation():
    """Make installations in short directories; whatever runs at the end is stopped."""
    parent = Path(tempfile.mkdtemp(prefix="tk"))
    made = []

    def make(*arguments):
        number = len(made)
        installation = Installation(parent / f"d{number}", free_port(), arguments)
        made.append(installation)
        return installation

    yield make
    for installation in made:
        if installation.process is not None:
            installation.stop()
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture(scope="module")
def up(make_installation):
    """Run one `tracker up` for the tests of a file."""
    installation = make_installation().start()
    yield installation
    if installation.process is not None:
        installation.stop()
