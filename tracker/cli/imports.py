"""`tracker import`: a file of past events into the log of a running tracker, and what became of it.

Reads the file twice (its hash names the rows), holds the rows packed, sorted by time, and appends
them through the collector's append socket; then waits until the consumer has folded them. What a
row means is for `tracker.collect.importer`.

Memory: some 700 bytes a row, so a million rows take 0.7 GB; split larger files by month.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import secrets
import sys
import sysconfig
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, cast

import typer

from tracker import codec
from tracker.backends.append_socket import AppendClient
from tracker.cli.appending import append_all
from tracker.cli.ask import Server, not_running
from tracker.cli.knowing import wait_until_known
from tracker.cli.options import ConfigOption, DataOption, JsonOption, UrlOption
from tracker.cli.terminal import configure_logs, progress, remark, say, say_json
from tracker.collect.definitions import DEFINITION_PARTITION, DefinitionBook
from tracker.collect.importer import Imported, Importer, Refused, seal
from tracker.collect.mapping import RowMapping, parse_mapping
from tracker.collect.refusals import MARKER_PARTITION
from tracker.collect.rows import RowIds, read_rows
from tracker.errors import Code, TrackerError
from tracker.installation import Places, open_secret
from tracker.model.clock import SystemClock
from tracker.model.definition import DEFAULT_FUNNELS, NAME_PATTERN, Site, parse_sites
from tracker.model.record import DefinitionRecord, Layer, MarkerRecord
from tracker.ports.log import LogWriter, Unappended
from tracker.settings import Loaded, load_settings

REFUSED_SHOWN = 20
HASH_CHUNK_BYTES = 1 << 20
MOVE_EVERY_ROWS = 500
FOLD_DEADLINE_S = 60.0
"""Without any progress; a consumer that folds takes as long as it takes."""
FOLD_POLL_S = 0.1
GZIP_MAGIC = b"\x1f\x8b"
FATES = ("applied", "duplicate", "late", "quarantined")
BEHIND = "behind"
"""The part of the applied whose visitors had newer events: see the summary."""

app = typer.Typer()


@dataclass(slots=True)
class Rows:
    """Everything that was read of a file."""

    accepted: list[Imported] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    @property
    def read(self) -> int:
        """Count all rows."""
        return len(self.accepted) + sum(self.reasons.values()) + self.skipped


@app.command("import")
def import_file(  # noqa: PLR0913 - options
    *,
    file: Annotated[Path, typer.Argument(help="CSV, JSON lines or access log; also .gz.")],
    site: Annotated[str, typer.Option("--site", help="The site the events belong to.")],
    mapping: Annotated[
        str, typer.Option("--mapping", help="A mapping's TOML file, or the name of one we ship.")
    ],
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Of CSV, instead of the mapping's.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import past events; importing the same file again changes nothing."""
    loaded = load_settings({"data": data}, config=config)
    configure_logs(loaded.settings.log_format)
    if not NAME_PATTERN.fullmatch(site):
        raise TrackerError(
            Code.INVALID, f"{site!r} is no name of a site: letters, digits, '-', '_' and '.'."
        )
    if not file.is_file():
        raise TrackerError(Code.NOT_FOUND, f"There is no file {file}.")
    rules = load_mapping(mapping, delimiter)
    server = Server(url or f"http://127.0.0.1:{loaded.settings.port}")
    answer = asyncio.run(_Import(loaded, file, rules, server).run(site))
    if as_json:
        say_json(answer)
    else:
        _say_summary(answer)
    if answer["read"] and not answer["accepted"]:
        raise typer.Exit(1)


def load_mapping(name: str, delimiter: str | None = None) -> RowMapping:
    """Return the mapping at the path `name`, or the one of that name that we ship.

    Errors: TrackerError NOT_FOUND listing those we ship; CONFIGURATION with every problem.
    """
    path = _mapping_path(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrackerError(Code.CONFIGURATION, f"{path} cannot be read: {error}.") from error
    if delimiter is not None:
        tables["delimiter"] = "\t" if delimiter == "\\t" else delimiter
    found, problems = parse_mapping(tables)
    if found is None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise TrackerError(Code.CONFIGURATION, f"The mapping {path} cannot be used:\n{listed}")
    return found


def shipped_mappings() -> dict[str, Path]:
    """Return the mappings we ship by name: from the source tree, or where the wheel put them."""
    beside = Path(__file__).resolve().parents[2] / "deploy" / "mappings"
    installed = Path(sysconfig.get_path("data")) / "share" / "tracker" / "mappings"
    found = {path.stem: path for place in (installed, beside) for path in place.glob("*.toml")}
    return dict(sorted(found.items()))


def _mapping_path(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_mappings()
    known = shipped.get(path.name.removesuffix(".toml"))
    if known is None:
        raise TrackerError(
            Code.NOT_FOUND,
            f"There is no mapping {name}: give the path of a TOML file, or one of "
            f"{', '.join(shipped) or '(none shipped)'}.",
        )
    return known


class _Import:
    """One import, step by step."""

    def __init__(self, loaded: Loaded, file: Path, rules: RowMapping, server: Server) -> None:
        self.loaded = loaded
        self.file = file
        self.rules = rules
        self.server = server
        self.places = Places(loaded.settings.data)
        self.clock = SystemClock()

    async def run(self, site_key: str) -> dict[str, Any]:
        """Import the file and return the summary."""
        socket = self.places.socket("append")
        if not socket.exists() or not self.places.secret.exists():
            raise not_running(str(self.loaded.settings.data.absolute()))
        before = self.server.get("/v1/ledger", [("site", site_key)])
        site, definition = self._site(site_key)
        rows = await asyncio.to_thread(self._read, site)
        writer = AppendClient(socket)
        try:
            if definition:
                await writer.append([Unappended(DEFINITION_PARTITION, codec.encode(definition))])
                remark(f"The site {site_key} was new: it is created with the usual funnels.")
            await wait_until_known(self.loaded.settings, site)
            began = time.monotonic()
            await self._append(writer, rows, site_key)
            seconds = time.monotonic() - began
        finally:
            await writer.close()
        fates = await self._wait_until_folded(site_key, before, len(rows.accepted))
        return {
            "read": rows.read,
            "accepted": len(rows.accepted),
            "refused": dict(sorted(rows.reasons.items())),
            "skipped": rows.skipped,
            "new": fates.get("applied", 0) + fates.get("late", 0),
            "duplicates": fates.get("duplicate", 0),
            "behind": fates.get(BEHIND, 0),
            "folded": sum(fates.get(name, 0) for name in FATES) >= len(rows.accepted),
            "created_site": definition is not None,
            "refused_rows": [
                {
                    "row": one.number,
                    "reason": str(one.rejection.reason),
                    "detail": one.rejection.detail,
                }
                for one in rows.refused
            ],
            "seconds": round(seconds, 3),
        }

    def _site(self, key: str) -> tuple[Site, DefinitionRecord | None]:
        """Return the site, and the record that creates it when nobody knows it yet."""
        book = DefinitionBook(self.places.definitions)
        if key in book.sites:
            return book.sites[key], None
        table: dict[str, object] = {
            "currency": self.rules.currency or "USD",
            "timezone": self.rules.timezone,
            "conversions": ["purchase"],
            "funnel": DEFAULT_FUNNELS,
        }
        record = DefinitionRecord(
            layer=Layer.API,
            definitions={**book.layers[Layer.API], key: table},
            received_at_ms=self.clock.now_ms(),
        )
        return parse_sites({key: table})[0][key], record

    def _read(self, site: Site) -> Rows:
        ids = RowIds(self.rules, _content_hash(self.file))
        importer = Importer(site, self.rules, ids, open_secret(self.places.secret))
        received_at_ms = self.clock.now_ms()
        rows = Rows()
        size = self.file.stat().st_size
        with progress("Reading", "bytes") as move, _open(self.file) as (text, position):
            for count, row in enumerate(read_rows(text, self.rules)):
                found = importer.convert(row, received_at_ms)
                if isinstance(found, Imported):
                    rows.accepted.append(found)
                elif found is None:
                    rows.skipped += 1
                else:
                    self._refuse(rows, found)
                if count % MOVE_EVERY_ROWS == 0:
                    move(position(), size)
        rows.accepted.sort()
        return rows

    def _refuse(self, rows: Rows, refused: Refused) -> None:
        rows.reasons[str(refused.rejection.reason)] += 1
        if len(rows.refused) < REFUSED_SHOWN:
            rows.refused.append(refused)
            rejection = refused.rejection
            remark(f"Row {refused.number} refused ({rejection.reason}): {rejection.sentence()}")

    async def _append(self, writer: LogWriter, rows: Rows, site_key: str) -> None:
        producer = "import-" + secrets.token_hex(8)
        records = [
            Unappended(row.partition, seal(row.raw, producer, sequence))
            for sequence, row in enumerate(rows.accepted)
        ]
        with progress("Importing", "rows") as move:
            await append_all(writer, records, move)
        if rows.reasons:
            marker = MarkerRecord(
                received_at_ms=self.clock.now_ms(), rejected={site_key: dict(rows.reasons)}
            )
            await writer.append([Unappended(MARKER_PARTITION, codec.encode(marker))])

    async def _wait_until_folded(
        self, site_key: str, before: Mapping[str, Any], count: int
    ) -> dict[str, int]:
        """Wait for the rows' fates and return them by name; what is missing took too long."""
        latest = time.monotonic()
        done = -1
        fates: dict[str, int] = {}
        with progress("Counting", "rows") as move:
            while time.monotonic() - latest < FOLD_DEADLINE_S:
                ledger = await asyncio.to_thread(
                    self.server.get, "/v1/ledger", [("site", site_key)]
                )
                fates = {
                    name: ledger.get(name, 0) - before.get(name, 0) for name in (*FATES, BEHIND)
                }
                total = sum(fates[name] for name in FATES)
                if total > done:
                    done, latest = total, time.monotonic()
                move(min(total, count), count)
                if total >= count and not ledger.get("in_flight"):
                    return fates
                await asyncio.sleep(FOLD_POLL_S)
        remark("The consumer has not counted all rows yet; they are safe in the log.")
        return fates


def _content_hash(file: Path) -> str:
    """Return the SHA-256 of the unpacked file, so that packing it changes no id."""
    digest = hashlib.sha256()
    with _unpacked(file) as (stream, _):
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _unpacked(file: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Open `file`, gzipped or not; the function says how many of its bytes were read."""
    with file.open("rb") as raw:
        is_packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        try:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_packed else raw, raw.tell
        except (EOFError, OSError) as error:
            raise TrackerError(
                Code.INVALID, f"{file} cannot be read to its end: {error}."
            ) from error


@contextmanager
def _open(file: Path) -> Iterator[tuple[io.TextIOWrapper, Callable[[], int]]]:
    with _unpacked(file) as (stream, position):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        yield text, position


def _say_summary(answer: Mapping[str, Any]) -> None:
    refused = sum(answer["refused"].values())
    skipped = f", {answer['skipped']:,} skipped" if answer["skipped"] else ""
    say(
        f"{answer['read']:,} rows read: {answer['accepted']:,} accepted, {refused:,} refused"
        f"{skipped}."
    )
    for reason, count in answer["refused"].items():
        say(f"  {reason}: {count:,}")
    if refused > REFUSED_SHOWN:
        remark(f"Only the first {REFUSED_SHOWN} refused rows are listed.")
    say(f"{answer['new']:,} are new, {answer['duplicates']:,} were counted before.")
    if answer["behind"]:
        say(
            f"{answer['behind']:,} lie far behind newer events of their visitors: they count in"
            " their own time and money, and open no session, visitor or funnel."
        )
    if sys.stderr.isatty() and answer["seconds"]:
        remark(f"{answer['accepted'] / answer['seconds']:,.0f} rows/s into the log.")
