"""Where keys lie in a cluster, and the bytes that processes tell each other through Redis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from tracker.backends.redis_format import (
    NOTICE_BYTES_MAX,
    READ_AGAIN,
    SLOTS,
    KeyNames,
    commit_command,
    decode_notice,
    encode_notice,
    pack_list,
    partition_tags,
    slot_of,
    unpack_list,
)
from tracker.model.keys import PARTITIONS
from tracker.ports.store import Changes, Commit, Notice

NAMES = KeyNames("tracker", 0)
GOLDEN_TAGS = ("0.13", "1.21", "2.60", "3.52", "30.41", "31.73")


def commit_of(changes: Changes, **said: str) -> Commit:
    fields = {"log_id": "log", "token": "batch"} | said
    return Commit(
        partition=3,
        expected=5,
        position=9,
        epoch=2,
        watermark_ms=7,
        horizon_ms=8,
        changes=changes,
        **fields,
    )


# Source: the test vector of the cluster specification, and answers of CLUSTER KEYSLOT.
@pytest.mark.parametrize(
    ("tag", "slot"),
    [("123456789", 0x31C3), ("foo", 12_182), ("somekey", 11_058), ("user1000", 3_443), ("", 0)],
)
def test_slots_are_those_of_a_redis_cluster(tag, slot):
    assert slot_of(tag) == slot


@given(st.text(st.characters(codec="ascii", exclude_characters="{}"), max_size=12))
def test_slots_are_those_that_the_client_computes(tag):
    assert slot_of(tag) == key_slot(tag.encode())


def test_every_equal_range_of_slots_holds_one_partition():
    width = SLOTS // PARTITIONS
    assert [slot_of(tag) // width for tag in partition_tags()] == list(range(PARTITIONS))


def test_tags_are_stored_format_and_never_change():
    assert partition_tags()[:4] + partition_tags()[-2:] == GOLDEN_TAGS


def test_the_keys_of_a_partition_share_its_tag_also_when_a_container_has_braces():
    tag = partition_tags()[3]
    assert NAMES.meta(3) == f"tracker:{{{tag}}}:meta"
    assert NAMES.containers(3) == f"tracker:{{{tag}}}:containers"
    assert NAMES.hash(3, "c:{m}:1") == f"tracker:{{{tag}}}:h:c:{{m}}:1"
    assert NAMES.installation == "tracker:meta"


def test_installations_in_two_databases_of_one_server_do_not_hear_each_other():
    assert KeyNames("tracker", 0).channel != KeyNames("tracker", 1).channel


_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_numbers = st.integers(0, 2**63)


@given(
    st.builds(
        Notice,
        partition=st.integers(0, 31),
        epoch=_numbers,
        previous=_numbers,
        position=_numbers,
        watermark_ms=_numbers,
        # A container's fields stand together, as a commit names them.
        touched=st.dictionaries(_words, st.lists(st.binary(max_size=9), min_size=1)).map(
            lambda found: tuple((name, field) for name, fields in found.items() for field in fields)
        ),
        dropped=st.lists(_words).map(tuple),
    )
)
def test_a_notice_is_read_as_it_was_written(notice):
    assert decode_notice(encode_notice(notice)) == notice


@given(st.binary(max_size=120))
def test_foreign_bytes_on_the_channel_only_make_readers_read_again(raw):
    assert decode_notice(raw) is None or encode_notice(decode_notice(raw)) is not None
    assert decode_notice(b"\xff" + raw) is None


def test_every_cut_of_a_notice_makes_readers_read_again():
    whole = encode_notice(
        Notice(
            partition=1,
            epoch=2,
            previous=3,
            position=4,
            watermark_ms=5,
            touched=(("a", b"x"), ("b", b"y")),
            dropped=("c",),
        )
    )
    assert {decode_notice(whole[:length]) for length in range(len(whole))} == {None}
    assert decode_notice(whole + b"\0") is None
    assert decode_notice(READ_AGAIN) is None


@given(st.lists(st.binary(max_size=300)))
def test_a_packed_list_is_read_as_it_was_written(strings):
    packed = pack_list(strings)
    assert unpack_list(b"#" + packed, 1) == (strings, 1 + len(packed))


def test_a_commit_declares_every_key_that_it_touches():
    puts = {"a": {b"x": b"1", b"y": None}, "b": {b"z": None}}
    _, _, count, *rest = commit_command(NAMES, commit_of(Changes(puts=puts, drops=["c"])))
    keys, arguments = rest[: int(count)], rest[int(count) :]
    assert keys == [
        NAMES.meta(3),
        NAMES.containers(3),
        *(NAMES.hash(3, container) for container in ("c", "a", "b")),
    ]
    assert arguments[:7] == [5, 9, 2, "log", "batch", 7, 8]
    assert arguments[9:] == [
        *("c", "drop", pack_list([]), pack_list([])),
        *("a", "put", pack_list([b"x", b"1"]), pack_list([b"y"])),
        *("b", "put", pack_list([]), pack_list([b"z"])),
    ]


@pytest.mark.parametrize(("excess", "is_told"), [(0, True), (1, False)])
def test_a_notice_is_told_up_to_its_limit(excess, is_told):
    def told(name: bytes) -> bytes:
        return commit_command(NAMES, commit_of(Changes(puts={"a": {name: b""}})))[-5]

    room = NOTICE_BYTES_MAX - len(told(b""))
    assert (told(b"x" * (room + excess)) != READ_AGAIN) == is_told


@pytest.mark.parametrize("missing", ["token", "log_id"])
def test_a_commit_without_a_name_is_our_bug(missing):
    with pytest.raises(AssertionError, match="names its batch and its log"):
        commit_command(NAMES, commit_of(Changes(), **{missing: ""}))


def test_a_container_that_is_dropped_and_put_is_our_bug():
    with pytest.raises(AssertionError, match="dropped and has puts"):
        commit_command(NAMES, commit_of(Changes(puts={"a": {b"x": b"1"}}, drops=["a"])))
