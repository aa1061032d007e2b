"""`tracker reconcile` and `tracker rebuild`: the store against the log, and anew from it.

Both work beside a running `tracker up` (the consumer is paused for a rebuild) and on a stopped
installation, which they then hold as `tracker up` would. The comparison and the replay themselves
are `consumers.replay`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import typer

from consumers.replay import rebuild as rebuild_store
from consumers.replay import reconcile as compare
from consumers.runner import Parts
from tracker.backends.append_socket import AppendClient
from tracker.backends.embedded_redis import EmbeddedRedis
from tracker.backends.memory_store import MemoryStore
from tracker.cli.ask import Control
from tracker.cli.options import ConfigOption, DataOption, JsonOption, LogOption, StoreOption
from tracker.cli.terminal import configure_logs, progress, remark, say, say_json
from tracker.errors import Code, TrackerError
from tracker.installation import Lock, Places, open_secret
from tracker.main import open_log_reader, open_log_writer, open_store
from tracker.model.clock import SystemClock
from tracker.ports.log import LogWriter
from tracker.settings import Settings, load_settings

DIFFERENCES_SHOWN = 50

app = typer.Typer()


@app.command()
def reconcile(
    *,
    data: DataOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the log beside the live store and compare everything; exit 0 only when equal."""
    settings = _settings({"data": data, "log": log, "store": store}, config)
    answer = asyncio.run(_reconcile(settings))
    if as_json:
        say_json(answer)
    elif answer["equal"]:
        say(
            f"Equal: a replay of {answer['records']:,} records gives the "
            f"{answer['values']:,} values that the store holds."
        )
    else:
        for difference in answer["differences"]:
            say(
                f"partition {difference['partition']}, {difference['container']} "
                f"{difference['key']}: live {difference['live']}, "
                f"replayed {difference['replayed']}"
            )
        say(
            f"Not equal: {answer['different']:,} differences in {answer['records']:,} records; "
            "`tracker rebuild` makes the store anew from the log."
        )
    if not answer["equal"]:
        raise typer.Exit(1)


async def _reconcile(settings: Settings) -> dict[str, Any]:
    async with _parts(settings, writes=False) as parts:
        with progress("Replaying the log", "records") as move:
            found = await compare(parts, MemoryStore(), move)
    return {
        "equal": found.equal,
        "records": found.records,
        "values": found.values,
        "different": len(found.differences),
        "differences": [
            {
                "partition": one.partition,
                "container": one.container,
                "key": one.key,
                "live": one.live,
                "replayed": one.replayed,
            }
            for one in found.differences[:DIFFERENCES_SHOWN]
        ],
    }


@app.command()
def rebuild(
    *,
    data: DataOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the store anew from the log; definitions of now then hold from the start."""
    settings = _settings({"data": data, "log": log, "store": store}, config)
    answer = asyncio.run(_rebuild(settings))
    if as_json:
        say_json(answer)
    else:
        say(f"Rebuilt from {answer['records']:,} records in {answer['seconds']:,} s.")


async def _rebuild(settings: Settings) -> dict[str, Any]:
    began = time.monotonic()
    async with _parts(settings, writes=True) as parts:
        with progress("Rebuilding", "records") as move:
            records = await rebuild_store(parts, move)
    return {"records": records, "seconds": round(time.monotonic() - began, 1)}


@asynccontextmanager
async def _parts(settings: Settings, *, writes: bool) -> AsyncIterator[Parts]:
    """Open the installation, running or not; whatever was opened is closed in reverse order."""
    places = Places(settings.data)
    if not places.secret.exists():
        raise TrackerError(
            Code.NOT_FOUND,
            f"There is no installation in {settings.data.absolute()}: name its directory with "
            "--data.",
        )
    places.prepare()
    keys = open_secret(places.secret)
    async with AsyncExitStack() as stack:
        lock = Lock(places.lock)
        # Connects only when something is appended: a comparison appends nothing.
        writer: LogWriter = AppendClient(places.socket("append"))
        try:
            lock.take(wait_s=0)
        except TrackerError:
            if writes:
                await _pause_consumer(places, stack)
        else:
            stack.callback(lock.release)
            if settings.store.startswith("embedded:"):
                await stack.enter_async_context(EmbeddedRedis(places.redis, places.run))
            if writes:
                writer = await open_log_writer(settings)
        stack.push_async_callback(writer.close)
        store = await open_store(settings)
        stack.push_async_callback(store.close)
        reader = await open_log_reader(settings)
        stack.push_async_callback(reader.close)
        yield Parts(reader, writer, store, keys, SystemClock())


async def _pause_consumer(places: Places, stack: AsyncExitStack) -> None:
    control = Control(places.socket("control"))
    stack.callback(control.close)
    remark("The consumer is paused; events are still taken and kept.")
    answer = await asyncio.to_thread(control.ask, "pause consumer")
    if answer != "paused":
        raise TrackerError(Code.INVALID, f"The running tracker did not pause: {answer}.")


def _settings(flags: dict[str, object], config: Path | None) -> Settings:
    loaded = load_settings(flags, config=config)
    configure_logs(loaded.settings.log_format)
    return loaded.settings
