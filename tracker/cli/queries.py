"""`tracker report`, `tracker funnel`, `tracker status`: what the API answers, as tables.

Options mirror the API's parameters, so this module knows no metric and checks nothing: the server
does, and its words are shown. `--json` prints the answer as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from tracker import __version__
from tracker.cli.ask import Control, Server, default_url
from tracker.cli.options import ConfigOption, DataOption, JsonOption, SiteOption, UrlOption
from tracker.cli.terminal import NOTHING, new_table, say, say_json, say_table, show_value
from tracker.errors import Code, TrackerError
from tracker.installation import Places
from tracker.settings import load_settings

app = typer.Typer()

ByOption = Annotated[str | None, typer.Option("--by", help="A dimension: one row per value.")]
WindowOption = Annotated[
    str | None, typer.Option("--window", help="The range that ends now: 5m, 1h, 24h, 7d, …")
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Start of the range: ISO 8601, or epoch ms.")
]
ToOption = Annotated[str | None, typer.Option("--to", help="End of the range, not in it.")]
BotsOption = Annotated[str | None, typer.Option("--bots", help="exclude, include or only.")]
WhereOption = Annotated[
    list[str] | None, typer.Option("--where", help="dimension:value; may be repeated.")
]

_NO_METRIC = frozenset({"at_least"})


@app.command()
def report(  # noqa: PLR0913 - as the API
    *,
    site: SiteOption,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="views,visitors,cr,revenue, …")
    ] = None,
    by: ByOption = None,
    window: WindowOption = None,
    start: FromOption = None,
    end: ToOption = None,
    tz: Annotated[str | None, typer.Option("--tz", help="Time zone of the days.")] = None,
    bots: BotsOption = None,
    where: WhereOption = None,
    sort: Annotated[str | None, typer.Option("--sort", help="A metric; -METRIC: largest.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Only values with this.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many rows.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Leave out so many rows.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print metrics of a range, in all or by a dimension."""
    parameters = _parameters(
        {
            "site": site,
            "metrics": metrics,
            "by": by,
            "window": window,
            "from": start,
            "to": end,
            "tz": tz,
            "bots": bots,
            "sort": sort,
            "search": search,
            "limit": limit,
            "offset": offset,
        },
        where,
    )
    answer = Server(url or default_url()).get("/v1/report", parameters)
    if as_json:
        say_json(answer)
        return
    say_table(report_table(answer, by.split(",") if by else []))
    say(_range_line(answer))


def report_table(answer: Mapping[str, Any], by: Sequence[str]) -> Table:
    """Return the table of a report: one row per value, and the totals."""
    totals: Mapping[str, Any] = answer.get("totals") or {}
    metrics = [name for name in totals if name not in _NO_METRIC and name not in by]
    table = new_table()
    for name in by:
        table.add_column(name, overflow="fold")
    for name in metrics:
        table.add_column(name, justify="right")
    for row in answer.get("rows", []) if by else []:
        mark = "≥ " if row.get("at_least") else ""
        named = [str(row.get(name, NOTHING)) for name in by]
        table.add_row(*named, *(mark + show_value(row.get(name)) for name in metrics))
    if by:
        table.add_section()
    blank = ["total", *[""] * (len(by) - 1)] if by else []
    table.add_row(*blank, *(show_value(totals[name]) for name in metrics))
    return table


@app.command()
def funnel(  # noqa: PLR0913 - as the API
    *,
    name: Annotated[str, typer.Argument(help="The funnel's name.")],
    site: SiteOption,
    by: ByOption = None,
    window: WindowOption = None,
    start: FromOption = None,
    end: ToOption = None,
    bots: BotsOption = None,
    where: WhereOption = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many rows.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print how many visitors reached each step of a funnel, and where they left."""
    parameters = _parameters(
        {
            "site": site,
            "by": by,
            "window": window,
            "from": start,
            "to": end,
            "bots": bots,
            "limit": limit,
        },
        where,
    )
    answer = Server(url or default_url()).get(f"/v1/funnels/{name}", parameters)
    if as_json:
        say_json(answer)
        return
    if by:
        for row in answer.get("rows", []):
            say_table(funnel_table(row.get("steps", []), f"{by} = {row.get(by, NOTHING)}"))
    say_table(funnel_table(answer.get("steps", []), "all" if by else name))
    say(_range_line(answer))


def funnel_table(steps: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return the table of one funnel."""
    table = new_table(title)
    for heading in ("step", "event"):
        table.add_column(heading)
    for heading in ("reached", "of the step before", "of the first", "left here"):
        table.add_column(heading, justify="right")
    for number, step in enumerate(steps, 1):
        table.add_row(
            str(step.get("step", number)),
            str(step.get("event", "")),
            show_value(step.get("reached")),
            show_value(step.get("step_conversion")),
            show_value(step.get("overall_conversion")),
            show_value(step.get("abandonment")),
        )
    return table


@app.command()
def status(
    *,
    site: Annotated[str | None, typer.Option("--site", help="Only this site's events.")] = None,
    url: UrlOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print whether all is well: every event's fate, what is in flight, the processes."""
    settings = load_settings({"data": data}, config=config).settings
    server = Server(url or f"http://127.0.0.1:{settings.port}")
    processes = None if url else _processes(Places(settings.data))
    ready, ledger, problem = False, None, ""
    try:
        ledger = server.get("/v1/ledger", _parameters({"site": site}))
        ready = server.is_ready()
    except TrackerError as error:
        if processes is None:
            raise
        # The supervisor runs, so somebody is about to answer again: that is worth knowing too.
        problem = error.message
    answer: dict[str, Any] = {
        "version": __version__,
        "url": server.url,
        "ready": ready,
        "ledger": ledger,
        "processes": processes,
    }
    if as_json:
        say_json(answer)
    else:
        say(f"tracker {__version__} at {server.url}: {'ready' if ready else 'not ready'}")
        if ledger is not None:
            say_table(ledger_table(ledger))
        for name, process in (processes or {}).items():
            state = f"process {process['pid']}" if process["pid"] else "not running"
            say(f"{name}: {state}, {process['restarts']} restarts")
    if problem:
        raise TrackerError(Code.LOG_UNAVAILABLE, problem)


def ledger_table(ledger: Mapping[str, Any]) -> Table:
    """Return the table of fates; reasons stand below what they explain."""
    table = new_table()
    table.add_column("events")
    table.add_column("number", justify="right")
    for fate, count in ledger.items():
        if isinstance(count, Mapping):
            table.add_row(fate, show_value(sum(count.values())))
            for reason, number in count.items():
                table.add_row(f"  {reason}", show_value(number))
        elif isinstance(count, int) and not isinstance(count, bool):
            table.add_row(fate, show_value(count))
    return table


def _processes(places: Places) -> dict[str, Any] | None:
    try:
        control = Control(places.socket("control"))
    except TrackerError:
        return None  # roles that somebody started one by one have no supervisor
    try:
        answer: dict[str, Any] = orjson.loads(control.ask("status"))
    finally:
        control.close()
    return answer


def _parameters(
    values: Mapping[str, object], where: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    given = [(name, str(value)) for name, value in values.items() if value is not None]
    return given + [("where", item) for item in where or ()]


def _range_line(answer: Mapping[str, Any]) -> str:
    state = "complete" if answer.get("complete") else "not complete yet"
    return (
        f"{answer.get('from', NOTHING)} to {answer.get('to', NOTHING)}, "
        f"as of {answer.get('as_of', NOTHING)}, {state}"
    )
