"""A method on a tiny backbone: what the contract that all methods keep is checked on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from prompt_jax.assemble import Method, Model, Tree, assemble, shapes_of
from prompt_jax.config import resolve
from prompt_jax.data import layout
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5
from prompt_jax.parts.init import Vocabulary
from prompt_jax.step import TrainState, init_state, loss_and_grads
from prompt_jax.testing.batches import examples, lay_out

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.0,
)
INPUTS = 9  # own tokens of an input, at most


def method_of(name: str, settings: dict[str, Any]) -> Method:
    """The method of a gin file.

    Args:
        name: of methods/NAME.gin.
        settings: gin values by name.
    """
    files = ["models/micro_xs.gin", f"methods/{name}.gin", "runs/prompt_tune.gin"]
    given = {"MIXTURE_OR_TASK_NAME": "'micro_sentiment'", "MODEL_DIR": "'out'", **settings}
    given |= {"TASK_FEATURE_LENGTHS": {"inputs": INPUTS, "targets": 4}}
    return resolve(files, [f"{name}={value}" for name, value in given.items()]).run.method


@dataclasses.dataclass(frozen=True)
class Begun:
    """A method before its first step.

    Attributes:
        model: assembled functions.
        frozen: leaves of the backbone that stay.
        state: the rest.
        optimizer: over what moves.
        compiled: "gradients" and "logits", compiled once for all states of the method.
    """

    model: Model
    frozen: Tree
    state: TrainState
    optimizer: Any
    compiled: dict[str, Callable]

    @property
    def method(self) -> Method:
        """The parts."""
        return self.model.method

    @property
    def kind(self) -> str:
        """Of its first phase's steps."""
        return self.method.phases[0].kind

    @property
    def params(self) -> Tree:
        """All leaves, joined."""
        return {**self.frozen, **self.state.leaves}

    def batch(
        self, count: int = 12, packed: bool = False, seed: int = 0, capacity=(32, 12)
    ) -> dict:
        """Random examples with the method's slots; of a seed the same, packed or not."""
        pairs = examples(count, self.model.network.config.vocab_size, seed, INPUTS)
        texts = self.method.head.labels
        labels = [np.array([*encode(text), layout.EOS], np.int32) for text in texts]
        if labels:
            pairs = [(pair[0], labels[at % len(labels)]) for at, pair in enumerate(pairs)]
        tasks = self.method.tasks or ("",)  # the examples are of all tasks in turn
        first = [self.method.first_slot(tasks[at % len(tasks)]) for at in range(count)]
        slots = [layout.slot_ids(self.method.slots, start) for start in first]
        return lay_out(pairs, slots, packed, capacity)

    def gradients(self, batch: dict) -> tuple[float, Tree]:
        """Loss and gradient of a batch, without dropout."""
        still = {**self.frozen, **self.state.buffers}
        loss, grads, _ = self.compiled["gradients"](self.state.trainable, still, batch)
        return float(loss), grads

    def logits(self, batch: dict, params: Tree | None = None) -> Array:
        """Logits [B, U, V] of a batch, without dropout; `params` instead of its own."""
        return self.compiled["logits"](params or self.params, batch)


def encode(text: str) -> list[int]:
    """Tokens of a text: its characters."""
    return [3 + ord(letter) % 50 for letter in text]


@functools.cache
def random_backbone(config: T5Config) -> Tree:
    """Its weights, drawn once for all methods."""
    return Model(T5(config), Method("backbone")).init_backbone(jax.random.key(0))


def begin(method: Method, config: T5Config = CONFIG, seed: int = 0) -> Begun:
    """The method on random weights of `config`."""
    model = assemble(config, method)
    backbone = dict(random_backbone(dataclasses.replace(config, remat=CONFIG.remat)))
    table = np.asarray(backbone["backbone/token_embedder/embedding"])
    vocabulary = Vocabulary(
        width=config.emb_dim,
        rows=lambda ids: table[ids],
        encode=encode,
        pieces=config.vocab_size - 4,
        shapes=shapes_of(backbone),
        deviations=lambda: np.ones(config.num_encoder_layers, np.float32),
    )
    own = model.init_prompt(jax.random.key(seed + 1), vocabulary)
    frozen, trainable, buffers = method.trainable.split({**backbone, **own})
    optimizer = method.trainable.build(trainable)
    state = init_state(jax.tree.map(jnp.asarray, trainable), optimizer, seed, buffers)

    def logits(params, batch):
        states = model.outputs(params, batch)["main"]["states"]
        return model.network.apply(model.variables(params), states, method="logits")

    def gradients(trainable, still, batch):
        return loss_and_grads(model, trainable, still, batch, None)

    compiled = {"gradients": jax.jit(gradients), "logits": jax.jit(logits)}
    return Begun(model, frozen, state, optimizer, compiled)


def stirred(begun: Begun, seed: int = 5, size: float = 0.3) -> Begun:
    """The same with noise on every leaf that moves: nothing is zero, nothing at its start."""
    key = jax.random.key(seed)
    moved = {
        path: leaf + size * jax.random.normal(jax.random.fold_in(key, at), leaf.shape)
        for at, (path, leaf) in enumerate(sorted(begun.state.trainable.items()))
    }
    return dataclasses.replace(begun, state=dataclasses.replace(begun.state, trainable=moved))
