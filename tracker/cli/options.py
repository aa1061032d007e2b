"""The options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Directory that holds everything.  [default: tracker-data]"),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file.  [default: tracker.toml where it exists]"),
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="The one public port.  [default: 8400]")
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on.  [default: 127.0.0.1]")
]
LogOption = Annotated[
    str | None, typer.Option("--log", help="file:DIR.  [default: log in the data directory]")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="embedded: or redis://HOST:PORT/DB.  [default: embedded:]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="TRACKER_URL", help="A running tracker.  [default: http://127.0.0.1:PORT]"
    ),
]
SiteOption = Annotated[str, typer.Option("--site", help="The site's public key.")]
