"""What a report or a funnel is asked, read from the parameters of a request.

A parameter that nobody knows, and one that this version cannot answer, is an error that says what
there is instead: an answer to another question than the one asked is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tracker.errors import Code, TrackerError
from tracker.model.cell import TOTAL, Audience
from tracker.model.definition import Site
from tracker.model.record import DIMENSIONS
from tracker.query.known import listed, short
from tracker.query.ranges import Asked

Given = Mapping[str, Sequence[str]]
"""Parameter → what it was given, in order."""

SELECTION = ("site", "by", "where", "bots", "window", "from", "to", "tz")
"""Parameters that every question has."""

_BOTS = {
    "exclude": (Audience.PEOPLE,),
    "include": (Audience.PEOPLE, Audience.BOTS),
    "only": (Audience.BOTS,),
}

_FIXED = {
    "model": ("last", "credit goes to the last touch"),
    "basis": ("first_party", "every figure is our own count"),
}
_NOT_AVAILABLE = {
    "compare": "ask for the earlier range with from= and to=",
    "currency": "money is shown in the currency in which it was sent",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which counters a question is about.

    `dimension` is TOTAL for the site as a whole; `value` keeps one value of it. `by` says that
    rows are wanted.
    """

    site: Site
    audiences: tuple[Audience, ...]
    dimension: str
    value: str | None
    by: str
    asked: Asked


def check_names(given: Given, known: Iterable[str]) -> None:
    """Refuse parameters that are not among `known`.

    Errors: TrackerError INVALID, which lists those that are.
    """
    names = set(known)
    for name in given:
        if name not in names:
            raise TrackerError(
                Code.INVALID,
                f"There is no parameter {short(name)!r} here; there are {listed(sorted(names))}.",
            )


def check_available(given: Given) -> None:
    """Refuse what is part of the interface but not of this version.

    Errors: TrackerError INVALID.
    """
    for name, (value, sentence) in _FIXED.items():
        if one(given, name, value) != value:
            raise TrackerError(
                Code.INVALID,
                f"{name}={short(one(given, name))} is not available in this version: {sentence}, "
                f"{name}={value}.",
            )
    for name, instead in _NOT_AVAILABLE.items():
        if one(given, name):
            raise TrackerError(
                Code.INVALID, f"{name}= is not available in this version: {instead}."
            )


def one(given: Given, name: str, default: str = "") -> str:
    """Return a parameter that may be given once; empty means not given.

    Errors: TrackerError INVALID.
    """
    values = given.get(name, ())
    if len(values) > 1:
        raise TrackerError(Code.INVALID, f"{name}= is given {len(values)} times; once is enough.")
    return values[0] if values and values[0] else default


def number(given: Given, name: str, default: int, limits: tuple[int, int]) -> int:
    """Return a parameter that is a whole number within `limits`, both included.

    Errors: TrackerError INVALID.
    """
    text = one(given, name, str(default))
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        value = int(text)
        if limits[0] <= value <= limits[1]:
            return value
    raise TrackerError(
        Code.INVALID,
        f"{name}={short(text)} is no whole number from {limits[0]} to {limits[1]}.",
    )


def read_selection(given: Given, site: Site) -> Selection:
    """Return what `given` says of audience, dimension and range.

    Errors: TrackerError INVALID.
    """
    by = _by(one(given, "by"), site)
    bots = one(given, "bots", "exclude")
    if bots not in _BOTS:
        raise TrackerError(
            Code.INVALID, f"bots={short(bots)} is none of {listed(_BOTS)}; exclude is the default."
        )
    dimension, value = _where(given.get("where", ()), site)
    if value is not None and by and by != dimension:
        raise _no_cube(site, (by, dimension))
    asked = Asked(
        one(given, "window"), one(given, "from"), one(given, "to"), one(given, "tz").strip()
    )
    return Selection(site, _BOTS[bots], by or dimension, value, by, asked)


def _by(text: str, site: Site) -> str:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        _check_dimension(name, site)
    if len(set(names)) > 1:
        raise _no_cube(site, names)
    return names[0] if names else TOTAL


def _where(filters: Sequence[str], site: Site) -> tuple[str, str | None]:
    found: dict[str, str] = {}
    for text in filters:
        if not text:
            continue
        name, colon, value = text.partition(":")
        if not colon:
            raise TrackerError(
                Code.INVALID,
                f"where={short(text)} is no filter; one is like where=utm_source:google.",
            )
        _check_dimension(name, site)
        if found.setdefault(name, value) != value:
            raise TrackerError(
                Code.INVALID,
                f"Two filters of {name} are and-ed, and nothing has both values: ask for one, or "
                f"for by={name} with search=.",
            )
    if len(found) > 1:
        raise _no_cube(site, list(found))
    return next(iter(found.items()), (TOTAL, None))


def _check_dimension(name: str, site: Site) -> None:
    if name in site.dimensions:
        return
    if name in DIMENSIONS:
        raise TrackerError(
            Code.INVALID,
            f"Site {site.key!r} does not count by {name}: add it to dimensions under "
            f"[site.{site.key}] in tracker.toml; it counts from then on. "
            f"It counts by {listed(site.dimensions)}.",
        )
    raise TrackerError(
        Code.INVALID,
        f"There is no dimension {short(name)!r}; site {site.key!r} counts by "
        f"{listed(site.dimensions)}.",
    )


def _no_cube(site: Site, names: Sequence[str]) -> TrackerError:
    cube = listed(f'"{name}"' for name in dict.fromkeys(names))
    return TrackerError(
        Code.INVALID,
        f"The combination of {listed(dict.fromkeys(names))} is not kept. It would be the cube "
        f"cubes = [[{cube}]] under [site.{site.key}]; this version counts by one dimension at a "
        "time, so ask for one.",
    )
