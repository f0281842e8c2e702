"""Tests at a robot's own pace, on machines that sometimes let nobody run: see `real_time` in pyproject.toml."""

import os
import threading
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

WATCHDOG = 0.1  # s for which a machine may stand still without a robot's watchdog noticing
LOOK = 0.005  # s
BUSY = 0.5  # share of a test's time in which a process waited for a CPU: then nobody's pace is their own
noticed: list[float] = []  # s for which a robot heard nothing, by its watchdog, though no fault was injected yet
SAID = "the machine stood still"  # a property of reports, with what there is to say


def stalled() -> float:
    """Return for how many seconds since it began some process on this machine had to wait for a CPU; 0: not told."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().splitlines()[0].rpartition("=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


class Pauses:
    """Measures the longest time for which this machine, or this process, stood still, by a thread that looks.

    `busy`, afterwards: for which share of the time some process waited for a CPU.
    """

    def __enter__(self) -> "Pauses":
        self._began, self._stalled = time.monotonic(), stalled()
        self.longest, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        before = time.monotonic()
        while not self._over.wait(LOOK):
            now = time.monotonic()
            self.longest, before = max(self.longest, now - before - LOOK), now

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.busy = (stalled() - self._stalled) / (time.monotonic() - self._began)


def leave_out(items: list[pytest.Item]) -> None:
    """Skip tests in real time where robot, driver and policy have one CPU between them."""
    if len(os.sched_getaffinity(0)) == 1:
        for item in items:
            if item.get_closest_marker("real_time"):
                item.add_marker(pytest.mark.skip(reason="robot, driver and policy need two CPUs for real time"))


def judged(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run a test; again, if it failed while the machine stood still, or had no CPU left for one who wanted it.

    Failed twice so, it has shown nothing.
    """
    pauses: list[str] = []
    while True:
        noticed.clear()
        with Pauses() as measured:
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        # Beside busy processes this one, which sleeps, is run at once, and the driver is not: the robot tells.
        longest = max(measured.longest, *noticed, 0.0)
        still = longest >= WATCHDOG or measured.busy >= BUSY
        pauses.append(f"{longest:.2f} s, without a CPU for somebody {100 * measured.busy:.0f} % of the time")
        failed = [report for report in reports if report.failed]
        if not failed or not still or len(pauses) == 2:
            break
        item._initrequest()  # type: ignore[attr-defined] - fixtures anew
    if len(pauses) == 2:
        told = ", and ".join(pauses)
        reports[-1].user_properties.append((SAID, f"{item.nodeid}: for {told}"))
        for report in failed if still else []:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"Skipped: the machine stood still for {told}")
    return reports


def told(reports: list[pytest.TestReport]) -> list[str]:
    """Return what there is to say of them."""
    return [value for report in reports for name, value in report.user_properties if name == SAID]
