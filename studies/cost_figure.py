"""What studies/cost.py tells: the rows of its tables, what follows from them, and the figure."""

import csv
import io
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.optim import names
from hesscale_rl.scripts.analysis.panels import FONTS, LOOKS, PAPER, check_output, target, write
from hesscale_rl.system.console import say

BASELINE = "Adam + autograd"
HIGHEST = 12.0  # ratio that is drawn
FINEST = 0.125  # MiB: Linux counts resident memory in such steps
Row = dict[str, Any]
COLUMNS = ["experiment", "network", "batch", "parameters", "method", "rounds", "us", "us_low", "us_high", "ratio"]
COLUMNS += ["ratio_low", "ratio_high", "mib", "left_out"]
AVERAGES = {"adahessian": 3.0, "adahesscale": 2.0, "adahesscale-gn": 1.25}  # times Adam, on average over Fig. 8
# Ratios to Adam + autograd of published code: AdaHesScale and GN by BackPACK, the optimizers by their authors.
ELSEWHERE: dict[str, dict[str, float]] = {
    "64-512-16 (128)": {"adahesscale": 3.6, "adahesscale-gn": 2.1, "adahessian": 2.1, "adaggn-mc": 2.2, "kfac": 5.7},
    "64-512-512 (128)": {"adahesscale": 2.5, "adahesscale-gn": 1.8, "adahessian": 3.2, "adaggn-mc": 2.2, "kfac": 2.9},
    "64-8x512-100 (128)": {
        "adahesscale": 2.3,
        "adahesscale-gn": 1.7,
        "adahessian": 2.9,
        "adaggn-mc": 1.7,
        "kfac": 2.3,
    },
    "64-32x512-100 (1)": {
        "adahesscale": 3.7,
        "adahesscale-gn": 2.8,
        "adahessian": 3.7,
        "adaggn-mc": 1.4,
        "kfac": 1.6,
    },
}
MORE = {"adaggn-mc": ("#8C564B", "X"), "kfac": ("#000000", "p"), "exact GGN diagonal": ("#7F7F7F", "<")}
MORE |= {"exact Hessian (HBP)": ("#B8860B", ">"), BASELINE: ("#444444", ".")}
TITLES = {"outputs": "one hidden layer, 16 to 512 outputs", "layers": "1 to 128 hidden layers"}


def row_of(method: str, times: list[float], base: list[float]) -> Row:
    """Return the medians and quartiles of a method's times, us, and of their ratios to the baseline's, by name."""
    ratios = [a / b for a, b in zip(times, base[: len(times)], strict=True)]
    row: Row = {"method": method, "rounds": len(times)}
    for name, numbers in (("us", times), ("ratio", ratios)):
        low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
        row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return row


def show(name: str, row: Row, memory: bool) -> str:
    """Return a row as one of a Markdown table."""
    if "left_out" in row:
        return f"| {name} | {row['method']} | left out: {row['left_out']} | | |"
    line = f"| {name} | {row['method']} | {row['us']:.0f} | {row['ratio']:.2f} "
    line += f"({row['ratio_low']:.2f}, {row['ratio_high']:.2f}) |"
    return line + (f" {row['mib']:.1f} |" if memory else "")


def panels(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    """Return the rows of Fig. 8 that were measured, by experiment and batch size."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["experiment"] in TITLES and "left_out" not in row:
            found.setdefault((row["experiment"], row["batch"]), []).append(row)
    return found


def slope(parameters: Iterable[float], times: Iterable[float]) -> tuple[float, float]:
    """Return the slope of log time against log parameters, and the largest factor between a time and that line."""
    x, y = np.log([*parameters]), np.log([*times])
    line = np.polyfit(x, y, 1)
    return float(line[0]), float(np.exp(np.abs(y - np.polyval(line, x)).max()))


def findings(rows: list[Row]) -> list[str]:
    """Return what the rows say of the paper's claims, a line for each experiment and batch size, and its averages."""
    lines = []
    for (experiment, batch), own in panels(rows).items():
        ratios = {row["network"]: row["ratio"] for row in own if row["method"] == "adahesscale"}
        worst = max(ratios, key=lambda name: ratios[name])
        below = "below 2 on every network" if ratios[worst] < 2 else "NOT below 2 on every network"
        lines.append(
            f"{experiment}, batch {batch}: adahesscale takes {min(ratios.values()):.2f} to {ratios[worst]:.2f} times "
            f"{BASELINE} ({worst}): {below}."
        )
        kin = [row for row in own if row["method"] == "adahesscale"]
        if experiment == "layers" and len(kin) > 2:
            steep, off = slope([row["parameters"] for row in kin], [row["us"] for row in kin])
            lines[-1] += f" Its time grows with the parameters to the power {steep:.2f}, at most {off:.2f} times off."
            last = kin[len(kin) // 2 :]
            if len(last) > 2:
                steep, off = slope([row["parameters"] for row in last], [row["us"] for row in last])
                lines[-1] += f" Over the larger half of the networks: {steep:.2f}, {off:.2f}."
        means = []
        for method in dict.fromkeys(row["method"] for row in own if row["method"] != BASELINE):
            kin = [row for row in own if row["method"] == method]
            few = f" on {len(kin)} of {len(ratios)} networks" if len(kin) < len(ratios) else ""
            mean = f"{method} {statistics.geometric_mean(row['ratio'] for row in kin):.2f}{few}"
            means.append(mean + (f" (paper: {AVERAGES[method]:g})" if method in AVERAGES else ""))
        lines.append(f"{experiment}, batch {batch}, geometric means of the ratios: {', '.join(means)}.")
    return lines


def style(method: str) -> dict[str, Any]:
    """Return how a method is drawn: colour and marker of panels.py, dashed and hollow for a scaled one."""
    found = names().get(method)  # None: an exact method
    colour, marker = (LOOKS | MORE)[found.plain if found else method]
    scaled = found is not None and found.scaled
    line = {"color": colour, "marker": marker, "label": method, "markersize": 4, "linewidth": 1.2}
    return line | {"linestyle": "--", "markerfacecolor": "none"} if scaled else line


def draw(rows: list[Row], caption: str) -> Any:
    """Return the figure: time, ratio and memory against the parameters, a row for each experiment and batch size."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = panels(rows)
    figure = Figure(figsize=(10, 2.9 * len(found) + 1.6), layout="constrained")
    whole = figure.subplots(len(found), 3, squeeze=False)
    for (experiment, batch), axes in zip(found, whole, strict=True):
        own = found[experiment, batch]
        for method in dict.fromkeys(row["method"] for row in own):
            line = [row for row in own if row["method"] == method]
            x = [row["parameters"] for row in line]
            axes[0].plot(x, [row["us"] / 1000 for row in line], **style(method))
            axes[2].plot(x, [max(row["mib"], FINEST) for row in line], **style(method))
            axes[1].plot(x, [row["ratio"] for row in line], **style(method))
            low, high = ([row[name] for row in line] for name in ("ratio_low", "ratio_high"))
            axes[1].fill_between(x, low, high, color=style(method)["color"], alpha=0.2, linewidth=0)
        first = next(row for row in own if row["method"] == "adahesscale")
        ends = np.array([first["parameters"], max(row["parameters"] for row in own)])
        axes[0].plot(ends, first["us"] / 1000 * ends / ends[0], color="#AAAAAA", linewidth=1, linestyle=":")
        draw_published(axes[1], own)
        title = f"{TITLES[experiment]}, batch {batch}"
        axes[0].set(title="time of one update, ms", ylabel=title)
        axes[1].set(title=f"ratio to {BASELINE}")
        axes[2].set(title="rise of the peak memory, MiB")
        for one in axes:
            one.set(xscale="log", yscale="log", xlabel="parameters")
            for axis in (one.xaxis, one.yaxis):
                axis.set_minor_formatter("")
        limit_ratios(axes[1], own)
    named = {t: h for axes in whole.flat for h, t in zip(*axes.get_legend_handles_labels(), strict=True)}
    named["proportional to the parameters"] = Line2D([], [], color="#AAAAAA", linewidth=1, linestyle=":")
    named["paper's average (in the method's colour)"] = Line2D([], [], color="#555555", linewidth=1, linestyle="--")
    how: dict[str, Any] = {
        "color": "#555555",
        "marker": "*",
        "markersize": 9,
        "markerfacecolor": "none",
        "linestyle": "",
    }
    named["measured elsewhere: BackPACK and published optimizers, other machine"] = Line2D([], [], **how)
    figure.legend(named.values(), named, loc="outside upper center", ncols=4)
    figure.supxlabel(textwrap.fill(caption, 175), x=0.01, ha="left", fontsize=6.5)
    return figure


def limit_ratios(axes: Any, own: list[Row]) -> None:
    """Keep the exact methods' ratios from pressing the others together: those above HIGHEST are told in words."""
    high = {
        row["method"]: row["ratio"] for row in sorted(own, key=lambda row: row["ratio"]) if row["ratio"] > HIGHEST
    }
    low, top = axes.get_ylim()
    axes.set_ylim(low, min(top, HIGHEST))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10) if low <= t <= min(top, HIGHEST)])
    if high:
        above = "\n".join(f"{method} up to {ratio:,.0f}" for method, ratio in high.items())
        how = {"transform": axes.transAxes, "fontsize": 6, "ha": "right", "va": "top", "bbox": PAPER}
        axes.text(0.98, 0.98, f"above: {above}", **how)


def draw_published(axes: Any, own: list[Row]) -> None:
    """Draw beside the ratios what the paper and other machines say: averages as dashed lines, ratios as stars."""
    for method, ratio in AVERAGES.items():
        axes.axhline(ratio, color=style(method)["color"], linewidth=1, linestyle="--", zorder=1)
    sizes = {row["network"]: row["parameters"] for row in own}
    for network in sizes.keys() & ELSEWHERE.keys():
        for k, (method, ratio) in enumerate(ELSEWHERE[network].items()):
            how = {"color": style(method)["color"], "markersize": 9, "markerfacecolor": "white", "zorder": 4}
            aside = (max(sizes.values()) / min(sizes.values())) ** (0.02 * (k - 2))  # so that no star hides another
            axes.plot(sizes[network] * aside, ratio, "*", **how)


def caption_of(rows: list[Row]) -> str:
    """Return what the figure says of itself: how often, with what, when, on what, and by which command."""
    import torch

    from hesscale_rl.runs.machine import cpu

    rounds = sorted({row["rounds"] for row in rows if "rounds" in row})
    many = " to ".join(f"{n}" for n in dict.fromkeys((rounds[0], rounds[-1])))
    gone: dict[tuple[str, int, str], str] = {}
    for row in rows:
        if "left_out" in row:
            gone.setdefault((row["method"], row["batch"], row["experiment"]), f"{row['network']} ({row['left_out']})")
    parts = [f"medians of {many} rounds, the band of the ratios their quartiles; memory: median of three processes"]
    parts += [f"{method} is left out from {where} on" for (method, _, _), where in gone.items()]
    words = [os.path.basename(os.path.abspath(word)) if "/" in word else word for word in sys.argv[1:]]
    parts += [f"one thread, {cpu()}, torch {torch.__version__}", time.strftime("%Y-%m-%d")]
    return "; ".join([*parts, "studies/cost.py " + " ".join(words)])


def check(output: str, experiments: Iterable[str]) -> None:
    """Raise InputError, before anything is measured, where the figure could not be made or written."""
    if not set(experiments) & TITLES.keys():
        raise InputError(f"-o {output}: there is no figure of the usual networks; add --experiment outputs or layers")
    check_output(target(output, "cost"))


def save(rows: list[Row], output: str) -> None:
    """Write OUT.png and OUT.csv, both or none."""
    import matplotlib

    name = target(output, "cost")
    with matplotlib.rc_context(FONTS):
        draw(rows, caption_of(rows)).savefig(picture := io.BytesIO(), format="png", dpi=150)
    table = csv.DictWriter(text := io.StringIO(), COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    write({Path(f"{name}.png"): picture.getvalue(), Path(f"{name}.csv"): text.getvalue().encode()})
    say(f"\n{name}.png\n{name}.csv")
