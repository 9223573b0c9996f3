"""Statistics against twins written as loops, and against SciPy."""

import math
import random
import statistics as stdlib

import numpy as np
import pytest
import scipy.stats
from made_up_runs import record, study

from prompt_jax.errors import UserError
from prompt_jax.study import statistics

SAMPLES = [[0.5, 0.7], [0.1, 0.2, 0.9], [3.0, 3.0, 3.0], [-1.0, 0.0, 5.0, 2.5, 2.0, 7.0, 1.0]]


def loop_mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def loop_percentile(values, percent):
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    at = percent / 100 * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def loop_pearson(x, y):
    mx, my = loop_mean(x), loop_mean(y)
    xy = xx = yy = 0.0
    for a, b in zip(x, y, strict=True):
        xy += (a - mx) * (b - my)
        xx += (a - mx) ** 2
        yy += (b - my) ** 2
    return xy / math.sqrt(xx * yy)


@pytest.mark.parametrize("values", SAMPLES)
def test_mean_and_deviation(values):
    of = statistics.summarise(values, failed=2)
    squares = 0.0
    for value in values:
        squares += (value - loop_mean(values)) ** 2
    assert (of.n, of.failed) == (len(values), 2)
    assert of.mean == pytest.approx(loop_mean(values), abs=1e-12)
    assert of.sd == pytest.approx(math.sqrt(squares / (len(values) - 1)), abs=1e-12)
    assert of.sd == pytest.approx(stdlib.stdev(values), abs=1e-12)


@pytest.mark.parametrize("values", SAMPLES)
def test_bootstrap_interval(values):
    n, means = len(values), []
    for drawn in np.random.default_rng(0).integers(0, n, (10_000, n)):
        means.append(loop_mean([values[i] for i in drawn]))
    expected = loop_percentile(means, 2.5), loop_percentile(means, 97.5)
    assert statistics.bootstrap_interval(values) == pytest.approx(expected, abs=1e-12)
    if len(set(values)) > 1:
        peer = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=10_000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert statistics.bootstrap_interval(values) == pytest.approx(tuple(peer), abs=1e-12)


def test_bootstrap_covers_about_95_in_100():
    """The true mean lies inside in about 95 % of samples; a little less for 20 values."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        low, high = statistics.bootstrap_interval(rng.normal(0, 1, 20).tolist())
        inside += low <= 0 <= high
    assert 0.89 <= inside / 400 <= 0.97


def test_a_large_sample_is_drawn_in_blocks(monkeypatch):
    values = np.random.default_rng(3).normal(size=50).tolist()
    statistics._draws.cache_clear()
    whole = statistics.bootstrap_interval(values)
    statistics._draws.cache_clear()
    monkeypatch.setattr(statistics, "_BLOCK", 50 * 512)
    assert len(statistics._draws(50, 0)) == 20
    assert statistics.bootstrap_interval(values) == pytest.approx(whole, abs=1e-12)
    statistics._draws.cache_clear()


def test_the_seed_of_the_resamples_matters_and_repeats():
    first, again, other = (statistics.bootstrap_interval(SAMPLES[3], seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_few_values():
    one = statistics.summarise([0.25])
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.25, None, None, None)
    none = statistics.summarise([], failed=3)
    assert (none.n, none.mean, none.sd, none.failed) == (0, None, None, 3)
    assert statistics.correlation([1.0], [2.0]) is None
    assert statistics.correlation([1.0, 1.0], [2.0, 3.0]) is None
    assert statistics.correlation_interval([1.0, 2.0], [1.0, 2.0]) is None
    assert statistics.correlation_interval([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) is None


def test_correlation_and_its_interval():
    x, y = [0.1, 0.5, 0.2, 0.9, 0.4, 0.3], [1.0, 3.0, 1.5, 2.0, 2.5, 0.0]
    r = statistics.correlation(x, y)
    assert r == pytest.approx(loop_pearson(x, y), abs=1e-12)
    assert r == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    found = []
    for drawn in np.random.default_rng(0).integers(0, 6, (10_000, 6)):
        a, b = [x[i] for i in drawn], [y[i] for i in drawn]
        if len(set(a)) > 1 and len(set(b)) > 1:
            found.append(loop_pearson(a, b))
    expected = loop_percentile(found, 2.5), loop_percentile(found, 97.5)
    assert statistics.correlation_interval(x, y) == pytest.approx(expected, abs=1e-9)


# --- records ---


def test_only_ok_and_finite_counts():
    values = [0.5, 0.7, float("nan"), float("inf"), None, "0.9", True]
    runs = [{"status": "ok", "metrics": {"test": {"f1": v}}} for v in values]
    runs.append({"status": "failed", "metrics": {"test": {"f1": 0.1}}})
    runs.append({"status": "interrupted", "metrics": {}})
    of = statistics.summarise_records(runs[:6] + runs[7:], "metrics.test.f1")
    assert (of.n, of.failed) == (2, 6) and of.mean == pytest.approx(0.6)


def loop_best(records, by, sweep, choose, report):
    """group -> (setting, mean of report), by plain loops."""
    found = {}
    for key in {tuple(r["point"][a] for a in by) for r in records}:
        best = None
        settings = sorted({tuple(r["point"][a] for a in sweep) for r in records})
        for setting in settings:
            chosen, reported = [], []
            for r in records:
                mine = tuple(r["point"][a] for a in by) == key
                if mine and tuple(r["point"][a] for a in sweep) == setting and r["status"] == "ok":
                    chosen.append(r["metrics"]["validation"][choose])
                    reported.append(r["metrics"]["test"][report])
            if chosen and (best is None or loop_mean(chosen) > best[0]):
                best = (loop_mean(chosen), setting, loop_mean(reported))
        found[key] = best[1:]
    return found


def test_best_of_sweep():
    records = study(3)
    random.Random(0).shuffle(records)
    best = statistics.best_of_sweep(
        records,
        ["point.model", "point.method"],
        ["point.rate"],
        "metrics.validation.accuracy",
        "metrics.test.f1",
    )
    expected = loop_best(records, ["model", "method"], ["rate"], "accuracy", "f1")
    assert {b.key: b.chosen.setting for b in best} == {k: v[0] for k, v in expected.items()}
    for of in best:
        assert of.chosen.report.mean == pytest.approx(expected[of.key][1], abs=1e-12)
        assert [trial.setting for trial in of.trials] == [(0.03,), (0.1,), (0.3,), (1.0,)]
        assert all(t.report.n + t.report.failed == 3 == len(t.records) for t in of.trials)
    assert sum(t.report.failed for b in best for t in b.trials) == sum(
        r["status"] == "failed" for r in records
    )


def made(rate, validation, test, status="ok"):
    metrics = {"validation": {"a": validation}, "test": {"a": test}}
    return record({"rate": rate}, status=status, metrics=metrics)


def test_best_of_sweep_at_the_edges():
    def best(records, mode="max"):
        (found,) = statistics.best_of_sweep(
            records, [], ["point.rate"], "metrics.validation.a", "metrics.test.a", mode
        )
        return found

    tie = best([made(1.0, 0.5, 0.1), made(0.1, 0.5, 0.9)])
    assert tie.chosen.setting == (0.1,) and tie.chosen.report.mean == 0.9
    runs = [made(0.1, 0.2, 0.3), made(0.3, 0.9, 0.8, "failed"), made(1.0, 0.4, 0.5)]
    assert best(runs).chosen.setting == (1.0,)
    assert best(runs, "min").chosen.setting == (0.1,)
    lost = best([made(0.1, 0.2, 0.3, "failed")])
    assert lost.chosen is None and lost.trials[0].report.failed == 1
    # Chosen by validation, even where the test would rather have the other.
    assert best([made(0.1, 0.5, 0.9), made(0.3, 0.6, 0.1)]).chosen.report.mean == 0.1


def test_means_over_other_axes_are_refused():
    records = study(2)
    statistics.check_seeds(records[:2], ["point.RANDOM_SEED"])
    with pytest.raises(UserError, match="fig: a mean over point.rate = 0.03, 0.1, 0.3, 1.0 mixes"):
        accounted = [f"point.{a}" for a in ("model", "method", "RANDOM_SEED")]
        statistics.check_seeds(records, accounted, "fig: ")
