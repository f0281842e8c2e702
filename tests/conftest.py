"""Compile the loops before the first test, so that no test's output tells of it; and judge tests in real time."""

import pace
import pytest

from hesscale_rl.compiled.cache import HUTCHINSON, NATIVE, ready


def pytest_sessionstart() -> None:
    ready()
    ready(HUTCHINSON)
    ready(NATIVE)


def pytest_collection_modifyitems(items):
    pace.leave_out(items)


def pytest_runtest_protocol(item, nextitem):
    if item.get_closest_marker("real_time") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in pace.judged(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed", "skipped", "") for report in terminalreporter.getreports(kind)]
    for line in pace.told([report for report in reports if isinstance(report, pytest.TestReport)]):
        terminalreporter.write_line(f"{pace.SAID} during {line}; the test was repeated")
