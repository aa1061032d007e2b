"""kill -9 of every process under load: what was acknowledged is counted, and counted once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading

import pytest
from conftest import is_alive, until
from load import Oracle, play

RATE = 2_000
SECONDS = 3.0
ROLES = ("collector", "consumer", "query", "redis")
REPORT = "window=24h"


@pytest.fixture
def seed():
    """Take a fresh seed, or the one given back by SEED=…; a failure prints it."""
    chosen = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={chosen}")
    return chosen


@pytest.fixture
def oracle(tmp_path):
    return Oracle(str(tmp_path / "acknowledged"))


def under_load(oracle, up, seed, during):
    """Play load in a thread while `during` runs in this one."""
    url = f"http://127.0.0.1:{up.port}/v1/events"
    failures = []

    def run():
        try:
            asyncio.run(play(oracle, url, rate=RATE, seconds=SECONDS, seed=seed))
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    during()
    thread.join()
    assert not failures, failures


def views(up):
    return up.totals("views", query=REPORT)["views"]


def ledger(up):
    return up.get("/v1/ledger?site=shop")


def is_answering(up):
    try:
        return up.request("GET", f"/v1/report?site=shop&metrics=views&{REPORT}")[0] == 200
    except OSError:
        return False


def assert_counted_once(up, oracle, before):
    """Wait until nothing is in flight; every id was acknowledged and moved one view."""
    until(lambda: is_answering(up), 30)
    until(lambda: ledger(up)["in_flight"] == 0, 30)
    until(lambda: views(up) == before + len(oracle.sent), 10, f"{views(up) - before} were counted")
    assert oracle.acknowledged == oracle.sent
    fates = ledger(up)
    accepted = sum(fates[fate] for fate in ("applied", "duplicate", "late", "quarantined"))
    assert fates["accepted"] == accepted
    assert up.cli("reconcile").returncode == 0


@pytest.mark.parametrize("role", ROLES)
def test_kill_of_a_process_under_load_loses_and_doubles_nothing(up, oracle, seed, role):
    before = views(up)
    delay_s = random.Random(seed).uniform(0.2, SECONDS - 0.5)

    def kill():
        pid = up.processes()[role]["pid"]
        threading.Event().wait(delay_s)
        os.kill(pid, signal.SIGKILL)

    under_load(oracle, up, seed, kill)
    assert_counted_once(up, oracle, before)


def test_kill_of_the_supervisor_leaves_nothing_behind_and_loses_nothing(up, oracle, seed):
    before = views(up)
    pids = [process["pid"] for process in up.processes().values()]

    def kill():
        threading.Event().wait(random.Random(seed).uniform(0.2, SECONDS - 0.5))
        up.stop(signal.SIGKILL)
        until(lambda: not any(map(is_alive, pids)), 10, "children outlived their supervisor")
        up.start()

    under_load(oracle, up, seed, kill)
    assert_counted_once(up, oracle, before)


def test_a_store_whose_files_were_deleted_is_rebuilt_with_the_same_numbers(up, oracle, seed):
    under_load(oracle, up, seed, lambda: None)
    until(lambda: ledger(up)["in_flight"] == 0, 30)
    questions = ("/v1/report?site=shop&by=utm_campaign&window=24h", "/v1/ledger?site=shop")
    before = [_numbers(up.get(question)) for question in questions]
    up.stop()
    shutil.rmtree(up.data / "redis")
    assert up.cli("rebuild").returncode == 0
    up.start()
    until(lambda: is_answering(up), 30)
    assert [_numbers(up.get(question)) for question in questions] == before
    assert up.cli("reconcile").returncode == 0


def _numbers(answer):
    moving = {"as_of", "from", "to", "epoch"}
    return {key: value for key, value in answer.items() if key not in moving}
