"""How commands speak: answers on stdout, everything else on stderr, colour where it is wanted.

Tables, progress bars and the shape of the logs stand here; rich honours NO_COLOR by itself. A
number is shown as it was given: ratios with their two numbers, money with its currency.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import orjson
import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

NOTHING = "—"
TABLE_WIDTH_MIN = 100
"""A pipe has no width: what is wider than this wraps there."""


def answers() -> Console:
    """Return the console of answers: stdout."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal and console.width < TABLE_WIDTH_MIN:
        console.width = TABLE_WIDTH_MIN
    return console


def remarks() -> Console:
    """Return the console of everything else: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Write one answer as it is."""
    answers().print(text, markup=False, soft_wrap=True)


def remark(text: str, style: str = "") -> None:
    """Write one sentence to stderr."""
    remarks().print(text, markup=False, style=style)


def say_json(value: object) -> None:
    """Write one answer for programs: JSON on one line."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def say_table(table: Table) -> None:
    """Write one table."""
    answers().print(table)


def new_table(title: str = "") -> Table:
    """Return an empty table in the style of all of them."""
    return Table(title=title or None, title_justify="left", header_style="bold", show_edge=False)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the block runs; it is called with (done, total).

    Without a terminal there is no bar: a log file wants none.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=remarks(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=None, rate="")

        def move(done: int, total: int) -> None:
            speed = bar.tasks[task].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, completed=done, total=total or None, rate=rate)

        yield move


def show_value(value: object) -> str:
    """Return one value of a report as people read it.

    Shape: a count; {"value", "numerator", "denominator"}, with "currency" for money by piece;
    {"amount", "currency"}, with "by_currency" when there are several; "estimate" marks a guess.
    """
    if isinstance(value, Mapping):
        about = "≈ " if value.get("estimate") else ""
        if "amount" in value:
            return about + _money(value)
        if "denominator" in value:
            return about + _ratio(value)
        return about + show_value(value.get("value"))
    if value is None:
        return NOTHING
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _money(value: Mapping[str, Any]) -> str:
    if value["amount"] is None:
        parts = value.get("by_currency") or {}
        listed = [f"{_digits(amount)} {currency}" for currency, amount in parts.items()]
        return " + ".join(listed) or NOTHING
    return f"{_digits(value['amount'])} {value.get('currency') or ''}".rstrip()


def _ratio(value: Mapping[str, Any]) -> str:
    found = value.get("value")
    parts = f"({_digits(value['numerator'])} / {_digits(value['denominator'])})"
    if found is None:
        return f"{NOTHING} {parts}"
    if value.get("currency"):
        return f"{_digits(round(Decimal(str(found)), 2))} {value['currency']} {parts}"
    return f"{float(found):.2%} {parts}"


def _digits(amount: object) -> str:
    try:
        return f"{Decimal(str(amount)):,}"
    except ArithmeticError:
        return str(amount)


def configure_logs(log_format: str) -> None:
    """Send logs to stderr: lines for people on a terminal or when asked, else JSON lines."""
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if for_people
        else structlog.processors.JSONRenderer(
            serializer=lambda event, **_: orjson.dumps(event, default=str).decode()
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries log through the standard library goes the same way, from warnings up.
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        logger.log(record.levelno, record.getMessage(), **fields)
