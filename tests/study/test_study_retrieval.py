"""Best of top-k, its random twin, and the figure of both, against lists worked out by hand."""

import itertools
import random

import pytest

from prompt_jax.errors import UserError
from prompt_jax.study.retrieval import Candidate, Retrieval, best_of_nearest, best_of_random

FIGURE = Retrieval(
    name="retrieval",
    y="metrics.test.accuracy",
    choose="metrics.validation.accuracy",
    similarity="metrics.validation.similarity/average",
)
# (similarity, validation, test): the second nearest is best by validation, the last by test.
ONE = (Candidate(0.9, 0.5, 0.50), Candidate(0.6, 0.8, 0.70), Candidate(0.1, 0.7, 0.90))


def drawn(seed, count=6):
    rng = random.Random(seed)
    # Few levels of validation: ties.
    return [Candidate(rng.random(), rng.randrange(3) / 4, rng.random()) for _ in range(count)]


def test_best_of_the_nearest_by_hand():
    assert [best_of_nearest(ONE, k) for k in (1, 2, 3)] == [ONE[0], ONE[1], ONE[1]]
    equal = [Candidate(0.2, 0.5, 0.1), Candidate(0.7, 0.5, 0.9)]
    assert best_of_nearest(equal, 2) == equal[1]  # of equals the more similar


@pytest.mark.parametrize("seed", range(5))
def test_more_sources_are_never_worse_by_validation(seed):
    found = [best_of_nearest(drawn(seed), k).choose for k in range(1, 7)]
    assert found == sorted(found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_random_sources_against_every_subset(seed, k):
    candidates = drawn(seed)
    # The order of a subset decides nothing but ties, which go to the more similar.
    best = [best_of_nearest(subset, k) for subset in itertools.combinations(candidates, k)]
    choose, value = best_of_random(candidates, k)
    assert choose == pytest.approx(sum(each.choose for each in best) / len(best))
    assert value == pytest.approx(sum(each.value for each in best) / len(best))


def test_random_beyond_all_is_the_best_of_all():
    assert best_of_random(ONE, 9) == (ONE[1].choose, ONE[1].value)


def record(target, source, seed, numbers, status="ok"):
    similarity, validation, test = numbers
    known = {} if similarity is None else {"similarity/average": similarity}
    return {
        "id": f"{target}{source}{seed}",
        "status": status,
        "point": {"target": target, "source": source, "RANDOM_SEED": seed},
        "metrics": {"validation": {"accuracy": validation, **known}, "test": {"accuracy": test}},
    }


def records():
    """Two targets, two sources, two seeds."""
    return [
        record("a", "none", 0, (None, 0.3, 0.4)),
        record("a", "x", 0, (0.9, 0.5, 0.5)),
        record("a", "y", 0, (0.1, 0.7, 0.6)),
        record("b", "none", 0, (None, 0.3, 0.2)),
        record("b", "x", 0, (0.2, 0.6, 0.8)),
        record("b", "y", 0, (0.8, 0.4, 0.4)),
        record("a", "none", 1, (None, 0.3, 0.6)),
        record("a", "x", 1, (0.9, 0.5, 0.7)),
        record("a", "y", 1, (0.1, 0.4, 0.9)),
        record("b", "none", 1, (None, 0.3, 0.4)),
        record("b", "x", 1, (0.2, 0.6, 1.0)),
        record("b", "y", 1, (0.8, 0.7, 0.5)),
    ]


def test_the_figure_by_hand():
    made = FIGURE.draw(records())
    rows = {(row["kind"], row["k"]): row for row in made.rows}
    assert list(rows) == [
        *(("retrieved", k) for k in (1, 2)),
        *(("random", k) for k in (1, 2)),
        ("best of all", None),
        ("no transfer", None),
    ]
    # Nearest of a is x, of b is y: test 0.5 and 0.4 with seed 0, 0.7 and 0.5 with seed 1.
    first = rows["retrieved", 1]
    assert (first["n"], first["mean"]) == (2, pytest.approx((0.45 + 0.6) / 2))
    assert first["sd"] == pytest.approx(0.15 / 2**0.5)
    assert first["choose_mean"] == pytest.approx((0.45 + 0.6) / 2)
    # Best of both: y and x with seed 0; x and y with seed 1.
    for row in (rows["retrieved", 2], rows["random", 2], rows["best of all", None]):
        assert row["mean"] == pytest.approx((0.7 + 0.6) / 2)
        assert row["choose_mean"] == pytest.approx((0.65 + 0.6) / 2)
    assert rows["random", 1]["mean"] == pytest.approx((0.575 + 0.775) / 2)
    assert rows["no transfer", None]["mean"] == pytest.approx((0.3 + 0.5) / 2)
    assert made.png[:4] == b"\x89PNG" and "no transfer" in made.svg


def test_failed_runs_are_left_out_and_counted():
    given = records()
    given[2]["status"] = "failed"  # a from y, seed 0
    rows = FIGURE.draw(given).rows
    best = next(row for row in rows if row["kind"] == "best of all")
    assert best["failed"] == 1 and best["mean"] == pytest.approx((0.65 + 0.6) / 2)
    given[0]["status"] = "failed"  # a without transfer, seed 0: the mean is of seed 1 alone
    baseline = FIGURE.draw(given).rows[-1]
    assert (baseline["n"], baseline["mean"]) == (1, pytest.approx(0.5))


def test_complaints():
    with pytest.raises(UserError, match="figure retrieval: a has two runs from 'none' at equal"):
        FIGURE.draw([{**each, "point": {**each["point"], "RANDOM_SEED": 0}} for each in records()])
    lost = [{**each, "status": "failed"} for each in records()]
    with pytest.raises(UserError, match="figure retrieval: a: no run from a source has a metric"):
        FIGURE.draw(lost)
