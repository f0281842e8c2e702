"""Compile the loops before the first test, so that no test's output tells of it."""

from hesscale_rl.compiled.warm import HUTCHINSON, ready


def pytest_sessionstart() -> None:
    ready()
    ready(HUTCHINSON)
