"""Joins a backbone and the parts of a method into functions: the one place that knows both."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from prompt_jax import losses
from prompt_jax.losses import CrossEntropy
from prompt_jax.models.t5 import deltas, storage
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5, identity_tap
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.head import LMHead
from prompt_jax.parts.init import Vocabulary
from prompt_jax.parts.phases import Gradient
from prompt_jax.parts.select import Static
from prompt_jax.parts.trainable import Trainable
from prompt_jax.slots import SLOT0

Tree = dict[str, Array]
OWN = "prompt/"  # leaves of the method; all others are the backbone's
HEAD = 1_000_003  # of the keys of inits: the head's own


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
        return self.bank.slots + self.select.slots if self.bank else 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have vectors of their own; none: all share the same."""
        return self.bank.tasks if self.bank else ()

    def first_slot(self, task: str) -> int:
        """The first of the slots of an example of a task.

        Raises:
            UserError: it has none.
        """
        return self.bank.first_slot(task) if self.bank else 0

    @property
    def folds(self) -> bool:
        """Whether `[P, H]` rows of input say all that it has learned."""
        parts = self.select, self.inject, self.head
        return bool(self.bank and all(part.folds for part in parts))

    @property
    def plain(self) -> bool:
        """Whether any other plain prompt could take its place when it is used."""
        return self.folds and not self.head.labels

    @property
    def served(self) -> "Method":
        """The method as it is used: what folds into input vectors is a plain prompt."""
        plain = {"bank": PromptBank(self.slots), "select": Static()}
        return dataclasses.replace(self, **plain) if self.plain else self

    def during(self, phase: Any) -> "Method":
        """The method as a phase trains it."""
        return dataclasses.replace(self, losses=phase.losses) if phase.losses else self

    def scored(self, leaves: Tree, gradient: Tree) -> Tree:
        """The bank's scores with a batch's share added (`parts.phases.Score`)."""
        scored = self.bank.scored(own_leaves(leaves), own_leaves(gradient))
        return {f"{OWN}{path}": leaf for path, leaf in scored.items()}

    def vectors(self, leaves: Tree) -> dict[str, Any]:
        """What its own leaves make, by name (`parts.bank`).

        Args:
            leaves: by path; only those below "prompt/" are read.
        """
        return self.bank.prompts(own_leaves(leaves))

    def folded(self, leaves: dict[str, Any]) -> Float[np.ndarray, "P H"]:
        """The input vectors that its leaves fold into, float32: as many as serve, at most `slots`.

        Args:
            leaves: by path; only those below "prompt/" are read.
        """
        # By way of the host: the first of several processes folds what lies on all of them.
        own = {path: leaf for path, leaf in leaves.items() if path.startswith(OWN)}
        wide = {path: jnp.asarray(np.asarray(leaf, np.float32)) for path, leaf in own.items()}
        return self.select.folded(self.vectors(wide))


def own_leaves(leaves: Tree) -> Tree:
    """The method's, by their path below "prompt/"."""
    return {k.removeprefix(OWN): leaf for k, leaf in leaves.items() if k.startswith(OWN)}


def flatten(tree: dict) -> Tree:
    """Nested tree -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(tree: Tree) -> dict:
    """{"a/b/c": leaf} -> nested tree."""
    return traverse_util.unflatten_dict(tree, sep="/")


@dataclasses.dataclass(frozen=True)
class Model:
    """Backbone and method as functions of one flat tree of parameters.

    Paths begin with "backbone/" (the T5, names as T5X's, layers stacked) or "prompt/" (the method).

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
        fresh = self.method.bank.init_params(key, vocabulary)
        fresh |= self.method.head.init_params(jax.random.fold_in(key, HEAD), vocabulary)
        return {f"{OWN}{path}": leaf for path, leaf in fresh.items()}

    def backbone_shapes(self) -> dict[str, Any]:
        """Path -> shape and dtype of each leaf of the backbone, as it is stored."""
        return _backbone_shapes(self.network.config)

    def prompt_shapes(self) -> dict[str, Any]:
        """Path -> shape and dtype of the method's own leaves; no vocabulary or file is opened."""
        config, length = self.network.config, self.method.slots
        init = getattr(self.method.bank, "init", None)
        # An init that joins several files says how many rows each has.
        rows = init.rows_of_file(length) if hasattr(init, "rows_of_file") else length
        stand_in = Vocabulary(
            width=config.emb_dim,
            rows=lambda ids: np.zeros((len(ids), config.emb_dim), np.float32),
            encode=lambda text: [0],
            pieces=config.vocab_size,
            read_prompt=lambda path, force: np.zeros((rows, config.emb_dim), np.float32),
            shapes=shapes_of(self.backbone_shapes()),
            deviations=lambda: np.ones(config.num_encoder_layers, np.float32),
        )
        leaves = self.init_prompt(jax.random.key(0), stand_in)
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}

    def entry(self, params: Tree, batch: dict[str, Array]) -> tuple[Callable, dict[str, Array]]:
        """The tap that brings the prompt in, and the batch as the backbone reads it.

        The identity and the batch as it is, for a method without a prompt.
        """
        if not self.method.bank:
            return identity_tap, batch
        vectors = self.method.vectors(params)
        batch = self.method.select.rows(vectors, batch)
        vectors = self.method.select(vectors, batch, self._embed(params))
        return self.method.inject.tap(vectors) or identity_tap, batch

    def _embed(self, params: Tree) -> Callable[[Array], Array]:
        """Tokens [B, T] -> embeddings [B, T, H]; row 0 at slots, as in the network."""

        def embed(tokens):
            table = {"token_embedder": {"embedding": params["backbone/token_embedder/embedding"]}}
            table = (self.fetch(table) if self.fetch else table)["token_embedder"]["embedding"]
            return table[jnp.where(tokens >= SLOT0, 0, tokens)]

        return embed

    def variables(self, params: Tree) -> dict:
        """The backbone's variables, as the network takes them, and what is added to its kernels."""
        backbone = {k: v for k, v in params.items() if k.startswith("backbone/")}
        if self.fetch:
            outside = {k: v for k, v in backbone.items() if "/layers/" not in k}
            fetched = self.fetch(unflatten(outside)["backbone"])
            backbone.update(flatten({"backbone": fetched}))
        if self.method.inject and self.method.inject.changes_weights:
            for path, factors in self.method.inject.deltas(self.method.vectors(params)).items():
                for name, factor in zip(deltas.FACTORS, factors, strict=True):
                    backbone[f"backbone/{path}/{name}"] = factor
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
            {"main": {"encoded" [B, T, H], "states" [B, U, H], and what the head reads}}; for each
            further pass of the losses its "states", their "distance" [B, U] from main's in logits,
            and its "weight" [].
        """
        variables = self.variables(params)
        config, head = self.network.config, self.method.head

        def logits_of(states):
            return self.network.apply(variables, states, method="logits")

        main = self._pass(variables, params, batch, key)
        own, size = own_leaves(params), config.vocab_size
        found = {"main": {**main, **head(own, main["states"], batch, logits_of, size)}}
        for name in losses.passes(self.method.losses):
            other = self._pass(variables, self._as(name, params), batch, None)
            states = jax.lax.stop_gradient(other["states"])
            distance = head.distance(logits_of, main["states"], states, size)
            weight = params.get(f"{OWN}{name}_weight", jnp.ones(()))
            found[name] = {"states": states, "distance": distance, "weight": weight}
        return found

    def class_scores(self, params: Tree, batch: dict[str, Array]) -> Float[Array, "B C"]:
        """What a head with labels says of each row, one example a row; only its input is read."""
        segments = (batch["encoder_segment_ids"] > 0).any(1, keepdims=True).astype(jnp.int32)
        start = {"decoder_input_tokens": 0 * segments, "decoder_segment_ids": segments}
        whole = {**batch, **start}
        variables = self.variables(params)
        states = self._pass(variables, params, whole, None)["states"]

        def logits_of(states):
            return self.network.apply(variables, states, method="logits")

        return self.method.head.scores(own_leaves(params), states[:, 0], logits_of)

    def _as(self, name: str, params: Tree) -> Tree:
        """The leaves with another prompt, "prompt/NAME", in the place of "prompt/encoder"."""
        return {**params, f"{OWN}encoder": jax.lax.stop_gradient(params[f"{OWN}{name}"])}

    def _pass(
        self, variables: dict, params: Tree, batch: dict[str, Array], key: Array | None
    ) -> dict[str, Array]:
        """Encoded input and decoder states of one pass."""
        tap, batch = self.entry(params, batch)

        def through(network):
            options = {"tap": tap, "deterministic": key is None}
            segments = batch["encoder_segment_ids"]
            encoded = network.encode(batch["encoder_input_tokens"], segments, **options)
            tokens = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
            states = network.decode(encoded, segments, *tokens, **options)
            return {"encoded": encoded, "states": states}

        rngs = {} if key is None else {"dropout": key}
        return nn.apply(through, self.network)(variables, rngs=rngs)


@functools.cache
def _backbone_shapes(config: T5Config) -> dict[str, Any]:
    plain = Model(T5(config), Method("backbone"))
    return jax.eval_shape(plain.init_backbone, jax.random.key(0))


def assemble(
    config: T5Config, method: Method, fetch_layer: Callable[[dict], dict] | None = None
) -> Model:
    """The model of a run.

    Args:
        config: the backbone's sizes and dtypes.
        method: the parts.
        fetch_layer: how one layer's weights are brought in (gather, cast); None keeps them.
    """
    hook = fetch_layer
    if method.inject and method.inject.changes_weights:
        hook = deltas.adding(fetch_layer)
    return Model(T5(config, **({"fetch_layer": hook} if hook else {})), method, fetch_layer)


def shapes_of(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the backbone's leaves, paths without "backbone/"."""
    backbone = {k: v for k, v in params.items() if k.startswith("backbone/")}
    return {path.removeprefix("backbone/"): leaf.shape for path, leaf in backbone.items()}
