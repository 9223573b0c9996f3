"""Opens a backbone: weights straight into their shards, vocabulary, fingerprint."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from prompt_jax import spread
from prompt_jax.assemble import Method, Model, Tree, flatten, shapes_of, unflatten
from prompt_jax.ckpt import fingerprint as fingerprints
from prompt_jax.ckpt import hf, load, prompt_file, prompts
from prompt_jax.ckpt.paths import resolve_path
from prompt_jax.data import vocabulary as vocabularies
from prompt_jax.errors import UserError
from prompt_jax.models.t5 import storage
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5
from prompt_jax.parallel.mesh import Shardings, on_host
from prompt_jax.parts.init import Vocabulary


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The frozen T5 and where it comes from.

    Attributes:
        config: sizes and dtypes.
        checkpoint: a T5X checkpoint, a Hugging Face folder or ours (INITIAL_CHECKPOINT_PATH):
            local, `gs://`, `hf:ORG/NAME` in the hub's cache, or prompt_jax:NAME, an embedded one.
        vocabulary: a sentencepiece model or `byte`; by default the one beside the weights.
        random_weights: weights from the initialiser, drawn with `seed`, instead of the
            checkpoint's (the start of pretraining, and the control of the demo).
        seed: of the random weights.
    """

    config: T5Config
    checkpoint: str | None = None
    vocabulary: str | None = None
    random_weights: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Opened:
    """A backbone in memory.

    Attributes:
        params: "backbone/..." -> array in its shard, storage dtype.
        fingerprint: of the weights.
        vocabulary: encodes and decodes text.
        path: where the weights came from, as it was named.
    """

    params: Tree
    fingerprint: str
    vocabulary: vocabularies.Vocabulary
    path: str

    @property
    def parameters(self) -> int:
        """How many numbers the backbone holds."""
        return sum(
            leaf.size for path, leaf in self.params.items() if not path.endswith(storage.SCALE)
        )

    def init_vocabulary(self, model: Model) -> Vocabulary:
        """What inits may ask: rows of the embedding table, stored prompts, sizes of states."""
        table = self.params["backbone/token_embedder/embedding"]

        def rows(ids: list[int]) -> np.ndarray:
            return on_host(table[jnp.asarray(ids)].astype(jnp.float32))

        def read_prompt(path: str, force: bool) -> np.ndarray:
            prompt = prompts.read(path)
            if prompt.file and not force:
                theirs = self.fingerprint, self.vocabulary.fingerprint
                prompt_file.check(path, prompt.file, *theirs)
            return prompt.array

        return Vocabulary(
            width=table.shape[1],
            rows=rows,
            encode=lambda text: [int(i) for i in self.vocabulary.encode(text)],
            pieces=self.vocabulary.pieces,
            read_prompt=read_prompt,
            shapes=shapes_of(self.params),
            deviations=lambda: spread.deviations(model, self.params, self.vocabulary.pieces),
        )


def open_vocabulary(backbone: Backbone) -> vocabularies.Vocabulary:
    """The backbone's vocabulary, checked against its embedding table.

    Raises:
        UserError: none is named or found, or it is larger than the table.
    """
    if backbone.vocabulary:
        path = resolve_path(backbone.vocabulary)
    elif backbone.checkpoint:
        path = resolve_path(backbone.checkpoint) / hf.VOCABULARY
    else:
        raise UserError(
            "Backbone.vocabulary is unset and there is no checkpoint folder to take it from, "
            "e.g. --gin.Backbone.vocabulary=\"'spiece.model'\""
        )
    vocabulary = vocabularies.load_vocabulary(str(path))
    vocabularies.check_fits(vocabulary, backbone.config.vocab_size)
    return vocabulary


def open_backbone(backbone: Backbone, model: Model, shardings: Shardings) -> Opened:
    """Reads (or draws) the weights.

    Args:
        backbone: what to open.
        model: the assembled model, for its initialiser.
        shardings: where each leaf goes.

    Raises:
        UserError: no checkpoint, a missing, extra or reshaped tensor, a vocabulary that does
            not fit.
    """
    vocabulary = open_vocabulary(backbone)
    if backbone.random_weights:
        draw = _initialiser(model.network.config, shardings)
        params, path = draw(jax.random.key(backbone.seed)), f"random:{backbone.seed}"
        fingerprint = fingerprints.of_tree(unflatten(params)["backbone"])
    elif backbone.checkpoint:
        path = backbone.checkpoint

        def sharding(parts: tuple[str, ...], shape: tuple[int, ...]) -> Sharding:
            return shardings.frozen("/".join(("backbone", *parts)), shape)

        loaded = load.load_backbone(path, backbone.config, sharding=sharding)
        params, fingerprint = flatten({"backbone": loaded.params}), loaded.fingerprint
    else:
        raise UserError(
            "INITIAL_CHECKPOINT_PATH is unset, e.g. "
            "--gin.INITIAL_CHECKPOINT_PATH=\"'prompt_jax:micro_s'\", "
            "or --gin.Backbone.random_weights=True"
        )
    return Opened(params, fingerprint, vocabulary, path)


@functools.lru_cache(maxsize=8)
def _initialiser(config: T5Config, shardings: Shardings) -> Callable[[Array], Tree]:
    """`key -> weights` in their shards, compiled once for all runs of a process."""
    plain = Model(T5(config), Method("backbone"))
    shapes = plain.backbone_shapes().items()
    out = {path: shardings.frozen(path, leaf.shape) for path, leaf in shapes}
    return jax.jit(plain.init_backbone, out_shardings=out)
