"""The logs that the contract is tested on, and the processes that die or read beside them.

A new back end joins by one class here and one line in `BACKENDS`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tracker.backends.append_socket import AppendClient, AppendServer
from tracker.backends.file_log import FileLogOptions, FileLogWriter, open_reader, open_writer
from tracker.backends.memory_log import MemoryLog, MemoryLogReader, MemoryLogWriter
from tracker.ports.log import LogReader, LogWriter, Unappended

DEADLINE_S = 20.0
"""For conditions that hold within milliseconds on an idle machine."""


class Backend(Protocol):
    """One kind of log, started for one test."""

    is_durable: bool  # outlives its processes, and is read by others

    async def start(self, directory: Path) -> None: ...

    async def writer(self) -> LogWriter: ...

    async def reader(self) -> LogReader: ...

    async def stop(self) -> None: ...


class Memory:
    is_durable = False

    async def start(self, directory: Path) -> None:
        del directory
        self._log = MemoryLog()

    async def writer(self) -> LogWriter:
        return MemoryLogWriter(self._log)

    async def reader(self) -> LogReader:
        return MemoryLogReader(self._log)

    async def stop(self) -> None:
        pass


class File:
    is_durable = True

    async def start(self, directory: Path) -> None:
        self._directory = directory / "log"
        self._owner: FileLogWriter | None = None
        self._owner = await open_writer(self._directory, SMALL)

    async def writer(self) -> LogWriter:
        assert self._owner is not None
        return self._owner

    async def reader(self) -> LogReader:
        return await open_reader(self._directory)

    async def stop(self) -> None:
        assert self._owner is not None
        await self._owner.close()


class Socket(File):
    async def start(self, directory: Path) -> None:
        await super().start(directory)
        self._path = directory / "run" / "append.sock"
        self._server = AppendServer(await super().writer(), self._path)
        await self._server.start()
        self._clients: list[AppendClient] = []

    async def writer(self) -> LogWriter:
        client = AppendClient(self._path)
        self._clients.append(client)
        return client

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        await self._server.close()
        await super().stop()


SMALL = FileLogOptions(segment_bytes=16_384, lock_wait_s=0.1)
"""Segments of some 100 test records, so that every test crosses from one to the next."""

BACKENDS: Mapping[str, Callable[[], Backend]] = {"memory": Memory, "file": File, "socket": Socket}


async def read_until(
    reader: LogReader,
    positions: dict[int, int],
    is_enough: Callable[[Mapping[int, Sequence[bytes]]], bool],
    records_max: int = 1000,
) -> dict[int, list[bytes]]:
    """Read on from `positions`, which are moved, until `is_enough` of what was read."""
    got: dict[int, list[bytes]] = {partition: [] for partition in positions}
    deadline = time.monotonic() + DEADLINE_S
    while not is_enough(got):
        assert time.monotonic() < deadline, f"too little: { {p: len(r) for p, r in got.items()} }"
        for batch in await reader.read(positions, records_max=records_max, wait_ms=50):
            offsets = [record.offset for record in batch.records]
            start = positions[batch.partition]
            assert offsets == list(range(start, start + len(offsets)))
            assert batch.next_position == start + len(offsets)
            positions[batch.partition] = batch.next_position
            got[batch.partition] += [record.raw for record in batch.records]
    return got


async def read_all(reader: LogReader) -> dict[int, list[bytes]]:
    """Read everything up to the ends as of now, from the start."""
    ends = reader.ends()
    positions = dict.fromkeys(range(len(ends)), 0)
    return await read_until(
        reader, positions, lambda got: all(len(got[p]) >= end for p, end in enumerate(ends))
    )


async def _append_and_note(writer: LogWriter, oracle: Path, worker: int) -> None:
    """Append for ever; what was acknowledged goes to a file that is synced on its own."""
    noted = os.open(oracle, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    number = 0
    while True:
        records = [
            Unappended((worker + index) % 32, f"{worker}-{number}-{index}".encode())
            for index in range(3)
        ]
        await writer.append(records)
        os.write(noted, b"".join(record.raw + b"\n" for record in records))
        os.fsync(noted)
        number += 1


async def _write(directory: Path, oracle: Path) -> None:
    writer = await open_writer(directory, FileLogOptions(segment_bytes=16_384))
    async with asyncio.TaskGroup() as workers:
        for worker in range(8):
            workers.create_task(_append_and_note(writer, oracle, worker))


async def _serve(directory: Path, path: Path) -> None:
    writer = await open_writer(directory, FileLogOptions(segment_bytes=16_384))
    await AppendServer(writer, path).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def _follow(directory: Path, count: Path) -> None:
    """Read along from before the log exists, and print what was read."""
    reader = await open_reader(directory, DEADLINE_S)
    wanted = int(str(count))
    positions = dict.fromkeys(range(32), 0)
    got = await read_until(
        reader, positions, lambda read: sum(map(len, read.values())) >= wanted, records_max=7
    )
    for partition, records in got.items():
        for raw in records:
            sys.stdout.write(f"{partition} {raw.decode()}\n")


_ROLES: Mapping[str, Callable[[Path, Path], Awaitable[None]]] = {
    "write": _write,
    "serve": _serve,
    "follow": _follow,
}


async def start_process(role: str, directory: Path, other: Path) -> asyncio.subprocess.Process:
    """Start this file as a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        role,
        str(directory),
        str(other),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


async def _main(role: str, directory: str, other: str) -> None:
    await _ROLES[role](Path(directory), Path(other))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
