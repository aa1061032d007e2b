"""Where one installation keeps its things, its secret, and the lock of whoever runs it.

The supervisor, the roles and the commands that work on a stopped installation use it. It knows
paths and permissions, and starts nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tracker.errors import Code, TrackerError
from tracker.model.keys import SECRET_BYTES, Keys

SOCKET_PATH_MAX = 90
"""A Unix socket's path may have 104 bytes on macOS and 108 on Linux; the longest name we put into
the run directory has 12 (`control.sock`), and some room is left."""

LOCK_WAIT_S = 5.0
"""A predecessor that was told to stop gets this long to let go of the data directory."""

_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Places:
    """Where an installation keeps its things."""

    data: Path

    @property
    def lock(self) -> Path:
        """Return the file whose lock says that somebody runs this installation."""
        return self.data / "lock"

    @property
    def secret(self) -> Path:
        """Return the file of the installation's 32 secret bytes."""
        return self.data / "secret"

    @property
    def definitions(self) -> Path:
        """Return the collector's file of definitions."""
        return self.data / "definitions.json"

    @property
    def redis(self) -> Path:
        """Return the private Redis' directory."""
        return self.data / "redis"

    @property
    def run(self) -> Path:
        """Return the directory of the sockets.

        It lies in the data directory, or under the system's temporary directory when that path
        is too long for a Unix socket.
        """
        inside = self.data.absolute() / "run"
        if len(os.fsencode(inside)) <= SOCKET_PATH_MAX:
            return inside
        name = hashlib.sha256(os.fsencode(self.data.absolute())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tracker-{os.getuid()}-{name}"

    def socket(self, name: str) -> Path:
        """Return the path of one socket: append, query, control or redis."""
        return self.run / f"{name}.sock"

    def prepare(self) -> None:
        """Make the data and run directories, for this user alone.

        Errors: TrackerError PREREQUISITE when that is not possible, or a run directory under the
        temporary directory is somebody else's.
        """
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.run.lstat()
            if self.run.is_symlink() or found.st_uid != os.getuid():
                raise TrackerError(
                    Code.PREREQUISITE,
                    f"{self.run} belongs to somebody else: remove it, or choose another --data.",
                )
            self.run.chmod(0o700)
        except OSError as error:
            raise TrackerError(
                Code.PREREQUISITE,
                f"The data directory {self.data} cannot be used: {error.strerror or error}. "
                "Choose another one with --data.",
            ) from error


def open_secret(path: Path) -> Keys:
    """Return the installation's keys; the secret is made at the first start, readable by us alone.

    Errors: TrackerError CONFIGURATION when the file holds no secret of ours.
    """
    if not path.exists():
        _make_secret(path)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise TrackerError(
            Code.CONFIGURATION,
            f"{path} holds {len(secret)} bytes instead of {SECRET_BYTES}: restore it from a "
            "backup. Without it, stored visitors and click ids cannot be recognised.",
        )
    return Keys(secret)


def _make_secret(path: Path) -> None:
    # A name of our own and a link: whoever comes first wins, and no reader sees half a secret.
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, secrets.token_bytes(SECRET_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(mine, path)
    except FileExistsError:
        pass
    finally:
        mine.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Lock:
    """The right to run an installation: held by one process, let go when that process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def take(self, wait_s: float = LOCK_WAIT_S) -> None:
        """Take the lock, waiting for a predecessor that is about to stop. Blocks.

        Errors: TrackerError LOG_LOCKED naming the process that holds it.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_LOCK_POLL_S)
                    continue
                holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(handle)
                raise TrackerError(
                    Code.LOG_LOCKED,
                    f"Another tracker (process {holder}) already runs on "
                    f"{self._path.parent.absolute()}: stop that one first, or choose another "
                    "directory with --data.",
                ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Let go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
