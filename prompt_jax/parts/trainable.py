"""What moves, and how: path rules sort leaves into optimizer groups; no group means frozen.

Learning rates are part of an optimizer's state, so that runs of a fleet may have different ones.
"""

import dataclasses
import math
import re
from typing import Any, ClassVar

import optax

from prompt_jax.errors import UserError

Tree = dict[str, Any]  # flat: "prompt/encoder" -> array


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor with a constant rate (Shazeer and Stern 2018), as Lester et al. 2021 use it.

    v_t = b_t v_{t-1} + (1 - b_t) g^2, b_t = 1 - (t + step)^-decay_rate, t = 1, 2, ...;
    u = g / sqrt(v_t), u / max(1, rms(u) / clipping_threshold);
    x <- (1 - weight_decay) x - learning_rate u.

    Attributes:
        learning_rate: the constant rate.
        weight_decay: relative decay per step, not scaled by the rate.
        decay_rate: exponent of the second moment's decay.
        step: where the decay's clock starts (ADAFACTOR_STEP): 0, or 1,100,000 as in the
            reference, which restores a T5 1.1 LM-adapted checkpoint and keeps its step.
        factored: row and column means instead of v (matrices only).
        multiply_by_parameter_scale: the rate is multiplied by the parameter's RMS.
        clipping_threshold: largest RMS of an update before the rate.
    """

    learning_rate: float = 0.3
    weight_decay: float = 1e-5
    decay_rate: float = 0.8
    step: int = 0
    factored: bool = False
    multiply_by_parameter_scale: bool = False
    clipping_threshold: float = 1.0

    kind: ClassVar = "gradient"  # of the phases that it serves
    varies: ClassVar = ("learning_rate",)

    def build(self, live: float = 1.0) -> optax.GradientTransformation:
        """The optax chain.

        Args:
            live: share of a padded leaf's numbers that are a prompt's own. The others have no
                gradient, so an update's RMS over the leaf is that of its own numbers times
                sqrt(live); the threshold follows.
        """

        def chain(learning_rate, clipping_threshold):
            return optax.adafactor(
                learning_rate=learning_rate,
                decay_rate=self.decay_rate,
                decay_offset=-self.step,
                factored=self.factored,
                multiply_by_parameter_scale=self.multiply_by_parameter_scale,
                clipping_threshold=clipping_threshold,
                weight_decay_rate=self.weight_decay or None,
            )

        threshold = self.clipping_threshold * math.sqrt(live)
        return optax.inject_hyperparams(chain)(self.learning_rate, threshold)

    @property
    def pads(self) -> bool:
        """Whether rows without a gradient leave the others' updates as they are."""
        return not (self.factored or self.multiply_by_parameter_scale)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019): linear warm-up, then a cosine to `end_rate`.

    Attributes:
        learning_rate: the peak rate.
        warmup_steps: steps from 0 to the peak.
        decay_steps: steps from 0 to `end_rate`; 0 keeps the peak for ever.
        end_rate: the last rate, as a share of the peak.
        b1: decay of the first moment.
        b2: decay of the second moment.
        weight_decay: decay per step, scaled by the rate.
        clip_norm: largest global norm of the gradient; 0 leaves it alone.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay_steps: int = 0
    end_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    kind: ClassVar = "gradient"
    varies: ClassVar = ("learning_rate",)
    pads: ClassVar = True  # a row without a gradient moves none

    def schedule(self) -> optax.Schedule:
        """Share of the peak by step."""
        first = 0.0 if self.warmup_steps else 1.0
        if self.decay_steps:
            return optax.warmup_cosine_decay_schedule(
                first, 1.0, self.warmup_steps, self.decay_steps, self.end_rate
            )
        return optax.linear_schedule(first, 1.0, max(self.warmup_steps, 1))

    def build(self, live: float = 1.0) -> optax.GradientTransformation:
        """The optax chain; `live` changes nothing here (see Adafactor)."""
        del live

        def chain(learning_rate):
            clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
            adamw = optax.adamw(self.schedule(), self.b1, self.b2, weight_decay=self.weight_decay)
            return optax.chain(clip, adamw, optax.scale(learning_rate))

        return optax.inject_hyperparams(chain)(self.learning_rate)


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Path rules, first match wins; every leaf must be covered.

    Attributes:
        rules: (regular expression for the whole path, group or None for frozen).
        optimizer: the optimizer of the group "train".
        groups: optimizers of further groups, by name.
    """

    rules: tuple = (("prompt/.*", "train"), ("backbone/.*", None))
    optimizer: Any = Adafactor()
    groups: dict[str, Any] = dataclasses.field(default_factory=dict)

    def used(self) -> dict[str, Any]:
        """The optimizers of the groups that rules name, by group."""
        named = {group for _, group in self.rules if group}
        return {g: o for g, o in {"train": self.optimizer, **self.groups}.items() if g in named}

    def labels(self, paths) -> dict[str, str | None]:
        """The group of each path.

        Raises:
            UserError: paths that no rule covers, or a rule that names an unknown group.
        """
        known = {"train", *self.groups}
        unknown = sorted({group for _, group in self.rules if group and group not in known})
        if unknown:
            raise UserError(f"Trainable.rules name groups {unknown}; there are {sorted(known)}")
        labels, uncovered = {}, []
        for path in paths:
            for pattern, group in self.rules:
                if re.fullmatch(pattern, path):
                    labels[path] = group
                    break
            else:
                uncovered.append(path)
        if uncovered:
            raise UserError(
                f"Trainable.rules cover no rule for {uncovered[:5]}"
                f"{' ...' if len(uncovered) > 5 else ''}; add (pattern, 'train') or (pattern, None)"
            )
        return labels

    def split(self, params: Tree) -> tuple[Tree, Tree, Tree]:
        """(frozen, trainable, buffers): `params` sorted by the rules.

        What no rule moves is frozen, the same for all runs, if it is the backbone's, and else a
        buffer: a run's own.
        """
        labels = self.labels(params)
        frozen, trainable, buffers = {}, {}, {}
        for path, leaf in params.items():
            still = frozen if path.startswith("backbone/") else buffers
            (still if labels[path] is None else trainable)[path] = leaf
        return frozen, trainable, buffers

    def build(self, paths, live: float = 1.0) -> Any:
        """The optimizer over a trainable tree with these paths; `live` as in `Adafactor.build`."""
        labels = self.labels(paths)
        optimizers = {"train": self.optimizer, **self.groups}
        used = sorted(set(labels.values()))
        if used == ["train"]:
            return self.optimizer.build(live)
        return optax.partition({group: optimizers[group].build(live) for group in used}, labels)
