"""The log on one machine: files in one directory, one writer, any number of readers.

`open_writer` for the process that owns the log, `open_reader` for everybody. Here stand the lock
and the queue; the files are written by `tracker.backends.file_writer`. Nothing here may answer
before a sync returned, and nothing may wait for company before it syncs: it syncs when idle, and
gathers only while a sync is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tracker.backends.file_reader import FileLogReader, open_reader
from tracker.backends.file_segment import APPEND_BYTES_MAX, ENTRY_BYTES, Disk
from tracker.backends.file_writer import SEGMENT_BYTES, SegmentWriter
from tracker.errors import Code, TrackerError
from tracker.model.clock import Clock, SystemClock
from tracker.model.keys import PARTITIONS
from tracker.ports.log import RECORD_BYTES_MAX, Unappended

__all__ = ["FileLogOptions", "FileLogReader", "FileLogWriter", "open_reader", "open_writer"]

GROUP_BYTES = 4 << 20
"""One sync at most, beyond a single large append: some 10 ms of CRC and writing."""

QUEUE_BYTES_MAX = 64 << 20
"""Waiting for a slow disk: some 140,000 events, more than a second at full speed."""

_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLogOptions:
    """What may differ between installations and tests."""

    segment_bytes: int = SEGMENT_BYTES
    queue_bytes_max: int = QUEUE_BYTES_MAX
    lock_wait_s: float = 5.0  # for a predecessor that is dying
    sync_deadline_s: float = 10.0  # after it the outcome of an append is unknown
    clock: Clock = field(default_factory=SystemClock)
    disk: Disk = field(default_factory=Disk)


async def open_writer(directory: Path, options: FileLogOptions | None = None) -> FileLogWriter:
    """Lock, recover or create the log in `directory`.

    Errors: TrackerError LOG_LOCKED while another process writes it; LOG_FULL, LOG_UNAVAILABLE;
    CONFIGURATION when another version made it.
    """
    options = options or FileLogOptions()
    lock = await _lock(directory, options.lock_wait_s)
    files = SegmentWriter(directory, options.disk, options.segment_bytes)
    pool = ThreadPoolExecutor(1, thread_name_prefix="file-log")
    try:
        await asyncio.get_running_loop().run_in_executor(pool, files.open, options.clock)
    except BaseException:
        # Whatever ends the opening, a lock that outlives it would keep out the next attempt.
        pool.submit(files.close).add_done_callback(lambda _: os.close(lock))
        pool.shutdown(wait=False)
        raise
    return FileLogWriter(directory, files, pool, lock, options)


def _open_lock(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TrackerError(
            Code.LOG_UNAVAILABLE,
            f"cannot write in {directory}: {error.strerror}; give this user the right to, or"
            " choose another directory",
        ) from error


async def _lock(directory: Path, wait_s: float) -> int:
    descriptor = _open_lock(directory)
    deadline = time.monotonic() + wait_s
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                _refuse(descriptor, directory)
            await asyncio.sleep(_LOCK_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse(descriptor: int, directory: Path) -> NoReturn:
    holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    raise TrackerError(
        Code.LOG_LOCKED,
        f"another process ({holder or 'unknown'}) already writes the log in {directory}:"
        " stop it, or choose another directory",
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Who holds it is a courtesy to whoever is refused; a full disk must not prevent the start.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return True


@dataclass(frozen=True, slots=True)
class _Waiting:
    records: Sequence[Unappended]
    size: int
    done: asyncio.Future[None]


class FileLogWriter:
    """A LogWriter of one directory. Made by `open_writer`."""

    def __init__(
        self,
        directory: Path,
        files: SegmentWriter,
        pool: ThreadPoolExecutor,
        lock: int,
        options: FileLogOptions,
    ) -> None:
        self._directory = directory
        self._files = files
        self._pool = pool
        self._lock = lock
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._group: list[_Waiting] = []  # in flight
        self._is_started = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._stuck = ""
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def identity(self) -> str:
        """Name the log."""
        return self._files.identity

    @property
    def truncated_bytes(self) -> int:
        """Count the bytes of torn tails that recovery cut off."""
        return self._files.truncated_bytes

    @property
    def damaged_places(self) -> int:
        """Count the places in the last segment where recovery found no sound frame."""
        return self._files.damaged_places

    @property
    def abandoned_segments(self) -> int:
        """Count the segments that were left because the disk failed."""
        return self._files.abandoned_segments

    async def append(self, records: Sequence[Unappended]) -> None:
        """Make `records` durable: all of them in one frame.

        Errors: TrackerError LOG_UNAVAILABLE or LOG_FULL, then some of them may be in the log;
        INVALID over APPEND_BYTES_MAX or RECORD_BYTES_MAX.
        """
        if not records:
            return
        size = _measure(records)
        if self._is_closed or self._stuck:
            raise TrackerError(Code.LOG_UNAVAILABLE, self._stuck or "the log is closed")
        if self._queue_bytes + size > self._options.queue_bytes_max:
            raise TrackerError(
                Code.LOG_UNAVAILABLE,
                f"{self._queue_bytes} bytes already wait for the disk of {self._directory}:"
                " try again shortly",
            )
        done = self._loop.create_future()
        self._queue.append(_Waiting(tuple(records), size, done))
        self._queue_bytes += size
        if not self._is_started:
            self._is_started = True
            self._idle.clear()
            # Whatever else is appended in this turn of the loop shares the sync.
            self._loop.call_soon(self._start)
        await done

    def unready(self) -> str | None:
        """Return why nothing can be appended now (one sentence), or None."""
        if self._is_closed:
            return "the log is closed"
        if self._stuck:
            return self._stuck
        lacking = self._files.full_bytes
        if lacking and self._options.disk.free_bytes(self._directory) < lacking:
            return f"the log is full: no space in {self._directory}"
        return None

    async def close(self) -> None:
        """Finish what is queued, as far as the disk answers in time, and release the lock."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.sync_deadline_s):
                await self._idle.wait()
                await self._loop.run_in_executor(self._pool, self._files.close)
                # Not after a time-out: a thread that still hangs in the disk may write later.
                os.close(self._lock)
        self._pool.shutdown(wait=False)

    def _start(self) -> None:
        queue, group, size = self._queue, self._group, 0
        while queue and (not group or size + queue[0].size <= GROUP_BYTES):
            waiting = queue.popleft()
            size += waiting.size
            group.append(waiting)
        self._queue_bytes -= size
        work = [waiting.records for waiting in group]
        self._watchdog = self._loop.call_later(self._options.sync_deadline_s, self._give_up)
        sync = self._loop.run_in_executor(self._pool, self._files.append, work)
        sync.add_done_callback(self._finish)

    def _finish(self, sync: asyncio.Future[None]) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._stuck = ""
        error = sync.exception()
        group, self._group = self._group, []
        for waiting in group:
            if waiting.done.done():
                continue
            if error is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(_copy(error))
        if self._queue:
            # After the waiters above have run, who often append again at once.
            self._loop.call_soon(self._start)
        else:
            self._is_started = False
            self._idle.set()

    def _give_up(self) -> None:
        self._stuck = (
            f"the disk of {self._directory} has not answered for"
            f" {self._options.sync_deadline_s:g} s: look at it"
        )
        for waiting in (*self._group, *self._queue):
            if not waiting.done.done():
                waiting.done.set_exception(TrackerError(Code.LOG_UNAVAILABLE, self._stuck))
        self._queue.clear()
        self._queue_bytes = 0


def _copy(error: BaseException) -> BaseException:
    """Give every waiter an exception of its own: one that is shared collects all tracebacks."""
    return TrackerError(error.code, error.message) if isinstance(error, TrackerError) else error


def _measure(records: Sequence[Unappended]) -> int:
    size = 0
    for record in records:
        length = len(record.raw)
        if length > RECORD_BYTES_MAX or not 0 <= record.partition < PARTITIONS:
            raise TrackerError(
                Code.INVALID,
                f"a record of {length} bytes for partition {record.partition} does not fit the"
                f" log: at most {RECORD_BYTES_MAX} bytes, partitions 0 to {PARTITIONS - 1}",
            )
        size += length + ENTRY_BYTES
    if size > APPEND_BYTES_MAX:
        raise TrackerError(
            Code.INVALID,
            f"one append of {size} bytes is too large: split it, {APPEND_BYTES_MAX} is the most",
        )
    return size
