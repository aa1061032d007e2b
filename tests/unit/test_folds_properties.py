"""Properties of the folds: any order within the lateness, any batches, any copies, any crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from folding import (
    CLICK,
    CONVERSION,
    DAY,
    DEFINED,
    HOUR,
    IMPRESSION,
    KEYS,
    MINUTE,
    SECOND,
    SITE,
    T0,
    VIEW,
    Bench,
    ChunkedReader,
    Place,
    at,
    ignore_progress,
    readable,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle

from consumers.people import ID_MEMORY_MS
from consumers.replay import HeldWriter, rebuild
from consumers.runner import Parts, Runner
from tracker.backends.memory_log import MemoryLogReader
from tracker.backends.memory_store import MemoryStore
from tracker.codec import encode
from tracker.errors import Code, TrackerError
from tracker.model.cell import COUNTERS, GAP_EXACT_MAX, NAMES, OWNER, gap_class_max
from tracker.model.keys import PARTITIONS
from tracker.model.record import DefinitionRecord, EventRecord, IdentifiedBy, Layer, Trust
from tracker.model.window import Granularity
from tracker.ports.log import LogWriter, Unappended
from tracker.ports.store import Commit, Outcome

ZONE = 5 * HOUR + 30 * MINUTE
"""The site's zone: its days are cut where no hour of UTC begins."""

DEFINITION = Unappended(
    0,
    encode(
        DefinitionRecord(
            layer=Layer.FILE, definitions={SITE: DEFINED}, received_at_ms=T0 - DAY, from_start=True
        )
    ),
)

RICH = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# -- what is drawn -------------------------------------------------------------------------------

GAPS = (0, 0, 1, SECOND, 9 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE)
LONG_GAPS = (30 * MINUTE - 1, 30 * MINUTE, 40 * MINUTE, HOUR, HOUR + 1, 9 * HOUR, DAY, DAY + 1)
"""Of both sides of what ends a session, a funnel, a bucket; and pauses of up to a day."""

SOURCES = ("", "", "news", "search", "social")
KINDS = ("view",) * 5 + (
    "cart",
    "cart",
    "lead",
    "lead",
    "purchase",
    "order",
    "order",
    "click",
    "named click",
    "landing",
    "impression",
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Events in log order, each received up to an hour after it happened."""

    log: tuple[EventRecord, ...]

    @property
    def horizon_ms(self) -> int:
        return max(event.received_at_ms for event in self.log)


def _event(draw: st.DrawFn, t: int, who: str, number: int) -> EventRecord:
    kind = draw(st.sampled_from(KINDS))
    said: dict[str, Any] = {
        "visitor": who,
        "event_id": f"{draw(st.integers(0, 9))}-{who}-{number}",
        "device": draw(st.sampled_from(("phone", "desk"))),
        "page": draw(st.sampled_from(("/a", "/b"))),
        "day": (T0 + t + ZONE) // DAY,
    }
    source = draw(st.sampled_from(SOURCES))
    if source:
        said |= {"source": source, "campaign": f"{source}-1"}
    if draw(st.integers(0, 5)) == 0:
        said["session_id"] = draw(st.sampled_from(("s1", "s2")))
    match kind:
        case "view":
            return at(t, VIEW, **said)
        case "impression":
            return at(t, IMPRESSION, **said)
        case "landing":
            click = draw(st.sampled_from(("g1", "g2")))
            return at(t, VIEW, click_id=click, click_network="gclid", **(said | {"arrival": True}))
        case "click":
            return at(t, CLICK, **(said | {"arrival": True}))
        case "named click":
            return at(t, CLICK, name="menu", **(said | {"arrival": True}))
    said |= _sale(draw, kind)
    return at(t, CONVERSION, **said)


def _sale(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Draw what a conversion says of money; orders come by the pixel and by the server."""
    said: dict[str, Any] = {"name": kind}
    said |= {"value_micros": draw(st.sampled_from((None, 0, 1_500_000, 20_000_000)))}
    said |= {"currency": draw(st.sampled_from(("", "EUR", "USD")))}
    if kind == "order":
        said["order_id"] = draw(st.sampled_from(("O1", "O2")))
        said["name"] = draw(st.sampled_from(("purchase", "purchase", "lead")))
        if draw(st.booleans()):
            said |= {"trust": Trust.SECRET}
            if draw(st.booleans()):
                said |= {"visitor": "", "identified_by": IdentifiedBy.NOBODY}
    return said


def _visits(draw: st.DrawFn, who: str, size: int) -> list[EventRecord]:
    t = draw(st.sampled_from((0, 1, MINUTE, 6 * HOUR, 8 * HOUR + 30 * MINUTE - 1)))
    events = []
    for number in range(size):
        t += draw(st.sampled_from(GAPS if draw(st.integers(0, 3)) else LONG_GAPS))
        event = _event(draw, t, who, number)
        if not event.visitor_id:
            event = replace(event, dims={})
        events.append(event)
    if who == "bot":
        events = [replace(event, bot="list", order_id="") for event in events]
    return events


@st.composite
def streams(draw: st.DrawFn, *, size: int = 14) -> Drawn:
    """Draw some visitors' events, late by at most an hour, and refunds of their orders."""
    events = []
    for who in ("a", "b", "bot")[: draw(st.integers(1, 3))]:
        events += _visits(draw, who, draw(st.integers(1, size)))
    events = _apart(events)
    orders = [event for event in events if event.order_id and event.name == "purchase"]
    for number, order in enumerate(orders[:2]):
        if draw(st.booleans()):
            refund = at(
                order.occurred_at_ms - T0 + draw(st.sampled_from((-MINUTE, MINUTE, DAY))),
                CONVERSION,
                name="refund",
                order_id=order.order_id,
                visitor="",
                event_id=f"refund-{number}",
                trust=Trust.SECRET,
                value_micros=draw(st.sampled_from((None, 500_000, 30_000_000))),
                currency=draw(st.sampled_from(("", order.currency))),
            )
            events.append(refund)
    return Drawn(tuple(_arrived(draw, events)))


def _apart(events: Sequence[EventRecord]) -> list[EventRecord]:
    """Move copies of orders that share a time: which of them is the earlier nobody promises."""
    taken: set[int] = set()
    apart = []
    for event in events:
        t = event.occurred_at_ms
        while event.order_id and t in taken:
            t += 1
        taken.update({t} if event.order_id else ())
        apart.append(replace(event, occurred_at_ms=t, day=(t + ZONE) // DAY))
    return apart


def _arrived(draw: st.DrawFn, events: Sequence[EventRecord]) -> list[EventRecord]:
    late = st.sampled_from((0, 0, 0, 1, SECOND, MINUTE, 31 * MINUTE, HOUR))
    received = [
        replace(event, received_at_ms=event.occurred_at_ms + draw(late)) for event in events
    ]
    ties = draw(st.permutations(range(len(received))))
    order = sorted(range(len(received)), key=lambda i: (received[i].received_at_ms, ties[i]))
    if draw(st.booleans()):
        # A stream that was held back: sent a day later in one go, in the order of its arrival.
        sent = max(event.received_at_ms for event in received) + DAY
        received = [replace(event, received_at_ms=sent) for event in received]
    return [received[i] for i in order]


# -- what is compared ----------------------------------------------------------------------------


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


class FaultyStore(MemoryStore):
    """A store that fails as planned, commit by commit, and may come back older."""

    def __init__(self, plan: Sequence[str]) -> None:
        super().__init__()
        self._plan = list(plan)
        self._older = MemoryStore()

    async def commit(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        fault = self._plan.pop(0) if self._plan else ""
        lost = TrackerError(Code.STORE_UNAVAILABLE, "the store did not answer")
        match fault:
            case "before":
                raise lost
            case "half":
                await super().commit(commits[: len(commits) // 2])
                raise lost
            case "after":
                await super().commit(commits)
                raise lost
            case "keep":
                self._older = self.fork()
            case "older":
                self._partitions = self._older.fork()._partitions
        return await super().commit(commits)


class FaultyWriter:
    """A log writer that fails as planned, append by append: some, all or nothing is durable."""

    def __init__(self, writer: LogWriter, plan: Sequence[str]) -> None:
        self._writer = writer
        self._plan = list(plan)

    async def append(self, records: Sequence[Unappended]) -> None:
        fault = self._plan.pop(0) if self._plan else ""
        durable = {"before": 0, "half": len(records) // 2}.get(fault, len(records))
        await self._writer.append(records[:durable])
        if fault:
            raise TrackerError(Code.LOG_UNAVAILABLE, "the log did not answer")

    def unready(self) -> str | None:
        return self._writer.unready()

    async def close(self) -> None:
        await self._writer.close()


async def folded(log: Sequence[EventRecord], chunks: Sequence[int] = (1_000,)) -> Bench:
    """Fold a log that comes in pieces of these sizes."""
    bench = Bench()
    await bench.define(received=-DAY)
    position, turn = 0, 0
    while position < len(log):
        size = chunks[turn % len(chunks)]
        await bench.send(*log[position : position + size])
        position, turn = position + size, turn + 1
    return bench


def is_count(place: Place) -> bool:
    return ".last" not in place.column and ".gap:" not in place.column


def differing(left: Mapping[Any, int], right: Mapping[Any, int]) -> dict[Any, tuple[int, int]]:
    """Return where two counters differ, as (left, right): short enough to be read."""
    keys = left.keys() | right.keys()
    both = {key: (left.get(key, 0), right.get(key, 0)) for key in keys}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def check_counts(cells: Mapping[Place, int], oracle: Oracle, horizon_ms: int) -> None:
    mine = {place: n for place, n in readable(cells, horizon_ms).items() if is_count(place)}
    wrong = differing(mine, readable(oracle.counts(), horizon_ms))
    assert not wrong, wrong


def as_asked(column: str) -> str:
    """Return the unique of a column in the oracle's words: `funnel:NAME@N:STEP:CLASS` is a step."""
    unique = column.rpartition(".")[0]
    if not unique.startswith("funnel:"):
        return unique
    _, name, step, _ = unique.split(":")
    return f"{name.partition('@')[0]}:{step}"


def check_last_seen(cells: Mapping[Place, int], oracle: Oracle, horizon_ms: int) -> None:
    """Compare who did what last in each bucket: the sums of every window that ends now."""
    mine: Counter[Place] = Counter()
    for place, count in readable(cells, horizon_ms).items():
        if place.column.endswith(".last"):
            mine[place._replace(column=f"{as_asked(place.column)}.last")] += count
    wrong = differing(mine, readable(oracle.last_seen(), horizon_ms))
    assert not wrong, wrong


UNIQUES = (
    "visitors",
    "converters",
    *(f"checkout:{step}" for step in (1, 2, 3)),
    *(f"quick:{step}" for step in (1, 2)),
)


def check_distinct(
    cells: Mapping[Place, int], oracle: Oracle, granularity: Granularity, span: tuple[int, int]
) -> None:
    """Compare who did what in the buckets of a span."""
    mine: dict[str, Counter[tuple[str, str, str]]] = {unique: Counter() for unique in UNIQUES}
    for place, count in cells.items():
        column, _, gap = place.column.partition(".gap:")
        in_span = place.granularity is granularity and span[0] <= place.bucket < span[1]
        if not gap or not in_span:
            continue
        if gap == "new" or place.bucket - gap_class_max(int(gap)) < span[0]:
            row = (place.audience, place.dimension, place.value)
            mine[as_asked(column + ".")][row] += count
    for unique in UNIQUES:
        asked = oracle.distinct(unique, granularity, span)
        wrong = differing(mine[unique], asked)
        assert not wrong, (unique, span, wrong)


def check_spans(cells: Mapping[Place, int], oracle: Oracle, spans: Sequence[int]) -> None:
    """Compare all ranges of whole days, and ranges of quarters that `spans` pick."""
    days = sorted({seen.event.day for seen in oracle.sightings})
    for first in days:
        for last in days:
            if first <= last:
                check_distinct(cells, oracle, Granularity.DAY, (first, last + 1))
    quarters = sorted({seen.event.occurred_at_ms // (15 * MINUTE) for seen in oracle.sightings})
    picked = [quarters[pick % len(quarters)] for pick in spans] if quarters else []
    for first, last in zip(picked[::2], picked[1::2], strict=True):
        # Longer ranges of quarters are estimates: gaps beyond 63 are kept in classes.
        stop = min(max(first, last), min(first, last) + GAP_EXACT_MAX) + 1
        check_distinct(cells, oracle, Granularity.QUARTER, (min(first, last), stop))


# -- the properties ------------------------------------------------------------------------------


@given(drawn=streams(), spans=st.lists(st.integers(0, 40), min_size=4, max_size=4))
@settings(RICH, max_examples=100)
def test_any_order_within_the_lateness_counts_what_the_sorted_batch_counts(
    drawn: Drawn, spans: list[int]
) -> None:
    async def check() -> None:
        bench = await folded(drawn.log)
        await check_oracle(bench, drawn, spans)

    run(check())


async def check_oracle(bench: Bench, drawn: Drawn, spans: Sequence[int] = (0, 99)) -> None:
    """Compare everything that can be asked of a bench with the oracle."""
    cells = await bench.cells()
    oracle = Oracle(DEFINED, drawn.log)
    check_counts(cells, oracle, drawn.horizon_ms)
    check_last_seen(cells, oracle, drawn.horizon_ms)
    check_spans(cells, oracle, spans)
    assert (await bench.ledger()).get("unmatched", 0) == oracle.unmatched


@given(drawn=streams())
@settings(RICH, max_examples=30)
def test_the_rows_of_every_dimension_add_up_to_the_total(drawn: Drawn) -> None:
    async def check() -> None:
        cells = await (await folded(drawn.log)).cells()
        sums: dict[str, Counter[tuple[Granularity, int, str, str]]] = {}
        for place, count in cells.items():
            if is_count(place):
                key = (place.granularity, place.bucket, place.audience, place.column)
                sums.setdefault(place.dimension, Counter())[key] += count
        assert len(sums) <= 5
        for dimension, rows in sums.items():
            wrong = differing(rows, sums[""])
            assert not wrong, (dimension, wrong)

    run(check())


@given(drawn=streams(), data=st.data())
@settings(RICH, max_examples=40)
def test_copies_anywhere_in_the_log_change_no_number(drawn: Drawn, data: st.DataObject) -> None:
    picks = data.draw(st.lists(st.sampled_from(range(len(drawn.log))), max_size=20), label="copied")
    log = list(drawn.log)
    for pick in picks:
        original = drawn.log[pick]
        # A sender may try again for as long as ids are remembered.
        forgotten_ms = original.received_at_ms + ID_MEMORY_MS[Trust.PUBLIC]
        times = [e.received_at_ms for e in drawn.log[pick:] if e.received_at_ms <= forgotten_ms]
        received = data.draw(st.sampled_from(times), label="received again")
        log.append(replace(original, received_at_ms=received))
    log.sort(key=lambda event: event.received_at_ms)

    async def check() -> None:
        bench = await folded(log, chunks=(7,))
        await check_oracle(bench, drawn)
        fates = await bench.ledger()
        assert fates.get("duplicate", 0) == len(picks)
        assert fates.get("conflict", 0) == 0
        assert fates["applied"] == len(drawn.log)

    run(check())


@given(drawn=streams(), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(RICH, max_examples=40)
def test_any_pieces_in_which_the_log_grows_give_the_same_numbers(
    drawn: Drawn, chunks: list[int]
) -> None:
    run(_check_pieces(drawn, chunks))


async def _check_pieces(drawn: Drawn, chunks: Sequence[int]) -> None:
    bench = await folded(drawn.log, chunks)
    await check_oracle(bench, drawn)


@given(drawn=streams(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(RICH, max_examples=40)
def test_any_split_of_a_log_into_batches_gives_the_same_state(
    drawn: Drawn, sizes: list[int]
) -> None:
    async def check() -> None:
        whole = await folded(drawn.log)
        split = Bench(whole.log)
        reader = ChunkedReader(MemoryLogReader(whole.log), sizes)
        parts = Parts(reader, HeldWriter(), split.store, KEYS, split.clock)
        await Runner(parts).drain()
        assert await split.meaning() == await whole.meaning()
        for partition in range(PARTITIONS):
            left = await whole.containers(partition)
            right = await split.containers(partition)
            assert left.keys() == right.keys()
            # Pages and column names hold numbers given batch by batch; all else is the same bytes.
            for container in left.keys() - {NAMES, OWNER}:
                if not container.startswith(COUNTERS):
                    assert left[container] == right[container], container

    run(check())


FAULTS = st.lists(st.sampled_from(("", "before", "half", "after", "keep", "older")), max_size=12)
APPEND_FAULTS = st.lists(st.sampled_from(("", "", "before", "half", "after")), max_size=8)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong, call by call; and which of two runners takes which turn."""

    commits: list[str]
    appends: list[str]
    turns: list[int]
    sizes: list[int]


TROUBLES = st.builds(
    Trouble,
    commits=FAULTS,
    appends=APPEND_FAULTS,
    turns=st.lists(st.integers(0, 1), max_size=16),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)


async def survived(log: Sequence[EventRecord], trouble: Trouble) -> Bench:
    """Fold `log` with two runners that crash, fence each other and see the store go back."""
    bench = Bench(store=FaultyStore(trouble.commits))
    bench.writer = FaultyWriter(bench.writer, trouble.appends)
    bench.reader = ChunkedReader(bench.reader, trouble.sizes)
    bench.log.add([DEFINITION])
    runners = [bench.new_runner(), bench.new_runner()]
    waiting = [*log]
    turns = [*trouble.turns]
    for _ in range(5_000):
        bench.add(*waiting[:4])
        del waiting[:4]
        turn = turns.pop(0) if turns else 0
        try:
            folded = await runners[turn].tick(wait_ms=0)
            if not folded and not waiting:
                # It may think that it stands at the end, in a store that went back meanwhile.
                runners[turn] = bench.new_runner()
        except TrackerError as error:
            if not error.retryable:
                raise
            runners[turn] = bench.new_runner()
        metas = await bench.store.metas()
        if not waiting and [meta.position for meta in metas] == list(bench.reader.ends()):
            return bench
    raise AssertionError("the runners do not come to the end of the log")


@given(drawn=streams(), trouble=TROUBLES)
@settings(RICH, max_examples=60)
def test_any_crash_take_over_lost_reply_or_older_store_ends_in_the_same_numbers(
    drawn: Drawn, trouble: Trouble
) -> None:
    async def check() -> None:
        bench = await survived(drawn.log, trouble)
        await check_oracle(bench, drawn)
        fates = await bench.ledger()
        assert fates["applied"] == len(drawn.log)
        assert fates.get("duplicate", 0) == 0
        comparison = await bench.reconciled()
        assert comparison.values > 0
        assert comparison.differences == []

    run(check())


@given(drawn=streams(), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(RICH, max_examples=20)
def test_a_replay_into_an_empty_store_confirms_every_value(drawn: Drawn, chunks: list[int]) -> None:
    async def check() -> None:
        bench = await folded(drawn.log, chunks)
        comparison = await bench.reconciled()
        assert comparison.values > 0
        assert comparison.differences == []
        numbers = await bench.cells()
        await rebuild(bench.parts(), ignore_progress)
        wrong = differing(await bench.cells(), numbers)
        # Before the rebuild the definitions were there too, from the first event on.
        assert not wrong

    run(check())
