"""The names and bytes that the store puts into Redis: keys, hash tags, packed lists, notices.

    name:meta                what the store was built from: format, log id, partition count
    name:{tag}:meta          where a partition stands
    name:{tag}:containers    the set of its containers that exist
    name:{tag}:h:CONTAINER   one hash a container

Pure, for `redis_store` alone; everything here is part of the stored format or of what processes of
one version tell each other. It must not talk to Redis.
"""

from __future__ import annotations

import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tracker.model.keys import PARTITIONS
from tracker.ports.store import Commit, Notice, notice_of

SLOTS = 16_384
"""Of a Redis Cluster, cut into ranges that nodes own."""
NOTICE_BYTES_MAX = 1 << 20
"""A batch touches some 2,000 fields of 40 bytes; a larger notice only says: read again. A reader
that is 8 of them behind for a minute is cut off by Redis (client-output-buffer-limit pubsub)."""
READ_AGAIN = b""
"""The notice that says that everything may have changed."""

COMMIT = (Path(__file__).parent / "commit.lua").read_bytes()
COMMIT_SHA = hashlib.sha1(COMMIT, usedforsecurity=False).hexdigest()

_LENGTH = struct.Struct(">I")
_NOTICE = struct.Struct(">BHQQQQI")
_NOTICE_VERSION = 1


def slot_of(tag: str) -> int:
    """Return the cluster slot of the keys that carry `tag` in braces.

    Source: Redis Cluster specification; its CRC16 (XMODEM) is `binascii.crc_hqx` from 0.
    """
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@cache
def partition_tags() -> tuple[str, ...]:
    """Return the hash tag of every partition: one in each of PARTITIONS equal ranges of slots.

    Nodes own ranges of slots, so this spreads the partitions evenly over them, where plain
    numbers may put half of them on one node. The tags are part of the stored format.
    """
    width = SLOTS // PARTITIONS
    tags = []
    for partition in range(PARTITIONS):
        number = 0
        while slot_of(f"{partition}.{number}") // width != partition:
            number += 1
        tags.append(f"{partition}.{number}")
    return tuple(tags)


def encode_notice(notice: Notice) -> bytes:
    """Return the bytes of a notice.

    Shape: fixed header, then for each container that was touched its list with the name in front,
    then the list of those dropped. A list is a count and strings with their lengths.
    """
    touched: dict[str, list[bytes]] = {}
    for container, name in notice.touched:
        touched.setdefault(container, [container.encode()]).append(name)
    header = _NOTICE.pack(
        _NOTICE_VERSION,
        notice.partition,
        notice.epoch,
        notice.previous,
        notice.position,
        notice.watermark_ms,
        len(touched),
    )
    lists = [*touched.values(), [name.encode() for name in notice.dropped]]
    return header + b"".join(map(pack_list, lists))


def decode_notice(raw: bytes) -> Notice | None:
    """Return what `encode_notice` wrote; None of anything else: the reader reads again then."""
    try:
        version, partition, epoch, previous, position, watermark_ms, count = _NOTICE.unpack_from(
            raw
        )
        if version != _NOTICE_VERSION:
            return None
        at = _NOTICE.size
        lists = []
        for _ in range(count + 1):
            strings, at = unpack_list(raw, at)
            lists.append(strings)
    except struct.error:
        return None
    if at != len(raw):
        return None
    return Notice(
        partition=partition,
        epoch=epoch,
        previous=previous,
        position=position,
        watermark_ms=watermark_ms,
        touched=tuple((names[0].decode(), name) for names in lists[:-1] for name in names[1:]),
        dropped=tuple(name.decode() for name in lists[-1]),
    )


def pack_list(strings: Sequence[bytes]) -> bytes:
    """Return a count and the strings, each with its length in front; commit.lua reads it too."""
    parts = [_LENGTH.pack(len(strings))]
    for string in strings:
        parts.append(_LENGTH.pack(len(string)))
        parts.append(string)
    return b"".join(parts)


def unpack_list(raw: bytes, at: int) -> tuple[list[bytes], int]:
    """Return the list that stands at `at`, and where it ends."""
    (count,) = _LENGTH.unpack_from(raw, at)
    at += _LENGTH.size
    strings = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        strings.append(raw[at : at + length])
        at += length
    return strings, at


@dataclass(frozen=True, slots=True)
class KeyNames:
    """The keys and the channel of one installation."""

    name: str
    database: int

    @property
    def installation(self) -> str:
        """Return the key of what belongs to no partition."""
        return f"{self.name}:meta"

    @property
    def channel(self) -> str:
        """Return the channel of notices. Channels know no database numbers, so it has one."""
        return f"{self.name}:notices:{self.database}"

    @property
    def partitions_pattern(self) -> str:
        """Return what matches every key of every partition."""
        return f"{self.name}:{{*"

    def meta(self, partition: int) -> str:
        """Return the key of a partition's meta."""
        return self._of(partition, "meta")

    def containers(self, partition: int) -> str:
        """Return the key of the set of containers that exist."""
        return self._of(partition, "containers")

    def hash(self, partition: int, container: str) -> str:
        """Return the key of a container."""
        return self._of(partition, f"h:{container}")

    def _of(self, partition: int, rest: str) -> str:
        return f"{self.name}:{{{partition_tags()[partition]}}}:{rest}"


def commit_command(names: KeyNames, commit: Commit) -> tuple[str | bytes | int, ...]:
    """Return the command that runs commit.lua, where its arguments are described."""
    if not commit.token or not commit.log_id:
        raise AssertionError("a commit names its batch and its log")
    partition, changes = commit.partition, commit.changes
    notice = encode_notice(notice_of(commit))
    keys = [names.meta(partition), names.containers(partition)]
    arguments: list[str | bytes | int] = [
        commit.expected,
        commit.position,
        commit.epoch,
        commit.log_id,
        commit.token,
        commit.watermark_ms,
        commit.horizon_ms,
        names.channel,
        notice if len(notice) <= NOTICE_BYTES_MAX else READ_AGAIN,
    ]
    for container in changes.drops:
        if container in changes.puts:
            raise AssertionError(f"{container} is dropped and has puts")
        keys.append(names.hash(partition, container))
        arguments += (container, "drop", pack_list(()), pack_list(()))
    for container, fields in changes.puts.items():
        puts: list[bytes] = []
        deletes: list[bytes] = []
        for name, value in fields.items():
            if value is None:
                deletes.append(name)
            else:
                puts += (name, value)
        keys.append(names.hash(partition, container))
        arguments += (container, "put", pack_list(puts), pack_list(deletes))
    return ("EVALSHA", COMMIT_SHA, len(keys), *keys, *arguments)
