"""Operations that failed, in one shape.

Three kinds of error are never mixed: a *rejection* (bad input) is a value that is counted, see
`tracker.model.rejection`; a `TrackerError` is an operation that failed; an `AssertionError` is our
bug. `TrackerError.code` is mapped to HTTP in one table, `tracker.web.problems`.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """What kind of operation failed. The value is what programs see."""

    INVALID = "invalid"  # the caller asked for something that makes no sense
    NOT_FOUND = "not_found"
    UNAUTHORIZED = "unauthorized"
    LOG_UNAVAILABLE = "log_unavailable"  # an append could not be made durable
    LOG_FULL = "log_full"  # no space for the log
    LOG_LOCKED = "log_locked"  # another process writes this log
    LOG_CHANGED = "log_identity_changed"  # the log is not the one the store was built from
    STORE_UNAVAILABLE = "state_unavailable"  # the store did not answer
    STORE_MISCONFIGURED = "store_misconfigured"
    TORN = "torn"  # a commit was cut in the middle: only a rebuild helps
    PREREQUISITE = "prerequisite_missing"  # a program or setting of the machine
    CONFIGURATION = "configuration"


RETRYABLE = frozenset({Code.LOG_UNAVAILABLE, Code.LOG_FULL, Code.STORE_UNAVAILABLE})


class TrackerError(Exception):
    """An operation that failed: what happened, to what, and what to do about it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Tell whether the same call may succeed later without anybody's help."""
        return self.code in RETRYABLE
