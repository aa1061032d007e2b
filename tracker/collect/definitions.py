"""The definitions in force at the collector: two layers, kept in the log and beside it.

The log is the truth: every change is one DefinitionRecord in partition 0. `definitions.json`
spares reading the whole log at each start: it holds both layers and the position up to which
partition 0 was looked at. Losing it costs a longer start and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from tracker.codec import UnreadableError, decode, encode, is_kind
from tracker.collect.sender import Known, know
from tracker.errors import Code, TrackerError
from tracker.model.clock import Clock
from tracker.model.definition import Link, Site, merge_layers, parse_sites
from tracker.model.record import DefinitionRecord, Kind, Layer
from tracker.ports.log import LogReader, LogWriter, Unappended

DEFINITION_PARTITION: Final = 0
_READ_RECORDS: Final = 10_000
_APPEND_DEADLINE_S: Final = 10.0
_READ_DEADLINE_S: Final = 30.0
"""Of one read of at most _READ_RECORDS records: far more than any disk needs."""

_log = structlog.get_logger("tracker.collect")


class DefinitionBook:
    """Both layers of definitions, and the sites and links that they make together.

    `known` is one mapping for the life of the book; its content changes in place.
    """

    def __init__(self, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._environ = environ or {}
        self._layers: dict[Layer, dict[str, object]] = {Layer.API: {}, Layer.FILE: {}}
        self._log_id = ""
        self._position = 0
        self.known: dict[str, Known] = {}
        self.links: dict[str, list[tuple[Known, Link]]] = {}
        self.problems: list[str] = []
        if path is not None:
            self._load(path)
        self._derive()

    @property
    def layers(self) -> Mapping[Layer, dict[str, object]]:
        """Return the `[site]` tables of each layer."""
        return self._layers

    @property
    def sites(self) -> dict[str, Site]:
        """Return the sites in force."""
        return {key: known.site for key, known in self.known.items()}

    def _load(self, path: Path) -> None:
        try:
            held: dict[str, Any] = orjson.loads(path.read_bytes())
            layers = {layer: dict(held["layers"][layer]) for layer in Layer}
            self._log_id, self._position = str(held["log_id"]), int(held["position"])
            self._layers = layers
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            # It only saves time: everything in it stands in the log.
            _log.warning("definitions_unreadable", path=str(path), reason=str(error))

    def _derive(self) -> None:
        merged = merge_layers(self._layers[Layer.API], self._layers[Layer.FILE])
        sites, self.problems = parse_sites(merged)
        known = {key: know(site, self._environ) for key, site in sites.items()}
        links: dict[str, list[tuple[Known, Link]]] = {}
        for item in known.values():
            for link in item.site.links:
                links.setdefault(link.name, []).append((item, link))
        self.known.clear()
        self.known.update(known)
        self.links = links

    def take(self, raw: bytes) -> bool:
        """Put a definition record of the log in force; tell whether it was one."""
        if not is_kind(raw, Kind.DEFINITION):
            return False
        try:
            record = decode(raw)
        except UnreadableError:
            return False
        if not isinstance(record, DefinitionRecord):
            return False
        self._layers[record.layer] = dict(record.definitions)
        self._derive()
        return True

    async def catch_up(self, reader: LogReader) -> None:
        """Read what the log says beyond the position that the file knows.

        Errors: TrackerError LOG_UNAVAILABLE.
        """
        end = reader.ends()[DEFINITION_PARTITION]
        if self._log_id != reader.identity or self._position > end:
            self._log_id, self._position = reader.identity, 0
            self._layers = {Layer.API: {}, Layer.FILE: {}}
            self._derive()
        while self._position < end:
            async with _within(_READ_DEADLINE_S):
                batches = await reader.read(
                    {DEFINITION_PARTITION: self._position}, records_max=_READ_RECORDS, wait_ms=1000
                )
            for batch in batches:
                for record in batch.records:
                    self.take(record.raw)
                self._position = batch.next_position
        self.save()

    async def set_file_layer(
        self, tables: Mapping[str, object], writer: LogWriter, clock: Clock
    ) -> bool:
        """Append the file's layer when it differs from the one in force; tell whether it did.

        Errors: TrackerError LOG_UNAVAILABLE or LOG_FULL.
        """
        plain: dict[str, object] = orjson.loads(orjson.dumps(tables))
        if plain == self._layers[Layer.FILE]:
            return False
        record = DefinitionRecord(
            layer=Layer.FILE, definitions=plain, received_at_ms=clock.now_ms()
        )
        raw = encode(record)
        async with _within(_APPEND_DEADLINE_S):
            await writer.append([Unappended(DEFINITION_PARTITION, raw)])
        self.take(raw)
        self.save()
        return True

    def save(self) -> None:
        """Write the file anew, atomically; a failure is said and costs a longer start."""
        if self._path is None:
            return
        held = {
            "log_id": self._log_id,
            "position": self._position,
            "layers": {str(layer): tables for layer, tables in self._layers.items()},
        }
        beside = self._path.with_name(self._path.name + ".new")
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps(held, option=orjson.OPT_INDENT_2))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            _log.warning("definitions_not_saved", path=str(self._path), reason=str(error))


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TrackerError(
            Code.LOG_UNAVAILABLE,
            f"The log did not answer within {seconds:.0f} s, so the definitions are not known.",
        ) from error


class DefinitionKeeper:
    """A LogWriter that puts definitions in force as they pass into the log.

    The append socket writes through it, so that a site that an import creates is known to HTTP
    intake as soon as the import is told that it exists.
    """

    def __init__(self, writer: LogWriter, book: DefinitionBook) -> None:
        self._writer = writer
        self._book = book

    async def append(self, records: Sequence[Unappended]) -> None:
        """Append, then look at what was appended.

        Errors: those of the writer.
        """
        await self._writer.append(records)
        changed = [
            self._book.take(record.raw)
            for record in records
            if record.partition == DEFINITION_PARTITION
        ]
        if any(changed):
            self._book.save()

    def unready(self) -> str | None:
        """Return why nothing can be appended now, or None."""
        return self._writer.unready()

    async def close(self) -> None:
        """Close the writer."""
        await self._writer.close()
