"""`tracker up` and the roles it runs: `collect`, `consume`, `query`; and `version`.

Reads the settings, configures the logs and hands over: what a role is made of stands in
`tracker.main`, what supervises them in `tracker.up`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import structlog
import typer

from tracker import __version__
from tracker.cli.options import (
    ConfigOption,
    DataOption,
    HostOption,
    LogOption,
    PortOption,
    StoreOption,
)
from tracker.cli.terminal import configure_logs, say
from tracker.main import Role, run, run_collector, run_consumer, run_query
from tracker.settings import Loaded, load_settings
from tracker.units import bind_to_supervisor
from tracker.up import Supervisor

app = typer.Typer()


@app.command()
def up(  # noqa: PLR0913 - options
    *,
    data: DataOption = None,
    port: PortOption = None,
    host: HostOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    store: StoreOption = None,
    demo: Annotated[bool, typer.Option("--demo", help="Play a small shop's traffic.")] = False,
) -> None:
    """Run everything on this machine: private Redis, collector, consumer, query process."""
    loaded = _load({"data": data, "port": port, "host": host, "log": log, "store": store}, config)
    asyncio.run(Supervisor(loaded, demo=demo, announce=say).run())


@app.command()
def collect(
    *,
    data: DataOption = None,
    port: PortOption = None,
    host: HostOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
) -> None:
    """Run the write side: takes events over HTTP and owns the log."""
    _role(run_collector, _load({"data": data, "port": port, "host": host, "log": log}, config))


@app.command()
def consume(
    *,
    data: DataOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    store: StoreOption = None,
) -> None:
    """Run the consumer: folds the log into the store."""
    _role(run_consumer, _load({"data": data, "log": log, "store": store}, config))


@app.command()
def query(
    *,
    data: DataOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    store: StoreOption = None,
) -> None:
    """Run the read side: reports and the live page, behind the collector."""
    _role(run_query, _load({"data": data, "log": log, "store": store}, config))


@app.command()
def version() -> None:
    """Print the version."""
    say(f"tracker {__version__}")


def _load(flags: dict[str, object], config: Path | None) -> Loaded:
    loaded = load_settings(flags, config=config)
    configure_logs(loaded.settings.log_format)
    return loaded


def _role(role: Role, loaded: Loaded) -> None:
    bind_to_supervisor()
    if role is run_collector:
        logger = structlog.get_logger("tracker.settings")
        for notice in loaded.notices:
            logger.warning("setting", notice=notice)
    run(role, loaded)
