"""Appending to the log from other processes: a Unix socket in front of the one that owns it.

    request   length, id, count, then per record: partition, length, bytes
    answer    length, id, then nothing when all is durable, else a code, a zero byte, a message

Ids are the client's, so that many requests may be in flight. An answer follows the sync, and
carries errors as they were. This is no way to read, and must never become a network protocol:
whoever may open the socket may write anything into the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tracker.errors import Code, TrackerError
from tracker.ports.log import RECORD_BYTES_MAX, LogWriter, Unappended

REQUEST_BYTES_MAX = 16 * RECORD_BYTES_MAX
"""What the file log takes in one append; both sides hold it in memory once."""

ANSWER_BYTES_MAX = 16_384
"""A code and one sentence with a path in it."""

IN_FLIGHT_MAX = 64
"""Requests of one connection at once; the next is not read before one was answered."""

PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107
"""The system's own limit on the name of a Unix socket, without its final zero."""

_LENGTH = struct.Struct("<I")
_REQUEST = struct.Struct("<QI")
_RECORD = struct.Struct("<II")
_ANSWER = struct.Struct("<Q")
_SAID_FOR_S = 1.0
"""A failure older than this says nothing about now, and somebody has to try."""


def pack_request(number: int, records: Sequence[Unappended]) -> bytes:
    """Return the bytes of one request.

    Errors: TrackerError INVALID over REQUEST_BYTES_MAX.
    """
    parts = [b"", _REQUEST.pack(number, len(records))]
    for record in records:
        parts.append(_RECORD.pack(record.partition, len(record.raw)))
        parts.append(record.raw)
    length = sum(map(len, parts))
    if length > REQUEST_BYTES_MAX:
        raise TrackerError(
            Code.INVALID,
            f"one append of {length} bytes is too large: split it, {REQUEST_BYTES_MAX} is the most",
        )
    parts[0] = _LENGTH.pack(length)
    return b"".join(parts)


def unpack_request(raw: bytes) -> tuple[int, list[Unappended]]:
    """Return id and records of one request.

    Errors: ValueError when it is none.
    """
    try:
        number, count = _REQUEST.unpack_from(raw)
        at, records = _REQUEST.size, []
        for _ in range(count):
            partition, length = _RECORD.unpack_from(raw, at)
            start = at + _RECORD.size
            at = start + length
            records.append(Unappended(partition, raw[start:at]))
    except struct.error as error:
        raise ValueError(str(error)) from error
    if at != len(raw):
        raise ValueError(f"{count} records should take {at} bytes, not {len(raw)}")
    return number, records


def pack_answer(number: int, error: TrackerError | None) -> bytes:
    """Return the bytes of one answer."""
    body = b""
    if error is not None:
        body = error.code.encode() + b"\0" + error.message.encode(errors="replace")
        body = body[: ANSWER_BYTES_MAX - _ANSWER.size]
    return _LENGTH.pack(_ANSWER.size + len(body)) + _ANSWER.pack(number) + body


def unpack_answer(raw: bytes) -> tuple[int, TrackerError | None]:
    """Return id and error of one answer.

    Errors: ValueError when it is none.
    """
    if len(raw) < _ANSWER.size:
        raise ValueError(f"an answer of {len(raw)} bytes")
    number: int = _ANSWER.unpack_from(raw)[0]
    code, _, message = raw[_ANSWER.size :].partition(b"\0")
    if not code:
        return number, None
    return number, TrackerError(Code(code.decode()), message.decode(errors="replace"))


async def _read_frame(stream: asyncio.StreamReader, length_max: int) -> bytes | None:
    """Return the next frame without its length, None when the other side has gone or is mad."""
    try:
        length: int = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))[0]
        return await stream.readexactly(length) if length <= length_max else None
    except (OSError, asyncio.IncompleteReadError):
        return None


class AppendServer:
    """Serves one LogWriter on a Unix socket. The process that owns the log runs it."""

    def __init__(self, writer: LogWriter, path: Path) -> None:
        self._writer = writer
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._inode = 0

    async def start(self) -> None:
        """Listen, in place of a predecessor that died.

        Errors: TrackerError CONFIGURATION when the path cannot be a private socket; LOG_LOCKED
        when another process listens there.
        """
        _check_path(self._path)
        _remove_stale(self._path)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path))
            self._path.chmod(0o600)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            raise TrackerError(
                Code.CONFIGURATION,
                f"cannot listen on {self._path}: {error.strerror}; choose another data directory",
            ) from error

    async def close(self, drain_s: float = 10.0) -> None:
        """Take no more requests, answer those in flight, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            # Only our own: a successor may already listen under the same name.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=drain_s)
        self._server = None

    async def _serve(self, stream: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        if connection is not None:
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        answering: set[asyncio.Task[None]] = set()
        try:
            while (frame := await _read_frame(stream, REQUEST_BYTES_MAX)) is not None:
                await room.acquire()
                try:
                    number, records = unpack_request(frame)
                except ValueError:
                    break
                task = asyncio.create_task(self._answer(out, number, records))
                answering.add(task)
                task.add_done_callback(answering.discard)
                task.add_done_callback(lambda _: room.release())
        except asyncio.CancelledError:
            # Only `close` cancels; what was read is still answered, and the task ends normally.
            pass
        finally:
            if answering:
                await asyncio.wait(answering)
            out.close()

    async def _answer(
        self, out: asyncio.StreamWriter, number: int, records: Sequence[Unappended]
    ) -> None:
        error = None
        try:
            await self._writer.append(records)
        except TrackerError as failed:
            error = failed
        with contextlib.suppress(OSError):
            out.write(pack_answer(number, error))
            await out.drain()


def _check_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > PATH_BYTES_MAX:
        raise TrackerError(
            Code.CONFIGURATION,
            f"the path of the socket {path} has {length} bytes, and the system allows"
            f" {PATH_BYTES_MAX}: choose a data directory with a shorter path",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.parent.stat().st_mode
    except OSError as error:
        raise TrackerError(
            Code.CONFIGURATION,
            f"cannot create {path.parent}: {error.strerror}; choose another data directory",
        ) from error
    if mode & 0o077:
        raise TrackerError(
            Code.CONFIGURATION,
            f"{path.parent} is open to other users, who could write into the log: chmod 700 it",
        )


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise TrackerError(
                Code.CONFIGURATION, f"{path} is no socket: move it away, this name is needed"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise TrackerError(
        Code.LOG_LOCKED, f"another process already serves {path}: stop it, or choose another"
    )


class _Connection:
    """One connection of a client, and what it waits for there."""

    def __init__(self, stream: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        self._stream = stream
        self._out = out
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._is_lost = False
        self._listening = asyncio.create_task(self._listen())

    def is_usable(self) -> bool:
        """Tell whether a request may be sent here."""
        return not self._is_lost and not self._out.is_closing()

    async def ask(self, number: int, request: bytes) -> None:
        """Send `request` and wait for its answer.

        Errors: TrackerError as answered; ConnectionError when the other side has gone.
        """
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._out.write(request)
            # A lost connection is told by the listener, to everybody who waits.
            with contextlib.suppress(OSError):
                await self._out.drain()
            await answer
        finally:
            del self._waiting[number]

    async def close(self, deadline_s: float) -> None:
        """Wait for the answers in flight, and hang up."""
        if self._waiting:
            await asyncio.wait(list(self._waiting.values()), timeout=deadline_s)
        self._listening.cancel()
        await asyncio.wait([self._listening], timeout=deadline_s)

    async def _listen(self) -> None:
        try:
            while (frame := await _read_frame(self._stream, ANSWER_BYTES_MAX)) is not None:
                number, error = unpack_answer(frame)
                waiting = self._waiting.get(number)
                if waiting is None or waiting.done():
                    continue
                if error is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(error)
        except ValueError:
            # No collector of ours answers like this: the same as no answer.
            pass
        finally:
            self._is_lost = True
            self._out.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError())


class AppendClient:
    """A LogWriter whose log another process of this machine owns.

    Connects with the first append, and again with the next one after the connection was lost.
    """

    def __init__(self, path: Path, deadline_s: float = 10.0) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._number = 0
        self._failure = ""
        self._failed_at = 0.0
        self._is_closed = False

    async def append(self, records: Sequence[Unappended]) -> None:
        """Make `records` durable in the log of the other process.

        Errors: TrackerError as the log raised it; LOG_UNAVAILABLE when the process does not
        answer in time, then some of the records may be in the log; INVALID over the limits.
        """
        if not records:
            return
        if self._is_closed:
            raise TrackerError(Code.LOG_UNAVAILABLE, "the connection to the log is closed")
        self._number += 1
        request = pack_request(self._number, records)
        try:
            await self._ask(self._number, request)
        except TrackerError as error:
            if error.retryable:
                self._failure, self._failed_at = error.message, time.monotonic()
            raise
        self._failure = ""

    def unready(self) -> str | None:
        """Return the last failure while it is fresh, or None."""
        if self._is_closed:
            return "the connection to the log is closed"
        if self._failure and time.monotonic() - self._failed_at < _SAID_FOR_S:
            return self._failure
        return None

    async def close(self) -> None:
        """Wait for the answers in flight, and hang up."""
        self._is_closed = True
        if self._connection is not None:
            await self._connection.close(self._deadline_s)

    async def _ask(self, number: int, request: bytes) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self._connect()
                await connection.ask(number, request)
        except TimeoutError:
            raise self._unavailable(f"gave no answer within {self._deadline_s:g} s") from None
        except OSError as error:
            raise self._unavailable("cannot be reached") from error

    async def _connect(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or not self._connection.is_usable():
                stream, out = await asyncio.open_unix_connection(str(self._path))
                self._connection = _Connection(stream, out)
            return self._connection

    def _unavailable(self, what: str) -> TrackerError:
        return TrackerError(
            Code.LOG_UNAVAILABLE,
            f"the collector, which owns the log, {what} at {self._path}: see that it runs",
        )
