"""Intervals and limits of curves, computed a second time by scipy or by rliable."""

import numpy as np
import pytest
import scipy.stats

from hesscale_rl.scripts.analysis import curves


def test_one_task_agrees_with_scipy():
    scores = np.random.default_rng(1).gamma(2.0, size=12)
    drawn = scipy.stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    value, low, high = curves.interval([scores], "mean", "bootstrap")
    np.testing.assert_allclose([low, high], drawn.confidence_interval, atol=0.05 * (high - low))
    value, low, high = curves.interval([scores], "mean", "se")
    assert [value - low, high - value] == pytest.approx([scipy.stats.sem(scores)] * 2)
    for tasks in ([scores[:1]], [scores, scores[:1]]):  # one run has no interval, nor have tasks of which one has it
        assert np.isnan([curves.interval(tasks, "mean", error)[1:] for error in ("bootstrap", "se")]).all()
    test = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert curves.student(scores) == pytest.approx((test.low, test.high))


def test_several_tasks_agree_with_rliable_and_may_differ_in_their_runs():
    # rliable 1.2.0: get_interval_estimates with 50,000 and create_performance_profile with 20,000 resamples.
    scores = np.random.default_rng(7).normal([0.2, 0.5, 1.0, 2.0], [0.1, 0.3, 0.5, 1.0], (10, 4))
    assert curves.iqm(list(scores.T)) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))
    iqm, mean = (curves.interval(list(scores.T), name, "bootstrap") for name in ("iqm", "mean"))
    np.testing.assert_allclose(iqm, [0.52767, 0.40059, 0.67258], atol=0.01)
    assert iqm.tolist() == curves.interval(list(scores.T), "iqm", "bootstrap").tolist()  # nothing is left to chance
    np.testing.assert_allclose(mean, [0.77322, 0.62813, 0.92259], atol=0.01)
    above = [(task[:, None] > np.linspace(0, 1, 5)).astype(float) for task in scores.T]
    value, *ends = curves.interval(above, "mean", "bootstrap")
    np.testing.assert_allclose(value, [0.975, 0.625, 0.475, 0.375, 0.3])
    reference = [[0.925, 0.525, 0.375, 0.275, 0.225], [1.0, 0.7, 0.575, 0.475, 0.375]]
    np.testing.assert_allclose(ends, reference, atol=0.026)  # a share of 40 runs has steps of 0.025
    unequal = [np.array([1.0, 2.0, 3.0]), np.array([10.0])]
    assert curves.mean(unequal) == 6 and curves.iqm(unequal) == 2.5  # of 1, 2, 3, 10 the middle half
    drawn = curves.stratified_bootstrap(unequal, curves.mean, 500, np.random.default_rng(0))
    assert drawn.shape == (500,) and (drawn.min(), drawn.max()) == (5.5, 6.5)
    drawn = curves.stratified_bootstrap(np.array([[1.0, 2.0]] * 5), curves.mean, 9, np.random.default_rng(0))
    assert drawn.tolist() == [1.5] * 9  # no task takes another's runs


def test_intervals_cover_what_they_should():
    samples = np.random.default_rng(2).normal(size=(20, 200))
    for statistic in ("mean", "iqm"):
        _, low, high = curves.interval([samples], statistic, "bootstrap")
        assert 0.88 <= np.mean((low <= 0) & (high >= 0)) <= 0.99


def test_runs_that_exploded_do_not_ruin_the_axis():
    none, good = np.empty(0), np.linspace(0, 400, 40)
    assert curves.limits(np.append(good, [-1e6, np.nan]), none) == (-20, 420)
    assert curves.limits(np.append(np.full(40, 9.0), 500.0), none)[1] > 500  # the only one that learned
    many = np.append(good, -1e6 * np.arange(1, 31))
    assert curves.limits(many, good) == (-20, 420) and curves.limits(many, none)[0] < -1e6
    low, high = curves.limits(np.full(3, -1e6), good)  # nothing of what is drawn is in reach of the sound runs
    assert low < -1e6 < high < -9e5
