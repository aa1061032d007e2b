"""What a supervisor keeps alive: one program each, started, watched, paused and stopped.

A `Unit` is a program; a `Keeper` starts it again when it ends, with growing pauses. The order of
things and what to tell the user are `tracker.up`'s business. Every role binds itself to its
supervisor in its first moments (`bind_to_supervisor`), so that nothing outlives a kill -9.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from tracker.errors import TrackerError

BACK_OFF_FIRST_S = 0.2
BACK_OFF_MAX_S = 10.0
"""A program that cannot live is tried six times a minute: often enough to come back soon after
its cause went away, rarely enough to leave the machine alone."""
HEALTHY_AFTER_S = 60.0
EARLY_DEATH_S = 5.0
EARLY_DEATHS_MAX = 5
LAST_WORDS_BYTES = 2_000
_CHUNK_BYTES = 65_536
SUPERVISOR_VARIABLE = "TRACKER_SUPERVISOR"
_PR_SET_PDEATHSIG = 1

logger = structlog.get_logger("tracker.up")


class Unit(Protocol):
    """One program."""

    @property
    def name(self) -> str:
        """Name the program."""
        ...

    @property
    def pid(self) -> int | None:
        """Return its process id, None while it does not run."""
        ...

    async def start(self) -> None:
        """Start it.

        Errors: TrackerError when that is impossible now.
        """
        ...

    async def ended(self) -> str:
        """Wait for its end and say how it ended."""
        ...

    async def stop(self, within_s: float) -> None:
        """Stop it politely, and for good when `within_s` have passed."""
        ...

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        ...


def describe_exit(status: int) -> str:
    """Return an exit status as people say it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class RoleUnit:
    """One of our own roles as a child process."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._command = [sys.executable, "-m", *arguments]
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._words = b""

    @property
    def name(self) -> str:
        """Name the role."""
        return self._name

    @property
    def pid(self) -> int | None:
        """Return its process id, None while it does not run."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start(self) -> None:
        """Start the role; its stdin is the pipe whose end tells it that we are gone."""
        self._words = b""
        # A session of its own: Ctrl-C is for us, who stop the roles in order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment | {SUPERVISOR_VARIABLE: str(os.getpid())},
            start_new_session=True,
        )

    async def ended(self) -> str:
        """Pass its stderr on until it ends, and say how it ended."""
        process = self._process
        if process is None or process.stderr is None:
            return "not started"
        while chunk := await process.stderr.read(_CHUNK_BYTES):
            self._words = (self._words + chunk)[-LAST_WORDS_BYTES:]
            with contextlib.suppress(OSError):
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
        return describe_exit(await process.wait())

    async def stop(self, within_s: float) -> None:
        """Ask it to stop, and kill it when `within_s` have passed."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            logger.warning("killed", role=self._name, waited_s=within_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        return self._words.decode("utf-8", "replace").strip()


class Keeper:
    """Keeps one unit running: again after it ended, later and later while it keeps ending.

    `give_up` is called with a sentence when the unit has died at once EARLY_DEATHS_MAX times
    before `is_proven` was set; afterwards it is tried for ever.
    """

    def __init__(self, unit: Unit, give_up: Callable[[str], None]) -> None:
        self.unit = unit
        self.restarts = 0
        self.is_proven = False
        self.has_started = asyncio.Event()
        self._give_up = give_up
        self._starting: asyncio.Future[None] | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        # A pause that comes while the unit is starting must wait until it can be stopped.
        self._changing = asyncio.Lock()

    async def run(self) -> None:
        """Keep the unit running until cancelled."""
        early = 0
        pause_s = BACK_OFF_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began = loop.time()
            reason = await self._live_once()
            if not self._wanted.is_set() or reason is None:
                continue
            lived_s = loop.time() - began
            early = early + 1 if lived_s < EARLY_DEATH_S else 0
            if lived_s >= HEALTHY_AFTER_S:
                pause_s = BACK_OFF_FIRST_S
            self._report(reason, lived_s, pause_s, early)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACK_OFF_MAX_S)
            self.restarts += 1

    async def pause(self, within_s: float) -> None:
        """Stop the unit and leave it stopped until `resume`."""
        self._wanted.clear()
        if self._starting:
            self._starting.cancel()  # loading a large store may take a minute
        async with self._changing:
            await self.unit.stop(within_s)

    def resume(self) -> None:
        """Let the unit run again."""
        self._wanted.set()

    async def _live_once(self) -> str | None:
        """Start the unit and wait for its end; None when it was no longer wanted."""
        async with self._changing:
            if not self._wanted.is_set():
                return None
            self._starting = asyncio.ensure_future(self.unit.start())
            try:
                await self._starting
            except asyncio.CancelledError:
                if self._wanted.is_set():
                    raise
                return None
            except TrackerError as error:
                if not error.retryable and not self.is_proven:
                    self._give_up(error.message)
                return error.message
            except OSError as error:
                return str(error)
        logger.info("started", role=self.unit.name, pid=self.unit.pid)
        self.has_started.set()
        return await self.unit.ended()

    def _report(self, reason: str, lived_s: float, pause_s: float, early: int) -> None:
        fields = {
            "role": self.unit.name,
            "reason": reason,
            "lived_s": round(lived_s, 1),
            "again_in_s": pause_s,
        }
        words = self.unit.last_words() if early > 1 else ""
        logger.warning("ended", **fields, **({"last_words": words} if words else {}))
        if early >= EARLY_DEATHS_MAX and not self.is_proven:
            last = words.splitlines()[-1] if words else reason
            self._give_up(f"The {self.unit.name} process does not stay alive: {last}")


def bind_to_supervisor() -> None:
    """End with the supervisor that started this process, however it ends.

    The pipe on stdin works everywhere and needs a thread; on Linux the kernel does it as well,
    even when this process is stuck. Without a supervisor (a role that somebody started) nothing
    happens.
    """
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if not supervisor:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(supervisor):
        sys.exit("the supervisor is gone")
    threading.Thread(target=_end_with_pipe, name="supervisor", daemon=True).start()


def _end_with_pipe() -> None:
    while os.read(0, 1_024):
        pass
    # A kill -9 for us too: stopping in order needs the other roles, which end as well.
    os._exit(1)
