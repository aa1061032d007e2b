"""Asking a running tracker over HTTP, and its supervisor over the control socket.

Only for the commands. Every failure becomes a TrackerError whose message says what to do; the
answer is returned as the server wrote it.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from tracker.errors import Code, TrackerError
from tracker.settings import load_settings

DEADLINE_S = 30.0
CONTROL_DEADLINE_S = 30.0
"""A consumer that is paused commits first, which takes some seconds under load."""

Parameters = Sequence[tuple[str, str]]


def default_url() -> str:
    """Return where a tracker started with these settings listens."""
    settings = load_settings({}).settings
    return f"http://127.0.0.1:{settings.port}"


@dataclass(frozen=True, slots=True)
class Server:
    """One running tracker."""

    url: str

    def get(self, path: str, parameters: Parameters = ()) -> Any:
        """Return the JSON answer of `path`.

        Errors: TrackerError with the server's own words, or saying how to start one.
        """
        status, raw = self._request(path, parameters)
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise TrackerError(
                Code.INVALID, f"{self.url} does not answer like a tracker (status {status})."
            ) from error
        if status >= http.client.BAD_REQUEST:
            raise _refused(status, answer)
        return answer

    def is_ready(self) -> bool:
        """Tell whether the server says that it can store events."""
        return self._request("/readyz", ())[0] == http.client.OK

    def _request(self, path: str, parameters: Parameters) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        query = "?" + urlencode(list(parameters)) if parameters else ""
        headers = {"Accept": "application/json"}
        if token := os.environ.get("TRACKER_READ_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        try:
            if not parts.hostname or parts.scheme not in ("http", "https"):
                raise ValueError("no http address")  # noqa: TRY301 - worded once, below
            connection = kind(parts.hostname, parts.port, timeout=DEADLINE_S)
            try:
                connection.request("GET", parts.path.rstrip("/") + path + query, headers=headers)
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()
        except ValueError as error:
            raise TrackerError(
                Code.INVALID, f"{self.url!r} is no address like http://127.0.0.1:8400 (--url)."
            ) from error
        except ConnectionRefusedError as error:
            raise not_running(self.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise TrackerError(
                Code.LOG_UNAVAILABLE, f"{self.url} does not answer ({error}): try again."
            ) from error


def not_running(where: str) -> TrackerError:
    """Return the error of a tracker that does not run."""
    return TrackerError(
        Code.LOG_UNAVAILABLE,
        f"No tracker runs at {where}: start it with `tracker up`, or name another one.",
    )


def _refused(status: int, answer: object) -> TrackerError:
    if isinstance(answer, Mapping):
        detail = str(answer.get("detail") or answer.get("title") or "")
        if detail:
            return TrackerError(Code.INVALID, detail)
    return TrackerError(Code.INVALID, f"The server refused with status {status}.")


class Control:
    """One connection to the supervisor; what it paused resumes when the connection closes."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONTROL_DEADLINE_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise not_running(str(path.parent.parent)) from error
        self._stream = self._socket.makefile("rwb")

    def ask(self, command: str) -> str:
        """Send one command and return its answer.

        Errors: TrackerError when the supervisor has gone.
        """
        try:
            self._stream.write(command.encode() + b"\n")
            self._stream.flush()
            answer = self._stream.readline().decode().strip()
        except OSError as error:
            raise not_running("the control socket") from error
        if not answer:
            raise not_running("the control socket")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()
