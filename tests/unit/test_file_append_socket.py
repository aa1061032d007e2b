"""The append socket: what it carries, refuses and survives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tracker.backends.append_socket import (
    IN_FLIGHT_MAX,
    PATH_BYTES_MAX,
    REQUEST_BYTES_MAX,
    AppendClient,
    AppendServer,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from tracker.backends.memory_log import MemoryLog, MemoryLogWriter
from tracker.errors import Code, TrackerError
from tracker.ports.log import RECORD_BYTES_MAX, Unappended

DEADLINE_S = 20.0


class GatedWriter(MemoryLogWriter):
    """Answers an append of N only when `gates[N]` is open, if there is such a gate."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.gates: dict[bytes, asyncio.Event] = {}
        self.seen = asyncio.Event()
        self.count = 0

    async def append(self, records: Sequence[Unappended]) -> None:
        self.count += 1
        self.seen.set()
        if records[0].raw in self.gates:
            await self.gates[records[0].raw].wait()
        await super().append(records)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "append.sock"


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def writer(log: MemoryLog) -> GatedWriter:
    return GatedWriter(log)


@pytest.fixture
async def server(writer: GatedWriter, path: Path) -> AsyncIterator[AppendServer]:
    started = AppendServer(writer, path)
    await started.start()
    yield started
    for gate in writer.gates.values():
        gate.set()
    await started.close()


@pytest.fixture
async def client(server: AppendServer, path: Path) -> AsyncIterator[AppendClient]:
    del server
    opened = AppendClient(path, deadline_s=DEADLINE_S)
    yield opened
    await opened.close()


def is_there(path: Path) -> bool:
    return path.exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def code_of(client: AppendClient, *records: Unappended) -> Code | None:
    try:
        await client.append(records)
    except TrackerError as error:
        return error.code
    return None


async def test_a_slow_append_does_not_hold_up_the_next(
    client: AppendClient, writer: GatedWriter, log: MemoryLog
) -> None:
    writer.gates[b"slow"] = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(client.append([Unappended(0, b"slow")]))
        await writer.seen.wait()
        await client.append([Unappended(0, b"fast")])
        assert not slow.done()
        writer.gates[b"slow"].set()
    assert [record.raw for record in log.partitions[0]] == [b"fast", b"slow"]


@pytest.mark.parametrize("code", [Code.LOG_FULL, Code.LOG_UNAVAILABLE, Code.INVALID])
async def test_an_error_of_the_log_arrives_as_it_was(
    client: AppendClient, log: MemoryLog, code: Code
) -> None:
    log.refusal = TrackerError(code, "no: “space” left")
    with pytest.raises(TrackerError) as refused:
        await client.append([Unappended(0, b"a")])
    assert (refused.value.code, refused.value.message) == (code, "no: “space” left")
    assert (client.unready() is not None) == (code != Code.INVALID)
    log.refusal = None
    await client.append([Unappended(0, b"a")])
    assert client.unready() is None


async def test_no_answer_in_time_is_unavailable(
    server: AppendServer, path: Path, writer: GatedWriter
) -> None:
    del server
    writer.gates[b"slow"] = asyncio.Event()
    client = AppendClient(path, deadline_s=0.05)
    assert await code_of(client, Unappended(0, b"slow")) == Code.LOG_UNAVAILABLE
    assert "0.05 s" in (client.unready() or "")
    await client.append([Unappended(0, b"fast")])
    await client.close()


async def test_nobody_listening_is_one_plain_sentence(path: Path) -> None:
    client = AppendClient(path)
    with pytest.raises(TrackerError, match="see that it runs") as refused:
        await client.append([Unappended(0, b"a")])
    assert refused.value.code == Code.LOG_UNAVAILABLE
    await client.close()


async def test_a_closing_server_answers_what_it_read_and_the_client_finds_its_successor(
    server: AppendServer, client: AppendClient, writer: GatedWriter, path: Path
) -> None:
    writer.gates[b"slow"] = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(client.append([Unappended(0, b"slow")]))
        await writer.seen.wait()
        closing = tasks.create_task(server.close())
        await asyncio.sleep(0)
        assert not closing.done()
        writer.gates[b"slow"].set()
        await slow
    assert not is_there(path)
    assert await code_of(client, Unappended(0, b"a")) == Code.LOG_UNAVAILABLE
    successor = AppendServer(writer, path)
    await successor.start()
    await client.append([Unappended(0, b"b")])
    await successor.close()


async def test_requests_over_the_limit_in_flight_wait_unread(
    client: AppendClient, writer: GatedWriter
) -> None:
    writer.gates[b"slow"] = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        appends = [
            tasks.create_task(client.append([Unappended(0, b"slow")]))
            for _ in range(IN_FLIGHT_MAX + 1)
        ]
        while writer.count < IN_FLIGHT_MAX:
            writer.seen.clear()
            await writer.seen.wait()
        for _ in range(100):
            # One more would be read in one of these turns: it has long been sent.
            await asyncio.sleep(0)
        assert writer.count == IN_FLIGHT_MAX
        assert not any(append.done() for append in appends)
        writer.gates[b"slow"].set()
    assert writer.count == IN_FLIGHT_MAX + 1


async def test_the_largest_request_is_carried_and_one_byte_more_is_refused(
    client: AppendClient, log: MemoryLog
) -> None:
    framing = len(pack_request(1, [Unappended(0, b"")])) - len(pack_request(1, []))
    rest = REQUEST_BYTES_MAX - len(pack_request(1, [])) + 4
    records = []
    while rest:
        size = min(RECORD_BYTES_MAX, rest - framing)
        records.append(Unappended(0, b"x" * size))
        rest -= size + framing
    await client.append(records)
    assert len(log.partitions[0]) == len(records)
    over = [*records[:-1], Unappended(0, records[-1].raw + b"x")]
    assert await code_of(client, *over) == Code.INVALID
    await client.append([Unappended(1, b"still connected")])


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        b"\x03\x00\x00\x00abc",
        pack_request(1, [Unappended(0, b"abc")])[:-1],
        b"\x0d\x00\x00\x00" + bytes(8) + b"\x01\x00\x00\x00x",
        b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
    ],
    ids=["giant", "short", "cut", "count", "http"],
)
async def test_what_is_no_request_ends_that_connection_and_no_other(
    client: AppendClient, path: Path, log: MemoryLog, raw: bytes
) -> None:
    stream, out = await asyncio.open_unix_connection(path)
    out.write(raw)
    out.write_eof()
    async with asyncio.timeout(DEADLINE_S):
        assert await stream.read() == b""
    out.close()
    await client.append([Unappended(0, b"a")])
    assert [record.raw for record in log.partitions[0]] == [b"a"]


async def test_a_server_that_talks_nonsense_is_no_answer(path: Path) -> None:
    path.parent.mkdir(mode=0o700)

    async def nonsense(stream: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        await stream.read(1)
        out.write(b"\x0b\x00\x00\x00" + bytes(8) + b"?\x00?")
        out.close()

    server = await asyncio.start_unix_server(nonsense, path)
    client = AppendClient(path)
    assert await code_of(client, Unappended(0, b"a")) == Code.LOG_UNAVAILABLE
    await client.close()
    server.close()


async def test_the_socket_and_its_directory_are_private(server: AppendServer, path: Path) -> None:
    del server
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700


async def test_a_socket_that_a_crash_left_behind_is_replaced(
    path: Path, writer: GatedWriter
) -> None:
    path.parent.mkdir(mode=0o700)
    left = await asyncio.start_unix_server(lambda _, __: None, path)
    left.close()
    assert is_there(path)
    server = AppendServer(writer, path)
    await server.start()
    client = AppendClient(path)
    await client.append([Unappended(0, b"a")])
    await client.close()
    await server.close()


async def test_a_socket_that_somebody_serves_is_left_alone(
    server: AppendServer, client: AppendClient, writer: GatedWriter, path: Path
) -> None:
    del server
    with pytest.raises(TrackerError) as refused:
        await AppendServer(writer, path).start()
    assert refused.value.code == Code.LOG_LOCKED
    await client.append([Unappended(0, b"a")])


async def test_a_path_that_cannot_be_a_private_socket_is_one_plain_sentence(
    tmp_path: Path, writer: GatedWriter
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    for name, words in {
        "file": "no socket",
        "open/append.sock": "chmod 700",
        "file/append.sock": "another data directory",
        "x" * 120: "shorter path",
    }.items():
        with pytest.raises(TrackerError, match=words) as refused:
            await AppendServer(writer, tmp_path / name).start()
        assert refused.value.code == Code.CONFIGURATION
    assert (tmp_path / "file").read_bytes() == b"mine"


async def test_the_longest_path_works_and_one_byte_more_is_refused(
    tmp_path: Path, writer: GatedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = AppendServer(writer, Path("run/" + "x" * (PATH_BYTES_MAX - 4)))
    await server.start()
    await server.close()
    with pytest.raises(TrackerError, match="shorter path"):
        await AppendServer(writer, Path("run/" + "x" * (PATH_BYTES_MAX - 3))).start()


def test_requests_and_answers_read_back_as_they_were_written() -> None:
    records = [Unappended(31, b""), Unappended(0, os.urandom(300))]
    assert unpack_request(pack_request(7, records)[4:]) == (7, records)
    assert unpack_answer(pack_answer(9, None)[4:]) == (9, None)
    number, error = unpack_answer(pack_answer(9, TrackerError(Code.LOG_FULL, "é" * 20_000))[4:])
    assert number == 9
    assert error is not None
    assert error.code == Code.LOG_FULL
    for raw in (b"", b"abc", pack_request(7, records)[4:-1], pack_request(7, records)[4:] + b"x"):
        with pytest.raises(ValueError, match=r"."):
            unpack_request(raw)
