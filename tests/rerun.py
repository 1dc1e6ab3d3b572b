"""In CI, a failed test of several machines or processes is run once more, and the end of the output says so.

For the time until the causes of rare failures are found: such tests wait for schedulers and processes on a machine that
may be busy. A test that fails twice fails. Where the environment has no CI nothing is run twice.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

KINDS = ("test_slurm_", "test_distributed")  # modules
KEY = "rerun"  # in a report's user_properties, which pytest-xdist carries to the process that writes the summary
_said: dict[str, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not os.environ.get("CI") or not item.path.name.startswith(KINDS):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if failed := next((report for report in reports if report.failed), None):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        crash = getattr(failed.longrepr, "reprcrash", None)
        where = f"{Path(crash.path).name}:{crash.lineno}: " if crash else ""
        reports[0].user_properties.append((KEY, where + (" ".join(crash.message.split())[:300] if crash else "failed")))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for key, why in report.user_properties:
        if key == KEY:
            _said[report.nodeid] = why


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    if _said:
        names = ", ".join(sorted(name.rpartition("/")[2] for name in _said))
        terminalreporter.section(f"{len(_said)} rerun: {names}", "!", red=True, bold=True)
        for name, why in sorted(_said.items()):
            terminalreporter.line(f"{name} failed at first: {why}", red=True)
