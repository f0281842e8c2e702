"""What a training run shows while it runs: one live line on a terminal, a line now and then in a log file."""

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich import progress as bar
from rich.console import Console
from rich.table import Column

from ..system.console import guarded

REDRAW = 0.1  # seconds between redraws of the live line: many short episodes must not slow training down
CELL = 0.5  # in a notebook, to which every change is a message
PLAIN = 10.0  # seconds between lines when the output is not a terminal


def _cell() -> Any:
    """A line of a notebook's output that can be changed, None outside of one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display({"text/plain": "  0%"}, raw=True, display_id=True)


class Progress:
    """Steps done, mean return of the last 20 episodes, steps per second (SPS), a free note and the time left.

    On a terminal the line is redrawn, in a notebook the cell's output; elsewhere it is printed now and then.
    `start`: the step at which a resumed run takes up, left out of the speed. `quiet` shows nothing.
    """

    def __init__(self, total: int, quiet: bool = False, start: int = 0, console: Console | None = None) -> None:
        self.total, self.quiet, self.start = total, quiet, start
        self.step, self.note = start, ""
        self.returns: deque[float] = deque(maxlen=20)
        self.began = time.monotonic()
        self.due = self.began  # when the next line may be shown
        self.shown = -1  # the step that was shown last
        self.console = console or Console(file=guarded("stdout"), highlight=False)
        self.live: bar.Progress | None = None
        self.cell: Any = None if quiet else _cell()
        if not quiet and self.cell is None and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = bar.Progress(
                "{task.percentage:>3.0f}%",
                bar.BarColumn(bar_width=20),
                bar.TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
                console=self.console,
                auto_refresh=False,  # its thread would take the interpreter from training ten times a second
            )
            self.task = self.live.add_task("", total=total, completed=start, text="")
            self.live.start()

    def update(self, step: int, episodic_return: float | None = None, note: str = "") -> None:
        """Take in the step reached and the return of an episode that ended (None: none did), and show them if due."""
        self.step, self.note = step, note
        if episodic_return is not None:
            self.returns.append(episodic_return)
        if not self.quiet and time.monotonic() >= self.due:
            self.show()

    def text(self) -> str:
        """The line in words, without percentage and bar."""
        parts = [f"{self.step:,}/{self.total:,}"]
        if self.returns:
            parts.append(f"return {sum(self.returns) / len(self.returns):.4g}")
        speed = (self.step - self.start) / max(time.monotonic() - self.began, 1e-9)
        if speed > 0:
            parts.append(f"{speed:,.0f} SPS")
        if self.note:
            parts.append(self.note)
        if speed > 0 and self.step < self.total:
            minutes, seconds = divmod(round((self.total - self.step) / speed), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
        return "  ".join(parts)

    def show(self) -> None:
        """Draw the line now."""
        self.shown = self.step
        if self.live:
            self.live.update(self.task, completed=self.step, text=self.text(), refresh=True)
            self.due = time.monotonic() + REDRAW
        else:
            line = f"{100 * self.step / max(self.total, 1):3.0f}%  {self.text()}"
            if self.cell is not None:
                self.cell.update({"text/plain": line}, raw=True)
            else:
                self.console.print(line, markup=False, soft_wrap=True)
            self.due = time.monotonic() + (PLAIN if self.cell is None else CELL)

    def close(self) -> None:
        """Show the last state and give the terminal back; once closed, closing again does nothing."""
        if not self.quiet and self.shown != self.step and self.step > self.start:
            self.show()
        if self.live:
            self.live.stop()
        self.quiet, self.live = True, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
