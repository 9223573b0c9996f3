"""Wrappings of a task's text, composed of parts: for ensembles and for training over many wordings.

A template is an input wrapper, an output wrapper, what stands between the two and between examples.
Source: Voronov, Wolf, Ryabinin 2024 (Mind Your Format), section 3; PAFT (Wei et al. 2025) draws one
for some steps of training.
"""

import dataclasses
import itertools

import numpy as np

_INPUTS = ("input: {}", "text: {}", "sentence: {}", "{}")
_OUTPUTS = ("output: {}", "target: {}", "label: {}", "{}")
_OF_KIND = {
    "sentiment": (
        "emotion: {}",
        "sentiment: {}",
        "A {} one.",
        "It was {}.",
        "All in all {}.",
        "A {} piece.",
    ),
    "topic": ("Topic: {}.", "Subject: {}.", "This is about {}.", "It is about {} one."),
}
_SEPARATORS = (" ", "\n")
_BETWEEN = (" ", "\n", "\n\n")


@dataclasses.dataclass(frozen=True)
class Template:
    """How inputs and answers are written.

    Attributes:
        input: wrapper with `{}` for the input.
        output: wrapper with `{}` for the answer.
        separator: between the two.
        between: between examples in the context.
    """

    input: str = "{}"
    output: str = "{}"
    separator: str = " "
    between: str = " "

    def example(self, text: str, answer: str) -> str:
        """An input with its answer, for the context."""
        return self.input.format(text) + self.separator + self.output.format(answer)

    def question(self, text: str) -> str:
        """An input up to where the decoder answers; what follows the answer is left out."""
        before = self.output.partition("{}")[0].rstrip()
        return self.input.format(text) + (self.separator + before if before else "")


def space(kind: str = "sentiment") -> list[Template]:
    """All templates of a kind: 240 for "sentiment", 192 for "topic".

    Raises:
        KeyError: another kind.
    """
    outputs = (*_OUTPUTS, *_OF_KIND[kind])
    parts = itertools.product(_INPUTS, outputs, _SEPARATORS, _BETWEEN)
    return [Template(*each) for each in parts]


def draw(count: int, seed: int, unseen: bool = False) -> list[Template]:
    """Templates that differ in their wrappers, drawn without repeats.

    Wrappers are divided, always alike, into those for training and the unseen ones: no wrapper of
    a training template is in an unseen one.

    Args:
        count: how many, at most what `pool` holds.
        seed: of the draw.
        unseen: from the unseen half.

    Raises:
        ValueError: more are asked for than there are.
    """
    found = pool(unseen)
    if count > len(found):
        raise ValueError(f"{count} templates are asked for, there are {len(found)}")
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[at] for at in order]


def pool(unseen: bool = False) -> list[Template]:
    """The general templates of one half: two input and two output wrappers, both separators."""
    half = slice(2, 4) if unseen else slice(0, 2)
    parts = itertools.product(_INPUTS[half], _OUTPUTS[half], _SEPARATORS)
    return [Template(*each) for each in parts]
