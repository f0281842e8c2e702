"""How figures look: what a line may show, what stands for an interval, and one legend each."""

import numpy as np
import pytest
from test_plot import command, run

from hesscale_rl.errors import DONE
from hesscale_rl.scripts import plot
from hesscale_rl.scripts.analysis.lines import EVERYWHERE


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, each with its caption; nothing is written."""
    found, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda *given: found.append((draw(*given), given[-1])) or found[-1][0])
    monkeypatch.setattr(plot, "write", lambda contents: None)
    return found


def lines_of(figure, panel):
    """Of a figure, the lines with a name in its legend: the y that are drawn, of the panel whose title has a word."""
    axes = next(axes for axes in figure.axes if panel in axes.get_title())
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}, axes


def test_lines_stop_where_all_runs_diverged_and_never_leave_the_axes(tmp_path, monkeypatch, capsys, drawn):
    for env, settings in (("Hopper-v5", {}), ("Ant-v5", {"delta": 1e-4})):
        for rate, bad in ((0.001, 0), (0.01, 1), (0.1, 5), (1.0, 5)):
            for seed in range(5):
                how = {"status": "diverged", "end": 600} if seed < bad else {}
                add = -1e7 if rate == 0.01 and seed < bad else seed - rate
                how |= {"env_id": env, "learning_rate": rate, **settings}
                run(tmp_path, f"{env}-{rate}-{seed}", seed, add=add, **how)
    assert command(monkeypatch, capsys, "sensitivity", tmp_path)[0] == DONE
    assert command(monkeypatch, capsys, "curves", tmp_path, "--all")[0] == DONE
    (points, caption), (bands, _) = drawn
    assert caption.startswith("mean, 95 % bootstrap intervals; ") and len(points.legends) == len(bands.legends) == 1
    named, axes = lines_of(points, "Hopper")
    assert np.isfinite(named["adam (n = 5)"].get_ydata()).tolist() == [True, False, False, False]
    named, _ = lines_of(points, EVERYWHERE)
    assert np.isfinite(named["adam (n = 5)"].get_ydata())[2:].tolist() == [False, False]
    assert np.isfinite(named["all runs diverged"].get_ydata()).sum() == 2  # grey, with no line to them
    for panel in bands.axes:
        low, high = panel.get_ylim()
        ys = np.concatenate([np.ravel(line.get_ydata()) for line in panel.lines if len(line.get_xdata()) > 1])
        assert ((ys >= low) & (ys <= high) | np.isnan(ys)).all()


def test_fewer_than_five_runs_have_no_interval_and_are_drawn_singly(tmp_path, monkeypatch, capsys, drawn):
    for rate in (0.001, 0.1):
        for seed in range(4):
            run(tmp_path, f"{rate}-{seed}", seed, add=seed, learning_rate=rate, kl_clip=0.5 if rate == 0.1 else 0.1)
    for kind in ("sensitivity", "curves"):
        assert command(monkeypatch, capsys, kind, tmp_path)[0] == DONE
    (points, caption), (bands, other) = drawn
    assert "%" not in caption + other and "single runs: fewer than 5 a group" in caption
    assert len([line for line in points.axes[0].lines if line.get_marker() == "." and len(line.get_xdata())]) == 8
    assert len([line for line in bands.axes[0].lines if line.get_linewidth() == 0.6]) == 8
    names = [text.get_text() for text in bands.legends[0].get_texts()]
    assert names == ["adam, kl clip 0.1, lr 0.001 (n = 4)", "adam, kl clip 0.5, lr 0.1 (n = 4)"]  # in words
    run(tmp_path, "more", 4, learning_rate=0.1, kl_clip=0.5)
    assert command(monkeypatch, capsys, "curves", tmp_path)[0] == DONE
    assert "95 % bootstrap intervals of 5 runs or more, else single runs; " in drawn[-1][1]


def test_a_legend_has_learning_rates_where_all_panels_have_the_same(tmp_path, monkeypatch, capsys, drawn):
    run(tmp_path, "a")
    run(tmp_path, "b", learning_rate=0.1)
    run(tmp_path, "c", env_id="Ant-v5")
    assert command(monkeypatch, capsys, "curves", tmp_path, "--all")[0] == DONE
    run(tmp_path, "d", env_id="Ant-v5", learning_rate=0.1)
    assert command(monkeypatch, capsys, "curves", tmp_path, "--all")[0] == DONE
    names = [[text.get_text() for text in figure.legends[0].get_texts()] for figure, _ in drawn]
    assert names == [["adam (n = 1)", "adam, lr no. 2 (n = 1)"], ["adam, lr 0.001 (n = 1)", "adam, lr 0.1 (n = 1)"]]
    below = [axes.texts[-1].get_text() for axes in drawn[0][0].axes]
    assert below == ["learning rates: adam 0.001", "learning rates: adam 0.001, adam, lr no. 2 0.1"]
