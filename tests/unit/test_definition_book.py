"""Definitions at the collector: the log is the truth, the file only saves reading it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tracker.backends.memory_log import MemoryLog, MemoryLogReader, MemoryLogWriter
from tracker.codec import encode
from tracker.collect.definitions import DefinitionBook, DefinitionKeeper
from tracker.model.clock import SystemClock
from tracker.model.record import DefinitionRecord, Layer, MarkerRecord
from tracker.ports.log import Unappended

CLOCK = SystemClock()
FILE: dict[str, object] = {
    "shop": {
        "currency": "EUR",
        "secret": "env:SECRET",
        "link": {"spring": {"target": "https://shop.example/"}},
    }
}
MADE: dict[str, object] = {
    "rees": {"currency": "USD"},
    "shop": {"currency": "JPY", "gpc": "ignore"},
}


def definition(layer: Layer, tables: dict[str, object]) -> Unappended:
    record = DefinitionRecord(layer=layer, definitions=tables, received_at_ms=1)
    return Unappended(0, encode(record))


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


async def opened(path: Path, log: MemoryLog, **environ: str) -> DefinitionBook:
    book = DefinitionBook(path, environ)
    await book.catch_up(MemoryLogReader(log))
    return book


async def test_the_files_layer_is_appended_once_and_only_when_it_changes(
    tmp_path: Path, log: MemoryLog
) -> None:
    path, writer = tmp_path / "d.json", MemoryLogWriter(log)
    book = await opened(path, log, SECRET="s3cret")  # noqa: S106
    assert await book.set_file_layer(FILE, writer, CLOCK)
    assert not await book.set_file_layer(FILE, writer, CLOCK)
    assert book.sites["shop"].currency == "EUR"
    assert book.known["shop"].secret == "s3cret"  # noqa: S105
    assert [known.site.key for known, _ in book.links["spring"]] == ["shop"]
    again = await opened(path, log)
    assert not await again.set_file_layer(FILE, writer, CLOCK)
    assert await again.set_file_layer({"other": {}}, writer, CLOCK)
    assert set(again.sites) == {"other"}
    assert MemoryLogReader(log).ends()[0] == 2


async def test_a_site_made_by_an_import_is_known_as_soon_as_it_is_durable(
    tmp_path: Path, log: MemoryLog
) -> None:
    book = await opened(tmp_path / "d.json", log)
    known = book.known
    keeper = DefinitionKeeper(MemoryLogWriter(log), book)
    await keeper.append([definition(Layer.API, MADE), Unappended(3, b"{}")])
    assert set(known) == {"rees", "shop"}
    assert set(DefinitionBook(tmp_path / "d.json").sites) == {"rees", "shop"}


async def test_the_file_wins_on_equal_names(tmp_path: Path, log: MemoryLog) -> None:
    book = await opened(tmp_path / "d.json", log)
    book.take(definition(Layer.API, MADE).raw)
    await book.set_file_layer(FILE, MemoryLogWriter(log), CLOCK)
    assert (book.sites["shop"].currency, book.sites["shop"].gpc) == ("EUR", "ignore")
    assert book.sites["rees"].currency == "USD"


async def test_what_the_file_missed_is_read_from_the_log(tmp_path: Path, log: MemoryLog) -> None:
    path, writer = tmp_path / "d.json", MemoryLogWriter(log)
    await (await opened(path, log)).set_file_layer(FILE, writer, CLOCK)
    marker = Unappended(0, encode(MarkerRecord(received_at_ms=1, rejected={"": {"x": 1}})))
    unreadable = Unappended(0, b'{"v":1,"kind":"definition",nonsense')
    await writer.append([marker, definition(Layer.API, MADE), unreadable, marker])
    assert set((await opened(path, log)).sites) == {"shop", "rees"}
    assert set((await opened(tmp_path / "none.json", log)).sites) == {"shop", "rees"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"layers":{"api":5}}', b"\xff"])
async def test_a_damaged_file_costs_nothing_but_time(
    tmp_path: Path, log: MemoryLog, content: bytes
) -> None:
    await MemoryLogWriter(log).append([definition(Layer.FILE, FILE)])
    path = tmp_path / "d.json"
    path.write_bytes(content)
    assert set((await opened(path, log)).sites) == {"shop"}


async def test_another_log_starts_from_nothing(tmp_path: Path, log: MemoryLog) -> None:
    path = tmp_path / "d.json"
    await (await opened(path, log)).set_file_layer(FILE, MemoryLogWriter(log), CLOCK)
    assert (await opened(path, MemoryLog("another"))).sites == {}


async def test_the_file_is_readable_by_us_alone_because_secrets_may_stand_in_it(
    tmp_path: Path, log: MemoryLog
) -> None:
    path = tmp_path / "d.json"
    await (await opened(path, log)).set_file_layer(FILE, MemoryLogWriter(log), CLOCK)
    assert path.stat().st_mode & 0o777 == 0o600
    assert orjson.loads(path.read_bytes())["layers"]["file"] == FILE


async def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, log: MemoryLog) -> None:
    book = await opened(tmp_path / "missing" / "d.json", log)
    assert await book.set_file_layer(FILE, MemoryLogWriter(log), CLOCK)
    assert set(book.sites) == {"shop"}
