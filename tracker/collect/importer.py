"""Past events: the rows of a file as records for the log, under intake's own rules.

Pure: a row, the mapping and the site go in, bytes or a refusal come out. There is no age limit,
and whoever imports vouches for the rows (`Trust.IMPORT`). Sorting, appending and waiting are the
command's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from tracker import codec
from tracker.collect import parse
from tracker.collect.admit import Rules, admit_raw, partition_of
from tracker.collect.mapping import RowFields, RowMapping, map_row, parse_time_ms
from tracker.collect.rows import BadRow, Row, RowIds
from tracker.collect.sender import Sender, know
from tracker.model.definition import Site
from tracker.model.keys import Keys
from tracker.model.record import EventRecord
from tracker.model.rejection import Reason, Rejection


@dataclass(frozen=True, slots=True, order=True)
class Imported:
    """One row on its way into the log; ordered by time, then by its place in the file."""

    occurred_at_ms: int
    number: int
    partition: int = field(compare=False)
    raw: bytes = field(compare=False)  # complete but for producer and sequence


@dataclass(frozen=True, slots=True)
class Refused:
    """One row that is not imported, and why."""

    number: int
    rejection: Rejection


class Importer:
    """Turns rows of one file into records of one site."""

    def __init__(self, site: Site, mapping: RowMapping, ids: RowIds, keys: Keys) -> None:
        self._site = site.key
        self._mapping = mapping
        self._ids = ids
        # Nothing is too old here: whoever imports is trusted with that, see `settle_time`.
        self._rules = Rules(keys, {site.key: know(site, {})}, max_age_ms=0)

    def convert(self, row: Row | BadRow, received_at_ms: int) -> Imported | Refused | None:
        """Return the record of `row`, its refusal, or None when the mapping skips it.

        `received_at_ms` is the time of the import.
        """
        if isinstance(row, BadRow):
            return Refused(row.number, row.rejection)
        mapped = map_row(self._mapping, row.cells)
        if mapped is None:
            return None
        found = (
            mapped if isinstance(mapped, Rejection) else self._admit(row, mapped, received_at_ms)
        )
        if isinstance(found, Rejection):
            return Refused(row.number, found)
        partition = partition_of(self._rules.keys, found)
        return Imported(found.occurred_at_ms, row.number, partition, codec.encode(found))

    def _admit(self, row: Row, mapped: RowFields, received_at_ms: int) -> EventRecord | Rejection:
        stated = dict(mapped.event)
        occurred_at_ms = parse_time_ms(stated.pop("occurred_at", ""), self._mapping)
        if occurred_at_ms is None:
            return Rejection(Reason.BAD_TIME, "See time_format and timezone of the mapping.")
        if self._mapping.id or self._mapping.dedupe_rows or "event_id" not in stated:
            event_id = self._ids.of(row)
            if isinstance(event_id, Rejection):
                return event_id
            stated["event_id"] = event_id
        stated["occurred_at_ms"] = occurred_at_ms
        stated["properties"] = mapped.properties
        sender = Sender(
            received_at_ms=received_at_ms,
            address=mapped.request.get("address", ""),
            user_agent=mapped.request.get("user_agent", ""),
            languages=mapped.request.get("language", ""),
            site=self._site,
            is_import=True,
        )
        found = admit_raw(stated, sender, self._rules)
        return found.rejection if isinstance(found, parse.Refused) else found


def seal(raw: bytes, producer: str, sequence: int) -> bytes:
    """Return `raw` with its producer and sequence, as `codec.encode` would have written them.

    They are the last fields of a record, and known only once all rows are sorted.
    """
    return b"%b,%b" % (raw[:-1], orjson.dumps({"producer": producer, "sequence": sequence})[1:])
