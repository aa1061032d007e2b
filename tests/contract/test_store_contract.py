"""The contract of `tracker.ports.store`, on every back end, and where they must agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_backends import (
    BACKENDS,
    DEADLINE_S,
    LOG_ID,
    Backend,
    Memory,
    Owner,
    RealRedis,
    heard,
    running_server,
)

from tracker.backends.memory_store import NOTICES_WAITING_MAX, MemoryStore
from tracker.errors import Code, TrackerError
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Changes, Commit, Meta, Notice, Outcome, Store


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Backend]:
    backend = BACKENDS[request.param]()
    await backend.start(redis_url)
    yield backend
    await backend.stop()


@pytest.fixture
async def store(backend: Backend) -> Store:
    await backend.store.open_log(LOG_ID, PARTITIONS)
    return backend.store


OTHER = "another batch"


# --- the log's identity ---------------------------------------------------------------------


async def test_a_store_is_opened_again_for_the_same_log(store):
    await store.open_log(LOG_ID, PARTITIONS)


async def test_a_store_refuses_another_log_and_says_what_to_do(store):
    with pytest.raises(TrackerError, match=r"log-1.*log-2.*tracker rebuild") as caught:
        await store.open_log("log-2", PARTITIONS)
    assert caught.value.code == Code.LOG_CHANGED


async def test_a_store_refuses_another_partition_count_and_says_what_to_do(store):
    with pytest.raises(TrackerError, match=r"32 partitions.*16.*tracker rebuild") as caught:
        await store.open_log(LOG_ID, 16)
    assert caught.value.code == Code.STORE_MISCONFIGURED


async def test_the_first_commit_claims_a_partition_for_its_log(store):
    owner = await Owner.take(store)
    assert owner.meta.log_id == ""
    await owner.put()
    assert owner.meta.log_id == LOG_ID
    assert await store.commit([owner.batch(log_id="log-2")]) == [Outcome.LOG_CHANGED]


# --- commits --------------------------------------------------------------------------------


async def test_a_new_partition_stands_at_the_start(store):
    assert await store.metas() == [Meta()] * PARTITIONS


async def test_take_over_raises_the_epoch_and_nothing_else(store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1"}})
    assert await store.take_over(3) == replace(owner.meta, epoch=2)
    assert await store.snapshot(3) == (replace(owner.meta, epoch=2), {"a": {b"x": b"1"}})


async def test_a_commit_stores_changes_and_meta_together(store):
    owner = await Owner.take(store)
    commit = owner.batch({"a": {b"\xff\0": b"\0\r\n", b"": b""}, "_b": {b"y": b"2"}}, position=9)
    assert await store.commit([commit]) == [Outcome.APPLIED]
    expected = Meta(
        position=9, epoch=1, log_id=LOG_ID, token=commit.token, watermark_ms=1_000, horizon_ms=2_000
    )
    assert (await store.metas())[3] == expected
    assert await store.snapshot(3) == (
        expected,
        {"a": {b"\xff\0": b"\0\r\n", b"": b""}, "_b": {b"y": b"2"}},
    )


async def test_positions_beyond_two_to_the_53_stay_exact(store):
    owner = await Owner.take(store)
    far = 2**53 + 1
    assert await store.commit([owner.batch(position=far)]) == ["applied"]
    assert await store.commit([owner.batch(expected=far - 1, token=OTHER)]) == ["stale"]
    assert (await store.metas())[3].position == far


async def test_a_put_replaces_and_none_deletes(store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1", b"y": b"2"}})
    await owner.put({"a": {b"x": b"3", b"y": None, b"z": None}})
    assert await store.load_all(3, ["a"]) == {"a": {b"x": b"3"}}


async def test_a_container_goes_with_its_last_field_and_can_come_back(store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1"}, "b": {}})
    await owner.put({"a": {b"x": None}})
    assert (await store.snapshot(3))[1] == {}
    await owner.put({"a": {b"x": b"2"}})
    assert (await store.snapshot(3))[1] == {"a": {b"x": b"2"}}


async def test_a_drop_takes_the_whole_container_and_no_other(store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1"}, "ab": {b"x": b"2"}})
    await owner.put({"c": {b"z": b"3"}}, drops=["a", "never-there"])
    assert (await store.snapshot(3))[1] == {"ab": {b"x": b"2"}, "c": {b"z": b"3"}}


async def test_loads_return_what_exists_and_name_what_does_not(store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1", b"y": b"2"}})
    wanted = {"a": [b"x", b"gone"], "missing": [b"x"], "unasked": []}
    assert await store.load(3, wanted) == {"a": {b"x": b"1"}, "missing": {}, "unasked": {}}
    assert await store.load_all(3, ["a", "missing"]) == {
        "a": {b"x": b"1", b"y": b"2"},
        "missing": {},
    }
    assert await store.load(4, {"a": [b"x"]}) == {"a": {}}
    assert await store.load(3, {}) == {}


async def test_commits_of_several_partitions_are_judged_apart(store):
    owners = [await Owner.take(store, partition) for partition in range(4)]
    await store.take_over(1)
    commits = [owner.batch({"a": {b"p": b"%d" % owner.partition}}) for owner in owners]
    commits[2] = replace(commits[2], expected=7, token=OTHER)
    assert await store.commit(commits) == ["applied", "stale", "stale", "applied"]
    loaded = [await store.load_all(partition, ["a"]) for partition in range(4)]
    assert loaded == [{"a": {b"p": b"0"}}, {"a": {}}, {"a": {}}, {"a": {b"p": b"3"}}]


async def test_no_commits_are_answered_by_no_outcomes(store):
    assert await store.commit([]) == []


async def test_a_commit_sent_again_after_a_lost_reply_is_recognised(store):
    owner = await Owner.take(store)
    commit = await owner.put({"a": {b"x": b"1"}})
    before = await store.snapshot(3)
    assert await store.commit([commit]) == [Outcome.DUPLICATE]
    assert await store.snapshot(3) == before


async def test_a_lost_reply_is_recognised_by_the_next_owner_too(store):
    owner = await Owner.take(store)
    commit = await owner.put({"a": {b"x": b"1"}})
    await store.take_over(3)
    assert await store.commit([commit]) == [Outcome.DUPLICATE]


async def test_another_batch_to_the_same_position_is_no_duplicate(store):
    owner = await Owner.take(store)
    commit = await owner.put({"a": {b"x": b"1"}})
    assert await store.commit([replace(commit, token=OTHER)]) == [Outcome.STALE]
    assert await store.load_all(3, ["a"]) == {"a": {b"x": b"1"}}


async def test_an_owner_that_was_replaced_changes_nothing(store):
    zombie = await Owner.take(store)
    await zombie.put({"a": {b"x": b"1"}})
    owner = await Owner.take(store)
    before = await store.snapshot(3)
    assert await store.commit([zombie.batch({"a": {b"x": b"9"}}, drops=["b"])]) == ["stale"]
    assert await store.snapshot(3) == before
    await owner.put({"a": {b"x": b"2"}})
    assert await store.load_all(3, ["a"]) == {"a": {b"x": b"2"}}


@pytest.mark.parametrize("expected", [0, 2, 3])
async def test_a_commit_from_another_position_is_stale(store, expected):
    owner = await Owner.take(store)
    await owner.put()
    commit = owner.batch(expected=expected, position=expected + 1, token=OTHER)
    assert await store.commit([commit]) == [Outcome.STALE]


async def test_a_store_that_came_back_older_is_noticed_and_caught_up(backend, store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1"}})
    older = await backend.remember()
    lost = await owner.put({"a": {b"x": b"2"}, "b": {b"y": b"1"}})
    newest = await store.snapshot(3)
    await backend.go_back(older)
    assert await store.commit([owner.batch({"a": {b"x": b"3"}})]) == [Outcome.STALE]
    owner = await Owner.take(store)
    assert owner.meta.position == 1
    again = replace(lost, epoch=owner.meta.epoch)
    assert await store.commit([again]) == [Outcome.APPLIED]
    assert await store.snapshot(3) == (replace(newest[0], epoch=2), newest[1])


async def test_a_torn_partition_refuses_everything_and_says_so_in_its_meta(backend, store):
    owner = await Owner.take(store)
    done = await owner.put({"a": {b"x": b"1"}})
    await backend.tear(3)
    assert (await store.metas())[3].torn == "cut"
    assert await store.commit([owner.batch({"a": {b"x": b"2"}})]) == [Outcome.TORN]
    assert await store.commit([done]) == [Outcome.TORN]
    assert await store.commit([owner.batch(log_id="log-2")]) == [Outcome.TORN]
    assert (await store.take_over(3)).torn == "cut"
    other = await Owner.take(store, 4)
    await other.put()


async def test_wipe_forgets_everything_and_frees_the_store_for_another_log(backend, store):
    owner = await Owner.take(store)
    await owner.put({"a": {b"x": b"1"}, "_b": {b"y": b"2"}})
    await backend.tear(5)
    await store.wipe()
    assert await store.metas() == [Meta()] * PARTITIONS
    assert await store.snapshot(3) == (Meta(), {})
    assert await store.load_all(3, ["a"]) == {"a": {}}
    await store.open_log("log-2", PARTITIONS)


async def test_a_commit_of_two_thousand_fields_is_stored_whole(store):
    owner = await Owner.take(store)
    puts = {f"c:{n}": {b"f%d" % i: b"v" * (i % 90) for i in range(999 + n)} for n in range(3)}
    await owner.put(puts)
    assert (await store.snapshot(3))[1] == puts
    await owner.put({name: dict.fromkeys(fields) for name, fields in puts.items()})
    assert (await store.snapshot(3))[1] == {}


# Chunks of 500 values, and what a script's stack of 8,000 would not take at once.
@pytest.mark.parametrize("count", [249, 250, 251, 500, 501, 9_000])
async def test_a_container_may_have_any_number_of_changes(store, count):
    owner = await Owner.take(store)
    fields = {b"%d" % i: b"%d" % -i for i in range(count)}
    await owner.put({"a": fields | {b"keep": b"1"}})
    assert await store.load_all(3, ["a"]) == {"a": fields | {b"keep": b"1"}}
    await owner.put({"a": dict.fromkeys(fields)})
    assert await store.load_all(3, ["a"]) == {"a": {b"keep": b"1"}}


async def test_a_snapshot_is_of_one_instant(store):
    """Both containers always change together, and one of them comes and goes."""
    owner = await Owner.take(store)
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            here = b"%d" % (owner.meta.position + 1)
            name = f"n{owner.meta.position % 3}"
            gone = f"n{(owner.meta.position - 1) % 3}"
            await owner.put({"a": {b"at": here}, name: {b"at": here}}, drops=[gone])
            await asyncio.sleep(0)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        seen = set()
        while len(seen) < 25:
            meta, containers = await store.snapshot(3)
            seen.add(meta.position)
            if meta.position:
                assert len(containers) == 2
                assert {int(fields[b"at"]) for fields in containers.values()} == {meta.position}
            await asyncio.sleep(0)
        stop.set()


# --- notices --------------------------------------------------------------------------------


async def test_notices_begin_with_none_and_follow_the_commits(store):
    async with aclosing(store.notices()) as notices:
        assert await heard(notices) is None
        owner = await Owner.take(store)
        await owner.put({"c:m:1": {b"x": b"1", b"y": b"2"}, "ledger": {b"z": b"3"}})
        await owner.put({"c:m:1": {b"x": None}}, drops=["c:m:0"])
        first, second = await heard(notices), await heard(notices)
    assert first == Notice(
        partition=3,
        epoch=1,
        previous=0,
        position=1,
        watermark_ms=1_000,
        touched=(("c:m:1", b"x"), ("c:m:1", b"y"), ("ledger", b"z")),
    )
    assert second == Notice(
        partition=3,
        epoch=1,
        previous=1,
        position=2,
        watermark_ms=1_001,
        touched=(("c:m:1", b"x"),),
        dropped=("c:m:0",),
    )


async def test_private_containers_are_in_no_notice(store):
    async with aclosing(store.notices()) as notices:
        await heard(notices)
        owner = await Owner.take(store)
        await owner.put({"_visitors": {b"v": b"1"}, "names": {b"n": b"2"}}, drops=["_orders"])
        notice = await heard(notices)
    assert notice is not None
    assert (notice.touched, notice.dropped) == ((("names", b"n"),), ())


async def test_only_applied_commits_are_told(backend, store):
    async with aclosing(store.notices()) as notices:
        await heard(notices)
        owner = await Owner.take(store)
        commit = await owner.put({"a": {b"x": b"1"}})
        assert await store.commit([commit]) == ["duplicate"]
        assert await store.commit([owner.batch(expected=7, token=OTHER)]) == ["stale"]
        assert await store.commit([owner.batch(log_id="log-2")]) == ["log_changed"]
        other = await Owner.take(store, 4)
        await backend.tear(4)
        assert await store.commit([other.batch()]) == ["torn"]
        await owner.put()
        told = [await heard(notices), await heard(notices)]
    assert [notice and notice.position for notice in told] == [1, 2]


async def test_every_listener_hears_every_commit(store):
    async with aclosing(store.notices()) as one, aclosing(store.notices()) as two:
        assert (await heard(one), await heard(two)) == (None, None)
        owner = await Owner.take(store)
        await owner.put()
        first, second = await heard(one), await heard(two)
    assert first == second is not None


async def test_a_wipe_tells_listeners_to_read_again(store):
    async with aclosing(store.notices()) as notices:
        await heard(notices)
        await store.wipe()
        assert await heard(notices) is None


@pytest.mark.parametrize(("excess", "is_lost"), [(0, False), (1, True)])
async def test_a_listener_that_is_too_far_behind_is_told_to_read_again(excess, is_lost):
    store = MemoryStore()
    async with aclosing(store.notices()) as notices:
        await heard(notices)
        owner = await Owner.take(store)
        for _ in range(NOTICES_WAITING_MAX + excess):
            await owner.put()
        assert (await heard(notices) is None) == is_lost
    await store.close()


async def test_closing_the_store_ends_its_listeners(backend, store):
    async with aclosing(store.notices()) as notices, asyncio.timeout(DEADLINE_S):
        assert await anext(notices) is None
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(_drain(notices))
            await asyncio.sleep(0)
            await backend.store.close()
    assert ending.result() == []


async def _drain(notices: AsyncIterator[Notice | None]) -> list[Notice | None]:
    return [notice async for notice in notices]


# --- memory and Redis give the same answers -------------------------------------------------

_containers = st.sampled_from(["a", "c:m:1", "_own"])
_fields = st.sampled_from([b"x", b"y", b"\0\xff"])
_puts = st.dictionaries(
    _containers,
    st.dictionaries(_fields, st.none() | st.sampled_from([b"", b"1", b"\r\n"]), max_size=3),
    max_size=3,
)
_commits = st.builds(
    Commit,
    partition=st.integers(0, 1),
    expected=st.integers(0, 3),
    position=st.integers(0, 3),
    epoch=st.integers(0, 2),
    log_id=st.sampled_from([LOG_ID] * 6 + ["log-2"]),
    token=st.sampled_from(["s", "t"]),
    watermark_ms=st.integers(0, 9),
    horizon_ms=st.integers(0, 9),
    changes=st.builds(
        lambda puts, drops: Changes(puts=puts, drops=sorted(drops - puts.keys())),
        _puts,
        st.frozensets(_containers, max_size=2),
    ),
)
_steps = st.one_of(
    # Mostly commits that fit: random ones alone would hardly ever apply.
    st.tuples(st.just("next"), _commits),
    st.tuples(st.just("next"), _commits),
    st.tuples(st.just("commit"), _commits),
    st.tuples(st.just("again"), st.integers(0, 3)),
    st.tuples(st.just("take_over"), st.integers(0, 1)),
    st.tuples(st.just("load"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["remember", "go_back", "tear", "wipe"]), st.just(0)),
)


async def _answer(backend: Backend, step: tuple[str, Any], history: list[Any]) -> Any:
    """Do one step and return all that a caller can see of it."""
    (name, argument), store = step, backend.store
    if name == "next":
        meta = (await store.metas())[argument.partition]
        argument = replace(
            argument, expected=meta.position, position=meta.position + 1, epoch=meta.epoch
        )
    if name in ("next", "commit"):
        history.append(argument)
        return await store.commit([argument])
    if name == "again" and history:
        return await store.commit([history[-1 - argument % len(history)]])
    if name == "take_over":
        return await store.take_over(argument)
    if name == "load":
        wanted = {"a": [b"x", b"y"], "_own": [b"x"], "none": [b"x"]}
        return await store.load(argument, wanted), await store.load_all(argument, ["a", "none"])
    if name == "wipe":
        await store.wipe()
    if name == "tear":
        await backend.tear(1)
    return None


async def _compare(url: str, steps: list[tuple[str, Any]]) -> None:
    backends: list[Backend] = [Memory(), RealRedis()]
    histories: list[list[Any]] = [[], []]
    for backend in backends:
        await backend.start(url)
        await backend.store.open_log(LOG_ID, 2)
    older = [await backend.remember() for backend in backends]
    try:
        for step in steps:
            if step[0] == "remember":
                older = [await backend.remember() for backend in backends]
            if step[0] == "go_back":
                for backend, kept in zip(backends, older, strict=True):
                    await backend.go_back(kept)
            pairs = zip(backends, histories, strict=True)
            expected, got = [await _answer(backend, step, said) for backend, said in pairs]
            assert got == expected, step
            seen = [[await b.store.snapshot(p) for p in (0, 1)] for b in backends]
            assert seen[0] == seen[1], step
            metas = [await backend.store.metas() for backend in backends]
            assert metas[0] == metas[1]
    finally:
        for backend in backends:
            await backend.stop()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(_steps, min_size=4, max_size=25))
def test_memory_and_redis_agree_on_every_sequence(redis_url, steps):
    asyncio.run(_compare(redis_url, steps))
