"""Joins a backbone and the parts of a method into functions: the one place that knows both."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from prompt_jax.losses import CrossEntropy
from prompt_jax.models.t5 import storage
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5, identity_tap
from prompt_jax.parts.head import LMHead
from prompt_jax.parts.init import Vocabulary
from prompt_jax.parts.phases import Gradient
from prompt_jax.parts.select import Static
from prompt_jax.parts.trainable import Trainable

Tree = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """A named composition of parts (DESIGN section 5).

    Attributes:
        name: shown in records.
        bank: how vectors are stored; None for a method without a prompt (model tuning).
        select: which vectors serve an example.
        inject: where they enter; None with `bank` None.
        head: how the answer is read.
        losses: what is minimised.
        trainable: what moves, and how.
        phases: in what order.
    """

    name: str
    bank: Any = None
    select: Any = Static()
    inject: Any = None
    head: Any = LMHead()
    losses: tuple = (CrossEntropy(),)
    trainable: Any = Trainable()
    phases: tuple = (Gradient(),)

    @property
    def slots(self) -> int:
        """P: slots that the data layer writes into each example's input."""
        return self.bank.length if self.bank else 0


def flatten(tree: dict) -> Tree:
    """Nested tree -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(tree: Tree) -> dict:
    """{"a/b/c": leaf} -> nested tree."""
    return traverse_util.unflatten_dict(tree, sep="/")


@dataclasses.dataclass(frozen=True)
class Model:
    """Backbone and method as functions of one flat tree of parameters.

    Paths begin with "backbone/" (the T5, names as T5X's, layers stacked) or "prompt/".

    Attributes:
        network: the T5.
        method: the parts.
        fetch: brings in weights that are used outside the layers (embedding, head); None
            leaves them where they are.
    """

    network: T5
    method: Method
    fetch: Callable[[dict], dict] | None = None

    def init_backbone(self, key: Array) -> Tree:
        """Fresh weights of the backbone, as they are stored."""
        token = jnp.zeros((1, 1), jnp.int32)
        batch = {
            "encoder_input_tokens": token,
            "encoder_segment_ids": token,
            "decoder_input_tokens": token,
            "decoder_segment_ids": token,
        }
        params = self.network.init(key, batch)["params"]
        stored = {}
        for path, leaf in traverse_util.flatten_dict(params).items():
            dtype = storage.stored_dtype(path, self.network.config)
            for name, array in storage.store(path[-1], leaf, dtype).items():
                stored["/".join(("backbone", *path[:-1], name))] = array
        return stored

    def init_prompt(self, key: Array, vocabulary: Vocabulary) -> Tree:
        """Fresh leaves of the method."""
        if not self.method.bank:
            return {}
        return flatten({"prompt": self.method.bank.init_params(key, vocabulary)})

    def tap(self, params: Tree, batch: dict[str, Array]):
        """The tap that brings the prompt in; the identity for a method without one."""
        if not self.method.bank:
            return identity_tap
        nested = unflatten({k: v for k, v in params.items() if k.startswith("prompt/")})
        prompts = self.method.bank.prompts(nested["prompt"])
        return self.method.inject.tap(self.method.select(prompts, batch))

    def variables(self, params: Tree) -> dict:
        """The backbone's variables, as the network takes them."""
        backbone = {k: v for k, v in params.items() if k.startswith("backbone/")}
        if self.fetch:
            outside = {k: v for k, v in backbone.items() if "/layers/" not in k}
            fetched = self.fetch(unflatten(outside)["backbone"])
            backbone.update(flatten({"backbone": fetched}))
        return {"params": unflatten(backbone)["backbone"]}

    def outputs(
        self, params: Tree, batch: dict[str, Array], key: Array | None = None
    ) -> dict[str, dict[str, Array]]:
        """The outputs record of a batch.

        Args:
            params: frozen and trainable leaves, joined.
            batch: arrays of `data.layout`, rows [B, T] and [B, U].
            key: dropout key; None turns dropout off.

        Returns:
            {"main": {"encoded" [B, T, H], "states" [B, U, H], and what the head reads}}.
        """
        tap = self.tap(params, batch)
        variables = self.variables(params)
        rngs = {} if key is None else {"dropout": key}

        def passes(network):
            options = {"tap": tap, "deterministic": key is None}
            tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
            encoded = network.encode(tokens, segments, **options)
            states = network.decode(
                encoded,
                segments,
                batch["decoder_input_tokens"],
                batch["decoder_segment_ids"],
                **options,
            )
            return {"encoded": encoded, "states": states}

        def logits_of(states):
            return self.network.apply(variables, states, method="logits")

        record = nn.apply(passes, self.network)(variables, rngs=rngs)
        head = self.method.head(
            logits_of,
            record["states"],
            batch["decoder_target_tokens"],
            self.network.config.vocab_size,
        )
        return {"main": {**record, **head}}


def assemble(
    config: T5Config, method: Method, fetch_layer: Callable[[dict], dict] | None = None
) -> Model:
    """The model of a run.

    Args:
        config: the backbone's sizes and dtypes.
        method: the parts.
        fetch_layer: how one layer's weights are brought in (gather, cast); None keeps them.
    """
    hook = {} if fetch_layer is None else {"fetch_layer": fetch_layer}
    return Model(T5(config, **hook), method, fetch_layer)
