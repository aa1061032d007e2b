"""The log, folded once more: reconcile compares, rebuild replaces."""

from __future__ import annotations

import pytest
from folding import (
    CONVERSION,
    DAY0,
    DEFINED,
    HOUR,
    KEYS,
    SITE,
    Bench,
    at,
    bought,
    ignore_progress,
    order_elsewhere,
    reached,
    refunded,
)

from consumers.replay import rebuild, reconcile
from tracker.backends.memory_store import MemoryStore
from tracker.codec import decode
from tracker.errors import Code, TrackerError
from tracker.model.cell import LEDGER
from tracker.model.keys import PARTITIONS, owner_of_visitor
from tracker.model.record import DerivedRecord
from tracker.model.window import Granularity
from tracker.ports.log import Unappended

HOME = KEYS.partition(SITE, owner_of_visitor("v"))
ORDER = order_elsewhere("v")


async def filled() -> Bench:
    """Return a bench with a little of everything in it."""
    bench = Bench()
    await bench.define()
    await bench.send(at(0, source="a"), at(1, CONVERSION, name="cart"), bought(2, ORDER, 20))
    await bench.send(refunded(3, ORDER, 5), at(4 * HOUR), at(2 * HOUR, received=4 * HOUR))
    return bench


async def test_a_store_that_nobody_touched_is_what_the_log_says() -> None:
    comparison = await (await filled()).reconciled()
    assert comparison.equal
    assert comparison.values > 100
    assert comparison.records >= 6


async def test_a_planted_difference_is_named() -> None:
    bench = await filled()
    containers = await bench.containers(HOME)
    fields = containers[f"c:{Granularity.DAY}:{DAY0 // 32}"]
    assert isinstance(bench.store, MemoryStore)
    stored = bench.store._partitions[HOME].containers[f"c:{Granularity.DAY}:{DAY0 // 32}"]
    field = min(fields)
    # The count of the first cell, which stands in the second byte as 2 × count.
    raw = bytearray(stored[field])
    raw[1] += 2
    stored[field] = bytes(raw)
    comparison = await bench.reconciled()
    assert not comparison.equal
    [difference] = comparison.differences
    assert difference.partition == HOME
    assert int(difference.live) == int(difference.replayed) + 1
    assert difference.key.startswith(f"{SITE} p bucket {DAY0} all ")


async def test_a_value_that_is_missing_is_named() -> None:
    bench = await filled()
    assert isinstance(bench.store, MemoryStore)
    del bench.store._partitions[HOME].containers[LEDGER]
    [difference] = (await bench.reconciled()).differences
    assert (difference.container, difference.live) == (LEDGER, "nothing")


async def test_a_reconcile_changes_nothing_and_looks_no_further_than_the_store_stands() -> None:
    bench = await filled()
    before = await bench.meaning()
    ends = list(bench.reader.ends())
    bench.add(at(5 * HOUR))
    comparison = await reconcile(bench.parts(), MemoryStore(), ignore_progress)
    assert comparison.equal
    assert await bench.meaning() == before
    assert sum(bench.reader.ends()) == sum(ends) + 1


async def test_a_store_of_another_log_is_refused() -> None:
    bench, other = await filled(), Bench()
    other.store = bench.store
    with pytest.raises(TrackerError) as refused:
        await other.reconciled()
    assert refused.value.code is Code.LOG_CHANGED


async def test_a_rebuild_gives_the_same_numbers() -> None:
    bench = await filled()
    before, ledger = await bench.cells(), await bench.ledger()
    done: list[tuple[int, int]] = []
    await rebuild(bench.parts(), lambda now, total: done.append((now, total)))
    assert await bench.cells() == before
    assert await bench.ledger() == ledger
    assert done[-1][0] == done[-1][1]
    assert done == sorted(done)


async def test_a_rebuild_gives_a_new_funnel_the_history_of_the_log() -> None:
    bench = await filled()
    late = {"late": {"steps": ["view", "conversion:cart"], "within": "1h"}}
    await bench.define(DEFINED | {"funnel": late}, received=5 * HOUR)
    assert reached(await bench.cells(), "late", since=2) == [0, 0, 0]
    await rebuild(bench.parts(), ignore_progress)
    # It was said again, to hold from the start: number 3, but the funnel's shape is that of 2.
    assert await bench.numbered() == 3
    assert reached(await bench.cells(), "late", since=2) == [1, 1, 0]


async def test_what_holds_from_the_start_does_so_in_every_later_replay() -> None:
    bench = await filled()
    late = {"late": {"steps": ["view", "conversion:cart"], "within": "1h"}}
    await bench.define(DEFINED | {"funnel": late}, received=5 * HOUR)
    await rebuild(bench.parts(), ignore_progress)
    bench.runner = bench.new_runner()
    await bench.send(at(6 * HOUR))
    before = await bench.cells()
    assert (await bench.reconciled()).equal
    ends = list(bench.reader.ends())
    await rebuild(bench.parts(), ignore_progress)
    assert await bench.cells() == before
    assert list(bench.reader.ends()) == ends


async def test_a_rebuild_appends_what_a_crash_kept_from_the_log() -> None:
    bench = await filled()
    numbers = await bench.cells()
    partition = next(
        number
        for number in range(PARTITIONS)
        if any(is_order(record.raw) for record in bench.log.partitions[number])
    )
    # As if the consumer had died before it told the order's partition anything.
    kept = [r.raw for r in bench.log.partitions[partition] if not is_order(r.raw)]
    bench.log.partitions[partition].clear()
    bench.log.add([Unappended(partition, raw) for raw in kept])
    await rebuild(bench.parts(), ignore_progress)
    assert await bench.cells() == numbers
    assert any(is_order(record.raw) for record in bench.log.partitions[partition])
    assert (await bench.reconciled()).equal


def is_order(raw: bytes) -> bool:
    record = decode(raw)
    return isinstance(record, DerivedRecord) and record.definition is None


async def test_a_rebuild_of_an_empty_log_is_an_empty_store() -> None:
    bench = Bench()
    assert await rebuild(bench.parts(), ignore_progress) == 0
    assert await bench.cells() == {}


async def test_a_rebuild_that_was_cut_short_can_be_run_again() -> None:
    bench = await filled()
    numbers = await bench.cells()

    class Cut(Exception):  # noqa: N818 - a power cut, no error of ours
        pass

    def cut(_done: int, _total: int) -> None:
        raise Cut

    with pytest.raises(Cut):
        await rebuild(bench.parts(), cut)
    assert await bench.cells() != numbers
    await rebuild(bench.parts(), ignore_progress)
    assert await bench.cells() == numbers
