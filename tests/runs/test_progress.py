import io

import pytest
from rich.console import Console

from hesscale_rl.runs import progress
from hesscale_rl.runs.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: clock[0] seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def screen(terminal, width=120):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, _environ={"TERM": "xterm"}
    )


def lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock):
    console = screen(terminal=False, width=20)  # a file has no width: lines are not wrapped
    with Progress(100_000, console=console) as shown:
        for step in range(2000, 50_001, 2000):  # one update a second
            clock[0] += 1.0
            shown.update(step, float(step), "kl 0.008")
    assert [line.split()[1] for line in lines(console)] == [
        "2,000/100,000",
        "22,000/100,000",
        "42,000/100,000",
        "50,000/100,000",
    ]
    # mean of the returns 12,000 ... 50,000; 50,000 steps in 25 s and as many to go
    assert lines(console)[-1] == " 50%  50,000/100,000  return 3.1e+04  2,000 SPS  kl 0.008  0:25 left"


def test_the_last_line_is_not_repeated(clock):
    console = screen(terminal=False)
    shown = Progress(10, console=console)
    clock[0] = 2.0
    shown.update(10, None, "")
    shown.close()
    shown.close()
    assert lines(console) == ["100%  10/10  5 SPS"]


def test_speed_and_time_left_of_a_resumed_run_count_from_where_it_took_up(clock):
    shown = Progress(20_000, start=10_000, quiet=True)
    clock[0] = 10.0
    shown.update(11_000)
    assert shown.text() == "11,000/20,000  100 SPS  1:30 left"
    clock[0] = 1000.0
    assert shown.text().endswith("2:30:00 left")


def test_a_terminal_gets_one_live_line(clock):
    console = screen(terminal=True)
    with Progress(1000, console=console) as shown:
        for step in range(1, 501):
            clock[0] += 0.001  # half a second in all: a handful of redraws
            shown.update(step, 812.4 if step == 3 else None, "[kl] 0.008")
    out = console.file.getvalue()
    assert out.count("\n") == 1 and out.endswith("\n\x1b[?25h")  # one line, and the cursor is back
    assert 4 <= out.count("/1,000") <= 8
    assert "500/1,000  return 812.4" in out and "[kl] 0.008" in out and "50%" in out and "━" in out


def test_a_narrow_terminal_still_has_one_line(clock):
    console = screen(terminal=True, width=40)
    with Progress(1000, console=console) as shown:
        clock[0] = 1.0
        shown.update(500, 1.0, "a long note " * 10)
    assert console.file.getvalue().count("\n") == 1


def test_quiet_shows_nothing(capfd):
    with Progress(10, quiet=True) as shown:
        shown.update(5, 1.0, "note")
    assert capfd.readouterr() == ("", "")
