"""The agents: each file is one whole algorithm, run by `python agents/NAME.py` or `hesscale-rl train NAME`."""

import pkgutil


def names() -> list[str]:
    """Return the agents' names, in order: those of the files here, so that a new one needs no entry anywhere."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
