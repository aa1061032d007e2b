"""What every test of this repository shares: with CI=true a skipped test is a failure.

Nothing heavy belongs here, neither servers nor data: it is loaded for each run of one test too.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# A developer's machine may lack a program; where it counts, a test that did not run proves nothing.
SKIPS_FAIL = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _judged(report: Report, name: str) -> Report:
    # An expected failure is reported as skipped too, but it did run.
    if SKIPS_FAIL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{name} was skipped, which CI=true does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _judged(report, item.nodeid)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _judged(report, collector.nodeid)
