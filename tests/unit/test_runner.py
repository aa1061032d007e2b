"""The runner: one commit a batch, the fence, and what it does when something does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from folding import (
    HOUR,
    KEYS,
    SITE,
    Bench,
    ChunkedReader,
    at,
    bought,
    count_in,
    order_elsewhere,
    refunded,
    visitors_in,
)

from consumers.runner import BATCH_RECORDS_MAX, Runner
from tracker.backends.memory_log import MemoryLog, MemoryLogWriter
from tracker.backends.memory_store import MemoryStore
from tracker.errors import Code, TrackerError
from tracker.model.cell import QUARANTINE
from tracker.model.keys import PARTITIONS, owner_of_order, owner_of_visitor
from tracker.model.record import MarkerRecord
from tracker.ports.log import Unappended
from tracker.ports.store import Commit, Outcome

DEADLINE_S = 10.0
HOME = KEYS.partition(SITE, owner_of_visitor("v"))
ORDER = order_elsewhere("v")


class ToldStore(MemoryStore):
    """A store that remembers its commits, and whose next ones go as told."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[Commit] = []
        self.instead: list[Callable[[], None]] = []
        self.lose_reply = False

    async def commit(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        if self.instead:
            self.instead.pop(0)()
        outcomes = await super().commit(commits)
        self.commits += commits
        if self.lose_reply:
            self.lose_reply = False
            raise TrackerError(Code.STORE_UNAVAILABLE, "the reply was lost")
        return outcomes


async def told() -> tuple[Bench, ToldStore]:
    store = ToldStore()
    bench = Bench(store=store)
    await bench.define()
    store.commits.clear()
    return bench, store


async def running(bench: Bench, until: Callable[[], bool]) -> None:
    """Let the runner run until a condition holds, then stop it and wait for its end."""
    stop = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(bench.runner.run(stop))
        while not until():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
        stop.set()


def position(bench: Bench, partition: int = HOME) -> int:
    assert isinstance(bench.store, MemoryStore)
    return bench.store._partition(partition).meta.position


async def test_a_batch_is_one_commit_and_a_long_one_is_cut() -> None:
    bench, store = await told()
    await bench.send(*(at(n) for n in range(BATCH_RECORDS_MAX + 1)))
    assert [commit.position - commit.expected for commit in store.commits] == [
        BATCH_RECORDS_MAX,
        1,
    ]
    assert await bench.count("views") == BATCH_RECORDS_MAX + 1


async def test_the_same_batch_makes_the_same_token_and_another_one_another() -> None:
    tokens = []
    for event_id in ("a", "a", "b"):
        bench, store = await told()
        await bench.send(at(0, event_id=event_id))
        tokens.append(store.commits[-1].token)
    assert tokens[0] == tokens[1] != tokens[2]


async def test_a_runner_that_was_replaced_is_fenced() -> None:
    bench, store = await told()
    zombie = bench.runner
    heir = bench.new_runner()
    bench.add(at(0))

    def take_over() -> None:
        # Between the zombie's fold and its commit, everything belongs to somebody else.
        meta = store._partition(HOME).meta
        store._partition(HOME).meta = type(meta)(
            position=meta.position, epoch=meta.epoch + 1, log_id=meta.log_id, token=meta.token
        )

    store.instead.append(take_over)
    assert await zombie.tick(wait_ms=0) == 0
    assert await bench.count("views") == 0
    await heir.drain()
    assert await bench.count("views") == 1


async def test_two_runners_in_turn_count_nothing_twice() -> None:
    bench, _ = await told()
    runners = [bench.runner, bench.new_runner()]
    for number in range(6):
        bench.add(at(number), bought(number, f"O{number}", 1))
        await runners[number % 2].tick(wait_ms=0)
        await runners[number % 2].tick(wait_ms=0)
    await runners[0].drain()
    cells = await bench.cells()
    assert count_in(cells, "views") == count_in(cells, "orders") == 6
    assert count_in(cells, "revenue:EUR") == 6_000_000


async def test_a_lost_reply_is_recognised_and_counts_once() -> None:
    bench, store = await told()
    bench.add(at(0))
    store.lose_reply = True
    await running(bench, lambda: bench.runner.records > PARTITIONS and position(bench) == 2)
    assert await bench.count("views") == 1


async def test_a_store_that_came_back_older_is_filled_again() -> None:
    bench, store = await told()
    older = store.fork()
    await bench.send(at(0), at(0, visitor="w"), bought(1, ORDER, 5))
    store._partitions = older._partitions
    # Only one partition has news, and the others went back too.
    await bench.send(at(2))
    cells = await bench.cells()
    assert count_in(cells, "views") == 3
    assert count_in(cells, "orders") == 1
    assert (await bench.reconciled()).equal


async def test_what_another_partition_is_told_stands_in_the_log_before_the_commit() -> None:
    bench, store = await told()
    target = KEYS.partition(SITE, owner_of_order(ORDER))
    seen = []
    store.instead.append(lambda: seen.append(len(bench.log.partitions[target])))
    before = len(bench.log.partitions[target])
    await bench.send(bought(0, ORDER, 5))
    assert seen == [before + 1]


async def test_a_claim_that_is_appended_again_counts_once() -> None:
    bench, _ = await told()
    bench.add(at(0), bought(1, ORDER, 20))

    class ForgetfulWriter(MemoryLogWriter):
        """It appends, and then knows nothing of it, once."""

        async def append(self, records: Sequence[Unappended]) -> None:
            await super().append(records)
            bench.writer = MemoryLogWriter(bench.log)
            raise TrackerError(Code.LOG_UNAVAILABLE, "the answer was lost")

    bench.writer = ForgetfulWriter(bench.log)
    with pytest.raises(TrackerError, match="lost"):
        await bench.new_runner().drain()
    target = KEYS.partition(SITE, owner_of_order(ORDER))
    told_once = len(bench.log.partitions[target])
    bench.runner = bench.new_runner()
    await bench.drain()
    assert len(bench.log.partitions[target]) == told_once + 1
    await bench.send(refunded(2, ORDER, 5))
    assert await bench.count("revenue:EUR") == 15_000_000
    assert await bench.count("refunds") == 1


async def test_a_log_that_takes_nothing_is_waited_for_and_nothing_is_lost() -> None:
    bench, _ = await told()
    bench.add(bought(0, ORDER, 5))
    bench.log.refusal = TrackerError(Code.LOG_FULL, "no space")
    with pytest.raises(TrackerError):
        await bench.runner.tick(wait_ms=0)
    assert position(bench) == 1
    bench.log.refusal = None
    bench.runner = bench.new_runner()
    await bench.drain()
    assert await bench.count("orders") == 1


async def test_a_torn_partition_stops_and_says_what_to_do() -> None:
    bench, store = await told()
    store.tear(HOME, "half")
    bench.add(at(0))
    runner = bench.new_runner()
    await runner.drain()
    assert list(runner.stopped) == [HOME]
    assert "tracker rebuild" in runner.stopped[HOME]
    assert await bench.count("views") == 0


async def test_a_torn_partition_does_not_keep_the_others_from_being_folded() -> None:
    bench, store = await told()
    [other] = visitors_in((HOME + 1) % PARTITIONS, 1)
    store.tear(HOME, "half")
    bench.add(at(0), at(0, visitor=other))
    await bench.new_runner().tick(wait_ms=0)
    assert await bench.count("views") == 1


async def test_a_partition_that_tears_under_the_runner_stops_alone() -> None:
    bench, store = await told()
    [other] = visitors_in((HOME + 1) % PARTITIONS, 1)
    bench.add(at(0), at(0, visitor=other))
    store.instead.append(lambda: store.tear(HOME, "half"))
    await bench.drain()
    assert position(bench) == 1
    assert await bench.count("views") == 1


async def test_another_log_is_not_folded_into_the_store() -> None:
    bench, store = await told()
    before = position(bench)
    other = Bench(log=MemoryLog(), store=store)
    other.add(at(0), at(1))
    await other.drain()
    assert position(bench) == before
    assert await bench.count("views") == 0


async def test_what_cannot_be_read_is_set_aside_and_holds_up_nothing() -> None:
    bench, _ = await told()
    bench.log.add([Unappended(HOME, b'{"v":9}')])
    await bench.send(at(0))
    assert await bench.count("views") == 1
    assert await bench.ledger("") == {"quarantined": 1}
    kept = (await bench.containers(HOME))[QUARANTINE]
    assert list(kept) == [b"1"]


async def test_refusals_of_a_collector_stand_in_the_ledger() -> None:
    bench, _ = await told()
    marker = MarkerRecord(received_at_ms=1, rejected={SITE: {"future": 2}})
    bench.add(marker, marker)
    await bench.drain()
    raw = (await bench.containers(1))["ledger"][SITE.encode()]
    assert raw == b'{"rejected":{"future":4}}'


async def test_the_watermark_is_the_received_time_and_imports_do_not_move_it() -> None:
    bench, store = await told()
    await bench.send(at(0, received=HOUR), at(1, received=2 * HOUR, trust="import"))
    meta = (await store.metas())[HOME]
    assert meta.watermark_ms == at(HOUR).occurred_at_ms
    assert meta.horizon_ms == at(2 * HOUR).occurred_at_ms


async def test_it_folds_what_comes_while_it_runs_and_stops_when_told() -> None:
    bench, _ = await told()
    bench.add(at(0))
    await running(bench, lambda: position(bench) == 2)
    assert await bench.count("views") == 1


async def test_pieces_of_any_size_end_where_the_log_ends() -> None:
    bench, _ = await told()
    bench.add(*(at(n) for n in range(20)))
    bench.reader = ChunkedReader(bench.reader, [1, 3])
    await Runner(bench.parts()).drain()
    assert position(bench) == 21
    assert await bench.count("views") == 20


async def test_a_store_that_came_back_older_while_idle_is_folded_again():
    """Nothing new is read, so no commit can be refused: the owner has to look."""
    bench = Bench()
    bench.add(at(0))
    await bench.drain()
    older = bench.store.fork()
    bench.add(at(60_000))
    await bench.drain()
    assert await bench.count("views") == 2
    bench.store._partitions = older._partitions
    assert await bench.count("views") == 1
    await bench.runner._verify()
    await bench.drain()
    assert await bench.count("views") == 2
