"""What runs have in common: `varies` is taken out at any depth, nothing else is."""

import dataclasses
from typing import Any, ClassVar

import pytest

from prompt_jax.alike import common, difference, fleet_key


@dataclasses.dataclass(frozen=True)
class Rate:
    rate: float = 0.1
    decay: float = 0.0
    varies: ClassVar[tuple[str, ...]] = ("rate",)


@dataclasses.dataclass(frozen=True)
class Other:
    rate: float = 0.1
    decay: float = 0.0
    varies: ClassVar[tuple[str, ...]] = ("rate",)


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple = (Rate(),)
    lengths: dict[str, Any] = dataclasses.field(default_factory=lambda: {"a": Rate(), "b": 1})
    seed: int = 0
    varies: ClassVar[tuple[str, ...]] = ("seed",)


@pytest.mark.parametrize(
    "other",
    [
        Whole(seed=7),
        Whole(parts=(Rate(0.3),)),
        Whole(lengths={"b": 1, "a": Rate(5.0)}),
    ],
)
def test_what_varies_is_no_difference(other):
    assert common(other) == common(Whole()) and fleet_key(other) == fleet_key(Whole())
    assert difference(common(other), common(Whole())) is None


@pytest.mark.parametrize(
    "other",
    [
        Whole(parts=(Rate(decay=0.1),)),
        Whole(parts=(Other(),)),
        Whole(parts=(Rate(), Rate())),
        Whole(lengths={"a": Rate(), "b": 2}),
        Whole(lengths={"a": Rate(), "c": 1}),
    ],
)
def test_everything_else_is(other):
    assert common(other) != common(Whole()) and fleet_key(other) != fleet_key(Whole())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Whole(parts=(Rate(decay=0.1),)), ("Rate.decay", 0.1, 0.0)),
        (Whole(parts=(Other(),)), ("Whole.parts[0]", "Other", "Rate")),
        (Whole(lengths={"a": Rate(), "b": 2}), ("Whole.lengths['b']", 2, 1)),
        (Whole(lengths={"a": Rate(), "c": 1}), ("Whole.lengths", "'a', 'c'", "'a', 'b'")),
    ],
)
def test_the_first_difference_is_named(other, expected):
    assert difference(common(other), common(Whole())) == expected


def test_the_key_is_the_same_in_every_process():
    assert fleet_key((1, "a", None, 0.5)) == "495bed6d936a"
