"""The errors that end a command in good order, and the exit codes of every command."""

DONE = 0
FAILED = 1  # by a fault that is not the input's
BAD_INPUT = 2
DIVERGED = 3
FAULT = 4  # of a robot
INTERRUPTED = 130
EXIT_CODES = {"done": DONE, "diverged": DIVERGED, "interrupted": INTERRUPTED, "failed": FAILED}  # by the run's status


class InputError(ValueError):
    """A request that cannot be served. Its text is one line for the terminal; the command exits with BAD_INPUT."""

    def __str__(self) -> str:
        return "\\n".join(super().__str__().splitlines())  # whatever a path or a library's message brought along


class Diverged(Exception):
    """A number that training cannot go on with. The run ends, keeps its curve, and exits with DIVERGED."""


class EnvironmentFault(InputError):
    """An environment that raised, or returned what it did not declare; one line, the cause chained where it raised.

    Before anything was learnt it is bad input like any other; later the run keeps what it has learnt, and fails.
    """


class Unwritable(OSError):
    """A file of a run that cannot be written any more: a full disk. Its text is one line; the exit code is FAILED."""
