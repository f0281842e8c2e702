"""Where a user's own modules are found, and what they may do there."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def users_own() -> Iterator[None]:
    """Where a user's module is imported, or their environment made.

    Modules are looked for where the user stands first; that place stays on the path, as the last, for what is
    imported later. A module that goes elsewhere does not take us along.
    """
    place = os.getcwd()
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)
        os.chdir(place)
