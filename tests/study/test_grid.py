"""Every kind of part against lists written by hand."""

import pytest

from prompt_jax.errors import UserError
from prompt_jax.study.grid import (
    After,
    AfterAll,
    Axis,
    Made,
    Point,
    Points,
    Product,
    Union,
    When,
    Zip,
)

LENGTH = Axis("length", (5, 20), "PROMPT_LENGTH")
SEED = Axis("RANDOM_SEED", (0, 1))
METHOD = Axis(
    "method",
    {
        "prompt": {"gin_file": "methods/prompt_tuning.gin"},
        "model": {"gin_file": ("methods/model_tuning.gin", "more.gin"), "STEPS": 3},
    },
)


def labels(part, so_far=None):
    return [point.labels for point in part.points(so_far or Point())]


def test_axis_of_plain_values():
    assert LENGTH.points(Point()) == [
        Point({"length": 5}, {"PROMPT_LENGTH": 5}),
        Point({"length": 20}, {"PROMPT_LENGTH": 20}),
    ]
    assert SEED.points(Point())[1] == Point({"RANDOM_SEED": 1}, {"RANDOM_SEED": 1})


def test_axis_of_settings_extends_the_point():
    so_far = Point({"a": 1}, {"STEPS": 1, "X": 2}, ("run.gin", "more.gin"))
    assert METHOD.points(so_far) == [
        Point(
            {"a": 1, "method": "prompt"},
            {"STEPS": 1, "X": 2},
            ("run.gin", "more.gin", "methods/prompt_tuning.gin"),
        ),
        Point(
            {"a": 1, "method": "model"},
            {"STEPS": 3, "X": 2},
            ("run.gin", "more.gin", "methods/model_tuning.gin"),
        ),
    ]


def test_product_goes_left_to_right():
    assert labels(Product((LENGTH, SEED))) == [
        {"length": 5, "RANDOM_SEED": 0},
        {"length": 5, "RANDOM_SEED": 1},
        {"length": 20, "RANDOM_SEED": 0},
        {"length": 20, "RANDOM_SEED": 1},
    ]
    assert labels(Product(())) == [{}]


def test_zip():
    part = Zip((LENGTH, Axis("rate", {"low": {"R": 0.1, "PROMPT_LENGTH": 7}, "high": {"R": 1}})))
    so_far = Point({"x": 0}, {"R": 9, "PROMPT_LENGTH": 9})
    assert part.points(so_far) == [
        Point({"x": 0, "length": 5, "rate": "low"}, {"R": 0.1, "PROMPT_LENGTH": 7}),
        Point({"x": 0, "length": 20, "rate": "high"}, {"R": 1, "PROMPT_LENGTH": 20}),
    ]
    with pytest.raises(UserError, match="length has 2, b has 3"):
        Zip((LENGTH, Axis("b", (1, 2, 3)))).points(Point())


def test_zip_keeps_what_the_first_part_set():
    """The second part repeats the settings of the point so far; they are no news."""
    part = Zip((Axis("a", {1: {"X": 1}}), Axis("b", {2: {"Y": 2}})))
    assert part.points(Point({}, {"X": 0}))[0].settings == {"X": 1, "Y": 2}


def test_union_and_points():
    part = Union(
        (
            LENGTH,
            Points(({"labels": {"case": "a"}, "X": 1, "gin_file": "a.gin"}, {"X": 2, "Y": 3})),
        )
    )
    assert part.points(Point()) == [
        *LENGTH.points(Point()),
        Point({"case": "a"}, {"X": 1}, ("a.gin",)),
        Point({"X": 2, "Y": 3}, {"X": 2, "Y": 3}),
    ]
    assert Union().points(Point()) == []


def test_when():
    part = Product((METHOD, When("method", ("prompt",), LENGTH, SEED)))
    assert labels(part) == [
        {"method": "prompt", "length": 5},
        {"method": "prompt", "length": 20},
        {"method": "model", "RANDOM_SEED": 0},
        {"method": "model", "RANDOM_SEED": 1},
    ]
    left_out = Product((LENGTH, SEED, When("length", (20,), None, Union())))
    assert labels(left_out) == [
        {"length": 20, "RANDOM_SEED": 0},
        {"length": 20, "RANDOM_SEED": 1},
    ]
    with pytest.raises(UserError, match="When.axis: no axis 'lenght' in length=5.*'length'"):
        Product((LENGTH, When("lenght", (1,)))).points(Point())


def test_after():
    source = Product((Axis("source", ("sst2", "mnli"), "TASK"), SEED))
    part = Product(
        (SEED, After("source", source, "PROMPT_FILE", "prompt.npy", ("RANDOM_SEED",), {"I": "f"}))
    )
    found = part.points(Point())
    earlier = source.points(Point())
    assert [point.labels for point in found] == [
        {"RANDOM_SEED": 0, "source": "sst2"},
        {"RANDOM_SEED": 0, "source": "mnli"},
        {"RANDOM_SEED": 1, "source": "sst2"},
        {"RANDOM_SEED": 1, "source": "mnli"},
    ]
    assert [point.needs for point in found] == [(earlier[n],) for n in (0, 2, 1, 3)]
    assert found[1].settings == {
        "RANDOM_SEED": 0,
        "I": "f",
        "PROMPT_FILE": Made(earlier[2], "prompt.npy"),
    }
    assert found[0].needs[0] is found[0].settings["PROMPT_FILE"].by


def test_after_joins_labels_and_must_find_a_run():
    source = Product((Axis("task", ("a",)), LENGTH, SEED))
    after = After("from", source, "PROMPT_FILE", "prompt.npy", ("RANDOM_SEED",))
    assert labels(Product((SEED, after)))[:2] == [
        {"RANDOM_SEED": 0, "from": "a/5"},
        {"RANDOM_SEED": 0, "from": "a/20"},
    ]
    with pytest.raises(UserError, match="no earlier run for RANDOM_SEED=7"):
        Product((Axis("RANDOM_SEED", (7,)), after)).points(Point())
    with pytest.raises(UserError, match="After.same: no axis 'RANDOM_SEED' in length=5"):
        Product((LENGTH, after)).points(Point())


def test_after_without_an_axis():
    source = Product((Axis("task", ("a", "b")), SEED))
    after = After("", source, "FILE", "prompt.npy", ("task",))
    with pytest.raises(UserError, match="After, FILE: task=a, RANDOM_SEED=0 and task=a, .*=1 agr"):
        Product((Axis("task", ("a",)), after)).points(Point())
    alone = After("", Axis("task", ("a", "b")), "FILE", "prompt.npy", ("task",))
    found = Product((Axis("task", ("b",)), alone)).points(Point())
    assert [point.labels for point in found] == [{"task": "b"}]
    assert found[0].settings["FILE"] == Made(alone.earlier[1], "prompt.npy")


def test_after_all():
    source = Product((Axis("task", ("a", "b")), SEED))
    after = AfterAll("prompts", source, "Prompts.paths", "prompt.npy", ("task",), {"I": "p"})
    found = Product((Axis("task", ("a", "b")), after)).points(Point())
    assert [point.labels for point in found] == [
        {"task": "a", "prompts": 2},
        {"task": "b", "prompts": 2},
    ]
    runs = after.earlier
    assert [point.needs for point in found] == [tuple(runs[:2]), tuple(runs[2:])]
    assert found[1].settings == {
        "task": "b",
        "I": "p",
        "Prompts.paths": (Made(runs[2], "prompt.npy"), Made(runs[3], "prompt.npy")),
    }
    assert labels(AfterAll("", source, "X", "p")) == [{}]
    with pytest.raises(UserError, match="AfterAll, axis 'prompts': no earlier run for task=c"):
        Product((Axis("task", ("c",)), after)).points(Point())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Product((LENGTH, LENGTH)).points(Point()), "axis 'length' comes twice"),
        (lambda: Axis("a", ()), "axis 'a' has no values"),
        (lambda: Axis("a", (1, 1)), "has a value twice"),
        (lambda: Axis("a", {"x": 3}), "axis 'a', 'x' is 3; write {'NAME': value, ...}"),
        (lambda: Axis("a", {"x": {"gin_file": 3}}), "gin_file = 3; one name or several"),
        (lambda: Points(({"labels": 3},)), "point 0, labels is 3"),
        (lambda: Product(("a",)), "Product.parts: 'a' is no part of a grid"),
        (lambda: After("a", 3, "X", "y"), "After.grid: 3 is no part"),
    ],
)
def test_refused(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
