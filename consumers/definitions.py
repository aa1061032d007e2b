"""Which sites, funnels and conversions are in force in a partition, by number.

Partition 0 numbers the layers in the order in which they stand in it and tells every partition,
itself included; a partition applies a higher number and ignores a lower one. A funnel is known by
the number that last changed it, so that numbers of two shapes of a funnel never mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tracker.codec import UnreadableError, decode
from tracker.model.definition import Site, merge_layers, parse_sites
from tracker.model.record import DefinitionRecord, Layer, NumberedDefinition
from tracker.ports.log import LogReader

CURRENT = b"current"
"""The one field of the container DEFINITIONS."""

DEFINITION_PARTITION = 0


@dataclass(slots=True)
class Definitions:
    """The layers in force, and since when each funnel is what it is.

    `initial` is the number that held from the first record on (0: none), so that a replay can
    begin as this store did.
    """

    number: int = 0
    initial: int = 0
    layers: dict[str, dict[str, object]] = field(
        default_factory=lambda: {layer.value: {} for layer in Layer}
    )
    since: dict[str, int] = field(default_factory=dict)  # "site/funnel" → number
    counted_from: dict[str, int] = field(default_factory=dict)  # "site/funnel" → ms
    sites: dict[str, Site] = field(default_factory=dict)

    def apply(self, numbered: NumberedDefinition, received_ms: int) -> bool:
        """Take over `numbered` unless it is old; tell whether anything changed."""
        if numbered.number <= self.number:
            return False
        self.number = numbered.number
        self.layers[numbered.layer.value] = dict(numbered.definitions)
        before = {key: _funnel_shapes(site) for key, site in self.sites.items()}
        self._parse()
        for key, site in self.sites.items():
            old = before.get(key, {})
            for name, shape in _funnel_shapes(site).items():
                if old.get(name) != shape:
                    self.since[f"{key}/{name}"] = numbered.number
                    self.counted_from[f"{key}/{name}"] = received_ms
        return True

    def hold_from_start(self) -> None:
        """Say that what is in force now held from the first record on."""
        self.initial = self.number
        self.counted_from = dict.fromkeys(self.counted_from, 0)

    def encode(self) -> bytes:
        """Return the stored form, JSON."""
        return orjson.dumps(
            {
                "number": self.number,
                "initial": self.initial,
                "layers": self.layers,
                "since": self.since,
                "counted_from": self.counted_from,
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def decode(cls, raw: bytes) -> Definitions:
        """Return what `encode` stored."""
        stored: dict[str, Any] = orjson.loads(raw)
        definitions = cls(**stored)
        definitions._parse()
        return definitions

    def _parse(self) -> None:
        tables = merge_layers(self.layers[Layer.API], self.layers[Layer.FILE])
        self.sites, _ = parse_sites(tables)


def _funnel_shapes(site: Site) -> Mapping[str, object]:
    return {funnel.name: funnel for funnel in site.funnels}


@dataclass(frozen=True, slots=True)
class Numbered:
    """A definition record with the number that partition 0 gives it."""

    number: int
    record: DefinitionRecord


async def scan(reader: LogReader) -> list[Numbered]:
    """Return every definition that stands in the log, in order, with its number."""
    found: list[Numbered] = []
    position, end = 0, reader.ends()[DEFINITION_PARTITION]
    while position < end:
        for batch in await reader.read(
            {DEFINITION_PARTITION: position}, records_max=10_000, wait_ms=1_000
        ):
            position = batch.next_position
            for item in batch.records:
                record = _definition(item.raw)
                if record is not None:
                    found.append(Numbered(len(found) + 1, record))
    return found


def _definition(raw: bytes) -> DefinitionRecord | None:
    # The prefix alone decides for all but a handful of records: a scan costs no JSON.
    if b'"kind":"definition"' not in raw[:40]:
        return None
    try:
        record = decode(raw)
    except UnreadableError:
        return None
    return record if isinstance(record, DefinitionRecord) else None


def beginning(numbered: list[Numbered], initial: int | None = None) -> Definitions:
    """Return the definitions with which a replay from the first record starts.

    `initial` is the number that held from the start; None means the newest that a rebuild said
    so of, which may be none at all.
    """
    if initial is None:
        from_start = [item.number for item in numbered if item.record.from_start]
        initial = from_start[-1] if from_start else 0
    definitions = Definitions()
    for item in numbered[:initial]:
        definitions.apply(
            NumberedDefinition(
                number=item.number,
                layer=item.record.layer,
                definitions=item.record.definitions,
            ),
            item.record.received_at_ms,
        )
    definitions.hold_from_start()
    return definitions
