"""Touches, and which of them a conversion is credited to.

A touch is an arrival: the first event of a session, and any later landing in it with UTM values,
a click id or a foreign referrer; one source is one touch a session. The model here is the last
touch, direct ones included. Source: SEMANTICS, attribution.
"""

from __future__ import annotations

from consumers.fold import LOOKBACK_MS
from consumers.state import TOUCHES_MAX, Past, Recent, Touch, Visit

NOBODY = -1


def touch(past: Past, visit: Visit, event: Recent, traffic: int) -> None:
    """Remember that the visitor arrived by `traffic`, unless this source did so in this session."""
    if event.source in visit.sources:
        return
    visit.sources.append(event.source)
    past.touches.append(Touch(event.t_ms, traffic))
    oldest = event.t_ms - LOOKBACK_MS
    past.touches = [kept for kept in past.touches if kept.t_ms >= oldest][-TOUCHES_MAX:]


def credit(past: Past, event: Recent) -> int:
    """Return the traffic of the last touch within the look-back of the conversion, or NOBODY.

    A touch of the conversion's own instant counts; a later one never does.
    """
    for candidate in reversed(past.touches):
        if candidate.t_ms <= event.t_ms:
            within = event.t_ms - candidate.t_ms <= LOOKBACK_MS
            return candidate.traffic if within else NOBODY
    return NOBODY
