"""Settings of one installation: defaults < tracker.toml < TRACKER_… variables < flags.

Everything that is wrong is said at once, with the place that said it. This module reads the file
and the environment and starts nothing; only `tracker.main`, the supervisor and the commands call
it. deploy/reference.toml explains every setting, and a test holds it to this table.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from tracker.errors import Code, TrackerError
from tracker.model.definition import DEFAULT_FUNNELS, parse_duration_ms, parse_sites, postponed
from tracker.model.window import HOUR_MS

CONFIG_NAME = "tracker.toml"
MAX_AGE_MS_MAX = 72 * HOUR_MS
"""The folds remember a public event's id for 72 h; whoever retries later would be counted twice."""
PREFIX = "TRACKER_"
CLIENT_VARIABLES = frozenset({"TRACKER_URL", "TRACKER_CONFIG", "TRACKER_SUPERVISOR"})
"""Variables with our prefix that are no settings: read by the commands and by `tracker up`."""

MINIMAL_SITES: dict[str, object] = {
    "shop": {
        "currency": "USD",
        "timezone": "UTC",
        "conversions": ["purchase"],
        "funnel": DEFAULT_FUNNELS,
    }
}
"""What is tracked without a tracker.toml: the same as deploy/minimal.toml, which a test checks."""

TOP_LEVEL = ("data", "port", "host", "log", "store", "log_format")
SERVER = (
    "public_url",
    "cookie_domain",
    "trusted_proxies",
    "max_age",
    "lateness",
    "log_retention",
    "geo_database",
    "read_token",
)
_WITHOUT_EFFECT = {
    "lateness": "late events are re-folded up to 1h",
    "log_retention": "nothing is deleted from the log",
    "geo_database": "the country comes from a trusted proxy's header",
}
"""Settings that are kept for a later version, and what holds until then."""


class Settings(BaseSettings):
    """Every setting beside the sites, flat: `[server] max_age` and TRACKER_MAX_AGE are one."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True
    )

    data: Path = Field(Path("tracker-data"), description="directory that holds everything")
    port: int = Field(8400, ge=1, le=65_535, description="the one public port")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    log: str = Field("", description="file:DIR; empty: `log` in the data directory")
    store: str = Field("embedded:", description="embedded: or redis://HOST:PORT/DB")
    log_format: str = Field("auto", description="auto, console or json: what stderr gets")
    public_url: str = Field("", description="where browsers reach this server")
    cookie_domain: str = Field("", description="domain of the visitor cookie")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="networks whose X-Forwarded-For is believed"
    )
    max_age: str = Field("72h", description="the oldest event that intake accepts")
    lateness: str = Field("1h", description="how late an event may be and still be re-folded")
    log_retention: str = Field("30d", description="how long the log is kept")
    geo_database: str = Field("", description="path of a country database")
    read_token: str = Field("", description="Bearer token for reports from other machines")

    @property
    def max_age_ms(self) -> int:
        """Return `max_age` in ms."""
        return parse_duration_ms(self.max_age) or 0

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(i, str) for i in listed):
            raise ValueError("is a list of networks like '10.0.0.0/8'.")
        networks = tuple(item.strip() for item in listed if item.strip())
        for network in networks:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise ValueError(f"{network!r} is no network like '10.0.0.0/8'.") from error
        return networks

    @field_validator("max_age", "lateness", "log_retention")
    @classmethod
    def _duration(cls, value: str) -> str:
        if not parse_duration_ms(value):
            raise ValueError(f"{value!r} is no time like '90s', '15m', '24h' or '7d'.")
        return value

    @field_validator("max_age")
    @classmethod
    def _age(cls, value: str) -> str:
        if (parse_duration_ms(value) or 0) > MAX_AGE_MS_MAX:
            raise ValueError(f"{value!r} is more than 72h: ids of events are remembered so long.")
        return value

    @field_validator("public_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} does not begin with http:// or https://.")
        return value.rstrip("/")

    @field_validator("log_format")
    @classmethod
    def _log_format(cls, value: str) -> str:
        if value not in ("auto", "console", "json"):
            raise ValueError(f"{value!r} is none of auto, console, json.")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What one start works with.

    `config` is the file that was read, None without one. `notices` are sentences to say at start.
    """

    settings: Settings
    sites: dict[str, object]
    config: Path | None
    notices: tuple[str, ...]


def load_settings(flags: Mapping[str, object], *, config: Path | None = None) -> Loaded:
    """Read the file, the environment and `flags` (None: not given).

    `config` names the file; without it TRACKER_CONFIG does, else ./tracker.toml where it exists.
    Errors: TrackerError CONFIGURATION with every problem, one a line.
    """
    path = _config_path(config)
    tables = _read(path) if path else {"site": MINIMAL_SITES}
    problems: list[str] = []
    values = _flatten(tables, str(path), problems)
    given = {name: value for name, value in flags.items() if value is not None}
    settings = _validate(values, given, path, problems)
    sites = tables.get("site", {})
    if isinstance(sites, dict):
        problems += parse_sites(sites)[1]
    else:
        problems.append("site: is a table of sites.")
    if problems or settings is None:
        where = f" ({path})" if path else ""
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise TrackerError(Code.CONFIGURATION, f"The settings{where} cannot be used:\n{listed}")
    return Loaded(
        settings=settings, sites=sites, config=path, notices=tuple(_notices(settings, sites))
    )


def _config_path(config: Path | None) -> Path | None:
    named = config or (Path(os.environ["TRACKER_CONFIG"]) if _variable("TRACKER_CONFIG") else None)
    if named:
        if not named.is_file():
            raise TrackerError(
                Code.CONFIGURATION, f"There is no settings file {named}: check --config."
            )
        return named
    usual = Path(CONFIG_NAME)
    return usual if usual.is_file() else None


def _variable(name: str) -> str:
    return os.environ.get(name, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrackerError(Code.CONFIGURATION, f"{path} cannot be read: {error}.") from error


def _flatten(tables: Mapping[str, Any], place: str, problems: list[str]) -> dict[str, object]:
    """Return the file's settings by their flat names, and say which keys are none."""
    values: dict[str, object] = {}
    server = tables.get("server", {})
    if not isinstance(server, Mapping):
        problems.append("server: is a table.")
        server = {}
    known = ", ".join((*TOP_LEVEL, "[server]", "[site.NAME]"))
    for key, value in tables.items():
        if key in TOP_LEVEL:
            values[key] = value
        elif key not in ("server", "site"):
            problems.append(f"{key}: no such setting in {place}; known are {known}.")
    for key, value in server.items():
        if key in SERVER:
            values[key] = value
        else:
            known_here = ", ".join(SERVER)
            problems.append(f"server.{key}: no such setting; [server] has {known_here}.")
    return values


def _validate(
    values: Mapping[str, object],
    flags: Mapping[str, object],
    path: Path | None,
    problems: list[str],
) -> Settings | None:
    # Given values win over the environment, so the layers are put together before.
    layered: dict[str, Any] = {**values, **EnvSettingsSource(Settings)(), **flags}
    try:
        return Settings(**layered)
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else "settings"
            sentence = item["msg"].removeprefix("Value error, ")
            problems.append(f"{_origin(name, flags, path)}: {sentence}")
        return None


def _origin(name: str, flags: Mapping[str, object], path: Path | None) -> str:
    """Say who gave the value of `name`, in that source's own spelling."""
    if name in flags:
        return "--" + name.replace("_", "-")
    variable = PREFIX + name.upper()
    if _variable(variable) or path is None:
        return variable
    return f"server.{name}" if name in SERVER else name


def _notices(settings: Settings, sites: Mapping[str, object]) -> list[str]:
    said = [f"{place} is kept, but not counted by this version." for place in postponed(sites)]
    for name, instead in _WITHOUT_EFFECT.items():
        if getattr(settings, name) != Settings.model_fields[name].default:
            said.append(f"{name} is kept, but has no effect in this version: {instead}.")
    known = {PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    said += [f"The variable {name} is no setting of this version." for name in unknown]
    return said
