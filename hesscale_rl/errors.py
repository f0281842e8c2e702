"""The error of a user who asked for something impossible, and the exit codes of every command."""

DONE = 0
BAD_INPUT = 2
DIVERGED = 3
INTERRUPTED = 130


class InputError(ValueError):
    """A request that cannot be served. Its text is one line for the terminal; the command exits with BAD_INPUT."""
