"""Funnels: closed, in loose order, one attempt a visitor at a time.

An attempt begins with a first-step event, takes each next step as it comes within the funnel's
time, and is over when the time ran out or the last step was reached; then the next first-step
event begins another. Every step counts in the bucket of the attempt's entry, by the time it took,
so that young cohorts are compared with old ones at equal age. Source: SEMANTICS, funnels.
"""

from __future__ import annotations

from consumers.fold import NOTHING, count_again
from consumers.run import Run, previous_by_dimension
from consumers.sites import FunnelView
from consumers.state import ATTEMPTS_MAX, Attempt, Past, Recent
from tracker.model.cell import elapsed_class, funnel_unique

FIRST_STEP = 1


def advance(run: Run, past: Past, event: Recent, traffic: int) -> None:
    """Move every funnel that `event` has a step in. One event satisfies one step."""
    for number, mask in event.steps:
        view = run.view.funnels.get(number)
        if view is None:
            continue  # the funnel was changed or removed: its attempts count no further
        attempts = [attempt for attempt in past.attempts if attempt.funnel == number]
        current = attempts[-1] if attempts else None
        if current is not None and not _is_over(view, current, event.t_ms):
            if mask >> (len(current.after_ms) + 1) & 1:
                current.after_ms.append(event.t_ms - current.t_ms)
                _reach(run, view, attempts)
        elif mask & 1:
            attempt = Attempt(number, traffic, event.client, event.t_ms, event.day, [])
            past.attempts.append(attempt)
            attempts.append(attempt)
            if len(attempts) > ATTEMPTS_MAX:
                past.attempts.remove(_least_needed(attempts))
            _reach(run, view, attempts)


def _least_needed(attempts: list[Attempt]) -> Attempt:
    """Return the attempt to forget: one that a later one covers, else the oldest.

    Who reached a step counts by the latest attempt that did, so an earlier one of the same rows
    that got no further is never asked for again.
    """
    for place, early in enumerate(attempts):
        for later in attempts[place + 1 :]:
            is_same = (early.traffic, early.client) == (later.traffic, later.client)
            if is_same and len(early.after_ms) <= len(later.after_ms):
                return early
    return attempts[0]


def _is_over(view: FunnelView, attempt: Attempt, t_ms: int) -> bool:
    is_complete = len(attempt.after_ms) + 1 == len(view.funnel.steps)
    return is_complete or t_ms - attempt.t_ms > view.funnel.within_ms


def _reach(run: Run, view: FunnelView, attempts: list[Attempt]) -> None:
    """Count the step that the newest attempt has just reached.

    In any range a visitor counts once a step: an earlier attempt that got as far gives way.
    """
    if run.sink is NOTHING:
        return
    current = attempts[-1]
    step = len(current.after_ms) + 1
    earlier = [attempt for attempt in attempts[:-1] if len(attempt.after_ms) + 1 >= step]
    combo = run.combo(current.traffic, current.client)
    now = (current.t_ms, current.day)
    name = _unique(view, current, step)
    for part, previous in previous_by_dimension(combo, earlier, run.combo):
        moment = (previous.t_ms, previous.day) if previous else None
        before = _unique(view, previous, step) if previous else name
        count_again(run.sink, part, (before, name), moment, now)


def _unique(view: FunnelView, attempt: Attempt, step: int) -> str:
    elapsed_ms = attempt.after_ms[step - 2] if step > FIRST_STEP else 0
    return funnel_unique(view.funnel.name, view.since, step, elapsed_class(elapsed_ms))
