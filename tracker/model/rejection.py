"""Why an event is refused. A refusal is a value that is counted, never an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every reason there is. The value is what senders and the ledger see."""

    UNKNOWN_SITE = "unknown_site"
    BAD_JSON = "bad_json"
    BAD_ENCODING = "bad_encoding"
    EMPTY = "empty"
    NOT_AN_OBJECT = "not_an_object"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    TOO_DEEP = "too_deep"
    BAD_TYPE = "bad_type"
    BAD_FIELD = "bad_field"
    MISSING_NAME = "missing_name"
    TOO_LONG = "too_long"
    BAD_TIME = "bad_time"
    FUTURE = "future"
    TOO_OLD = "too_old"
    BAD_VALUE = "bad_value"
    BAD_CURRENCY = "bad_currency"
    TOO_MANY_PROPERTIES = "too_many_properties"
    BAD_SECRET = "bad_secret"  # noqa: S105 - a reason, not a password
    UNKNOWN_LINK = "unknown_link"
    BAD_ROW = "bad_row"


SENTENCES: dict[Reason, str] = {
    Reason.UNKNOWN_SITE: "No site of this name is configured here.",
    Reason.BAD_JSON: "The body is not JSON.",
    Reason.BAD_ENCODING: "The body cannot be unpacked, or not with an encoding that we know.",
    Reason.EMPTY: "There is no event in the request.",
    Reason.NOT_AN_OBJECT: "An event is a JSON object.",
    Reason.TOO_LARGE: "A request may hold 1 MB of unpacked body.",
    Reason.TOO_MANY: "A request may hold 500 events.",
    Reason.TOO_DEEP: "JSON may be nested 8 levels deep.",
    Reason.BAD_TYPE: "The type is impression, click, view or conversion.",
    Reason.BAD_FIELD: "A field has a value of the wrong type.",
    Reason.MISSING_NAME: "A conversion needs a name.",
    Reason.TOO_LONG: "An id or name may have 128 characters.",
    Reason.BAD_TIME: "A time is ISO 8601 with a zone, or epoch milliseconds.",
    Reason.FUTURE: "The event's time lies more than 5 minutes ahead.",
    Reason.TOO_OLD: "The event is older than this site accepts.",
    Reason.BAD_VALUE: "A value is a decimal number of at most a billion units.",
    Reason.BAD_CURRENCY: "A currency is a code of ISO 4217.",
    Reason.TOO_MANY_PROPERTIES: "An event may have 64 properties.",
    Reason.BAD_SECRET: "The secret key is not this site's.",
    Reason.UNKNOWN_LINK: "No link of this name is configured here.",
    Reason.BAD_ROW: "The row cannot be read as the mapping says.",
}
"""One sentence a reason, for people. Docs and answers read them here."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One refused event."""

    reason: Reason
    detail: str = ""  # what was wrong with it in particular; never echoes more than 80 characters

    def sentence(self) -> str:
        """Return what a person should read."""
        return f"{SENTENCES[self.reason]} {self.detail}".rstrip()
