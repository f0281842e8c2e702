"""What the lines of each kind of figure show, from runs: for paper (panels.py) and for a page (scripts/reporting)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.curves import Array, Group
from hesscale_rl.scripts.analysis.read_runs import FINE, RecordedRun, collect
from hesscale_rl.system.console import complain

EVERYWHERE = "all tasks, normalised"
FAR = 30  # times the median: what lies above it of a loss is not worth a decade of its axis


@dataclass(frozen=True)
class LineOptions:
    """How runs become lines: `hesscale-rl plot` has flags of these names, and says what they mean."""

    bins: int = 100
    statistic: str = "mean"
    error: str = "bootstrap"
    diverged: str | None = None
    all: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Mark:
    """A place in a panel that belongs to a single run."""

    x: float
    y: float
    run: RecordedRun


@dataclass
class Line:
    """A line of a panel. `cells`: the groups behind each point, or behind all; `ends`: [value, low, high; points].

    `sound`: what runs that did not diverge have, by itself; `crosses`: those that did; `dots`: single runs that stand
    in for the interval that there is none of.
    """

    panel: str
    method: tuple[str, str]  # the optimizer, and what sets it apart
    cells: list[list[Group]]
    x: Array
    ends: Array
    rate: str = ""  # the learning rate where it is not x
    sound: Array = field(default_factory=lambda: np.empty(0))
    crosses: list[Mark] = field(default_factory=list)
    dots: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give a loss, which was read negative, its own sign."""
        if self.loss:
            self.ends, self.sound = -self.ends[[0, 2, 1]], -self.sound
            self.crosses = [Mark(mark.x, -mark.y, mark.run) for mark in self.crosses]
            self.dots = [Mark(mark.x, -mark.y, mark.run) for mark in self.dots]

    @property
    def name(self) -> str:
        """The optimizer, and what sets it apart."""
        return ", ".join(filter(None, self.method))

    @property
    def loss(self) -> bool:
        """Whether it shows what was read with the other sign."""
        return self.panel != EVERYWHERE and self.cells[0][0].view.lower

    def counts(self) -> list[tuple[int, int]]:
        """Of each point, the runs behind it and how many of them diverged."""
        each = [(sum(len(g.runs) for g in cell), sum(len(g.diverged) for g in cell)) for cell in self.cells]
        return each * (len(self.x) // len(each))

    @property
    def lost(self) -> Array:
        """Whether all runs behind a point diverged, [points]: no line leads there, as it would read as learning."""
        return np.array([n == diverged for n, diverged in self.counts()]) & (len(self.cells) == len(self.x))

    @property
    def shown(self) -> Array:
        """Whether a point is shown as such, [points]: on a task, what is lost has the crosses of its runs alone."""
        return ~self.lost | (self.panel == EVERYWHERE)


def singles(line: Line) -> list[Array]:
    """Return the curves of a line's single runs, [points] each, where they are too few for a band; else none."""
    if line.panel == EVERYWHERE:
        return []
    (group,) = line.cells[0]
    few = np.isnan(line.ends[1:]).all() and len(group.runs) > 1
    return [-curve if line.loss else curve for curve in group.curves] if few else []


def curve_lines(runs: list[RecordedRun], options: LineOptions) -> list[Line]:
    """Return against steps: of the best learning rate, or of all."""
    groups, lines = curves.gather(runs, options.bins, together=False, worst=options.diverged), []
    for group in groups if options.all else curves.best(groups):
        bins, fine = group.curves.shape[1], FINE[group.view.axis]
        x, sound = group.length * np.arange(1, bins + 1) / (bins * fine), group.curves[group.sound].ravel()
        ends, rate = curves.interval([group.curves], options.statistic, options.error), f"{group.rate:g}"
        crosses = [Mark(end / fine, value, run) for end, value, run in group.ends()]
        lines.append(Line(group.env, group.method, [[group]], x, ends, rate, sound, crosses))
    return lines


def sensitivity_lines(runs: list[RecordedRun], options: LineOptions) -> list[Line]:
    """Average return against the rate: on each task, and normalised over all of them."""
    groups, lines = curves.gather(runs, options.bins, together=True, worst=options.diverged), []
    envs = collect(groups, lambda group: group.env)
    parts = [(env, [[group] for group in own], {group: group.averages for group in own}) for env, own in envs.items()]
    if options.normalized or len(envs) > 1:
        scores = curves.normalise(groups, options.statistic)
        cells = everywhere(scores, lambda g: (*g.method, f"{g.rate:g}"))
        parts = [*parts[: 0 if options.normalized else None], (EVERYWHERE, cells, scores)]
    for panel, cells, scores in parts:
        for method, own in collect(cells, lambda cell: cell[0].method).items():
            points = [curves.interval([scores[g] for g in cell], options.statistic, options.error) for cell in own]
            sound = np.concatenate([scores[g][g.sound] for cell in own for g in cell])
            crosses, dots = [], []
            for (group, *_), (_, low, _) in zip(own, points, strict=True):
                if panel != EVERYWHERE:
                    marks = [Mark(group.rate, y, run) for run, y in zip(group.runs, scores[group], strict=True)]
                    crosses += [mark for mark in marks if mark.run in group.diverged]
                    single = len(marks) > 1 and np.isnan(low)
                    dots += [mark for mark in marks if single and mark.run not in group.diverged]
            rates, ends = np.array([cell[0].rate for cell in own]), np.transpose(points)
            lines.append(Line(panel, method, own, rates, ends, "", sound, crosses, dots))
    return lines


def profile_lines(runs: list[RecordedRun], options: LineOptions) -> list[Line]:
    """Share of the runs above a score, of each optimizer at the best learning rate of each task."""
    groups, lines = curves.gather(runs, options.bins, together=True, worst=options.diverged), []
    scores = curves.normalise(groups, options.statistic)
    cells = everywhere([group for group in curves.best(groups) if group in scores], lambda g: g.method)
    # The best run may be above 1, the average of the best group; there the share of the runs has come to 0.
    taus = np.linspace(0, max([1.0, *(scores[group].max() for own in cells for group in own)]), 101)
    for own in cells:
        above = [(scores[group][:, None] > taus).astype(float) for group in own]
        rates = "; ".join(f"{group.rate:g} on {group.env}" for group in own)
        ends = curves.interval(above, "mean", options.error)
        lines.append(Line(EVERYWHERE, own[0].method, [own], taus, ends, rates))
    return lines


# Of each kind: what makes its lines.
KINDS: dict[str, Callable[[list[RecordedRun], LineOptions], list[Line]]] = {
    "curves": curve_lines,
    "sensitivity": sensitivity_lines,
    "profile": profile_lines,
}


def everywhere(groups: Iterable[Group], key: Callable[[Group], tuple]) -> list[list[Group]]:
    """Return the groups that have a key in common on all tasks: an average over fewer would not compare."""
    cells, tasks = collect(groups, key), len({group.env for group in groups})
    some = [" ".join(filter(None, key)) for key, own in cells.items() if len(own) < tasks]
    if some:
        complain(f"not on all {tasks} tasks, so left out of what is normalised: {'; '.join(some)}")
    return [own for own in cells.values() if len(own) == tasks]


def drawn(lines: list[Line]) -> dict[str, Array]:
    """Return the y of all that a panel is to show, by what it is."""
    found = {"points": np.concatenate([line.ends[0][line.shown] for line in lines])}
    found["interval ends"] = np.concatenate([line.ends[1:].ravel() for line in lines])
    found["diverged runs"] = np.array([mark.y for line in lines for mark in line.crosses])
    curves_of_runs = [curve for line in lines if len(line.cells) < len(line.x) for curve in singles(line)]
    found["single runs"] = np.concatenate([[mark.y for line in lines for mark in line.dots], *curves_of_runs])
    return found


def y_range(lines: list[Line]) -> tuple[float, float, bool]:
    """Return the ends of a panel's y axis, and whether it has powers of ten: no run that exploded decides it."""
    every, sound = np.concatenate([*drawn(lines).values()]), np.concatenate([line.sound for line in lines])
    loss = lines[0].loss
    if loss and (every[np.isfinite(every)] > 0).all():
        usual = np.median(sound) if len(sound) else np.nanmedian(every)
        top = min(np.nanmax(every), FAR * usual)  # a loss explodes upwards
        low, high = (10**end for end in curves.limits(*2 * [np.log10(np.minimum(every, top))]))
        return low, high, True
    if loss:
        high, low = (-end for end in curves.limits(-every, -sound))
    else:
        low, high = curves.limits(every, sound)
    return low, high, False
