"""The ids of imported rows, remembered for good: an import can be repeated months later.

Ids are kept as 8-byte keyed hashes in pages by their first bits: 1 kB a page at a million rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.state import key_bytes

PAGES = 256
"""Pages a partition. A million rows over 32 partitions are 122 ids of 8 bytes in each."""

IDS_CACHED_MAX = 50_000
"""Ids that a partition keeps in memory, at some 70 bytes each: 110 MB for all 32."""

_SHIFT = 63 - (PAGES - 1).bit_length()
"""Digests have 63 bits; the first of them name the page."""


class ImportedIds:
    """Ids of one partition, page by page as they are needed."""

    def __init__(self) -> None:
        self._pages: dict[bytes, set[int]] = {}
        self._moved: set[bytes] = set()

    def missing(self, digests: Iterable[int]) -> list[bytes]:
        """Return the fields that have to be loaded before `digests` can be looked up."""
        return sorted({_field(digest) for digest in digests} - self._pages.keys())

    def absorb(self, asked: Iterable[bytes], loaded: Mapping[bytes, bytes]) -> None:
        """Take loaded pages in; what was asked for and not found is empty."""
        for field in asked:
            raw = loaded.get(field, b"")
            self._pages[field] = {
                int.from_bytes(raw[start : start + 8], "big") for start in range(0, len(raw), 8)
            }

    def add(self, digest: int) -> bool:
        """Remember `digest`; tell whether it is new."""
        field = _field(digest)
        page = self._pages[field]
        if digest in page:
            return False
        page.add(digest)
        self._moved.add(field)
        return True

    def puts(self) -> dict[bytes, bytes | None]:
        """Return the moved pages' absolute values, and begin anew."""
        moved: dict[bytes, bytes | None] = {
            field: b"".join(map(key_bytes, sorted(self._pages[field])))
            for field in sorted(self._moved)
        }
        self._moved.clear()
        return moved

    def trim(self) -> None:
        """Forget what is stored when there is much of it; to be called between batches."""
        if sum(map(len, self._pages.values())) > IDS_CACHED_MAX:
            self._pages.clear()


def _field(digest: int) -> bytes:
    return (digest >> _SHIFT).to_bytes(1, "big")
