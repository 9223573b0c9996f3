"""The phases of a run, laid over its steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stage:
    """A phase of a run: its steps are `first` + 1 to `last`.

    Attributes:
        number: of the phase, from 0.
        phase: what happens.
        first: steps done before it.
        last: steps done after it.
    """

    number: int
    phase: Any
    first: int
    last: int


def stages_of(phases: Sequence, steps: int) -> tuple[Stage, ...]:
    """The phases of a run of `steps`.

    Raises:
        UserError: there is none, names repeat, or their steps are not those of the run.
    """
    names = [phase.name for phase in phases]
    if not phases or len({*names}) < len(names):
        raise UserError(f"Method.phases are named {names}: one or more, each with its own name")
    found, done = [], 0
    for number, phase in enumerate(phases):
        if phase.steps < 0:
            raise UserError(f"phase {phase.name!r}: steps = {phase.steps} is negative")
        own = round(phase.steps * steps) if phase.steps < 1 else int(phase.steps)
        last = done + own if phase.steps else steps
        if steps and last == done:
            raise UserError(
                f"TRAIN_STEPS = {steps} leave phase {phase.name!r} no step: "
                f"{[(each.name, each.steps) for each in phases]}"
            )
        if last > steps or (phase.steps == 0 and number + 1 < len(phases)):
            raise UserError(
                f"TRAIN_STEPS = {steps} are used up before phase {names[-1]!r}: "
                f"{[(each.name, each.steps) for each in phases]}"
            )
        found.append(Stage(number, phase, done, last))
        done = last
    if done < steps:
        raise UserError(
            f"Method.phases take {done} of TRAIN_STEPS = {steps}; steps = 0 gives the last the rest"
        )
    return tuple(found)


def stage_of(found: Sequence[Stage], step: int) -> Stage:
    """The stage in which a step is (step 0: the first)."""
    return next(stage for stage in found if step <= stage.last)
