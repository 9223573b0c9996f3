"""The pieces of a T5 layer: RMS norm, projections and heads, MLP, position bias, dropout."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.models.t5 import attention
from prompt_jax.models.t5.config import T5Config

# Distributions of T5X's minimal network, for pretraining from scratch.
_attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_relpos_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def relative_position_bucket(
    relative_position: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int
) -> np.ndarray:
    """Maps key position minus query position to a bucket: near ones exactly, far ones by log.

    Args:
        relative_position: integers, key position - query position.
        bidirectional: half of the buckets are for keys to the right; else those share bucket 0.
        buckets: number of buckets.
        max_distance: everything at least this far shares the last bucket.

    Returns:
        Integers in [0, buckets), of the same shape.

    Source: Raffel et al. 2020, section 2.1; Shaw et al. 2018.
    """
    if bidirectional:
        buckets //= 2
        start = np.where(relative_position > 0, buckets, 0)
        distance = np.abs(relative_position)
    else:
        start = 0
        distance = np.maximum(-relative_position, 0)
    exact = buckets // 2
    # The small number keeps exact powers in their own bucket in spite of rounding.
    ratio = np.log(np.maximum(distance, 1) / exact + 1e-7) / np.log(max_distance / exact)
    far = np.minimum(exact + np.floor(ratio * (buckets - exact)).astype(np.int64), buckets - 1)
    return (start + np.where(distance < exact, distance, far)).astype(np.int32)


class Dense(nn.Module):
    """A matrix product without bias; the kernel [I, O] is stored in `param_dtype`."""

    inputs: int
    features: int
    param_dtype: str
    kernel_init: Callable = _dense_init

    def setup(self):
        shape = (self.inputs, self.features)
        self.kernel = self.param("kernel", self.kernel_init, shape, jnp.dtype(self.param_dtype))

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        return x @ self.kernel.astype(x.dtype)


# Recomputed likewise: their residuals are seven arrays [L, B, T, F], and to write them costs more
# than the arithmetic.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated_gelu(gate, hidden):
    return nn.gelu(gate, approximate=True) * hidden


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _rms_norm(x, scale, epsilon):
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    return (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` in float32 (Zhang and Sennrich 2019)."""

    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        dtype = jnp.dtype(self.param_dtype)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), dtype)
        return _rms_norm(x, scale, self.epsilon)


class Dropout(nn.Module):
    """Dropout with one mask along the length, or one per position for `shared=False`."""

    rate: float
    shared: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T H"], deterministic: bool) -> Float[Array, "B T H"]:
        dims = (-2,) if self.shared else ()
        return nn.Dropout(self.rate, broadcast_dims=dims)(x, deterministic=deterministic)


class Attention(nn.Module):
    """Multi-head attention: projections of N heads of width D, no scaling, no biases."""

    config: T5Config

    def setup(self):
        c = self.config
        dense = functools.partial(Dense, param_dtype=c.float_dtype, kernel_init=_attention_init)
        width = c.num_heads * c.head_dim
        self.query = dense(c.emb_dim, width, kernel_init=_query_init(c.head_dim))
        self.key = dense(c.emb_dim, width)
        self.value = dense(c.emb_dim, width)
        self.out = dense(width, c.emb_dim)

    def keys_values(
        self, x: Float[Array, "B K H"]
    ) -> tuple[Float[Array, "B K N D"], Float[Array, "B K N D"]]:
        """Projects what is attended to.

        Args:
            x: states to attend to.

        Returns:
            Keys and values.
        """
        heads = (*x.shape[:2], self.config.num_heads, self.config.head_dim)
        return self.key(x).reshape(heads), self.value(x).reshape(heads)

    def __call__(
        self,
        x: Float[Array, "B Q H"],
        key: Float[Array, "B K N D"],
        value: Float[Array, "B K N D"],
        bias: Float[Array, "b n Q K"],
        deterministic: bool = True,
    ) -> Float[Array, "B Q H"]:
        heads = (*x.shape[:2], self.config.num_heads, self.config.head_dim)
        keep = self._keep(x.shape[0], key.shape[1], deterministic)
        query = self.query(x).reshape(heads)
        out = attention.attend(query, key, value, bias, keep, self.config.attention)
        return self.out(out.reshape(*x.shape[:2], -1))

    def folded(
        self,
        x: Float[Array, "B Q H"],
        states: Float[Array, "B K H"],
        bias: Float[Array, "b n Q K"],
        deterministic: bool = True,
    ) -> Float[Array, "B Q H"]:
        """The same attention to `states` for few queries, without their keys and values.

        Head by head q (S W_k)^T = (q W_k^T) S^T and w (S W_v) = (w S) W_v: 2 Q N H (D + K)
        products each instead of 2 K N D H.

        Args:
            x: what asks.
            states: what is attended to.
            bias: added to the logits, float32.
            deterministic: no dropout.
        """
        c = self.config
        heads = (c.emb_dim, c.num_heads, c.head_dim)
        wk, wv = (w.kernel.astype(x.dtype).reshape(heads) for w in (self.key, self.value))
        query = self.query(x).reshape(*x.shape[:2], *heads[1:])
        folded = jnp.einsum("bqnd,hnd->bnqh", query, wk)
        keep = self._keep(x.shape[0], states.shape[1], deterministic)
        mixed = attention.mix_states(folded, states, bias, keep)
        out = jnp.einsum("bnqh,hnd->bqnd", mixed, wv)
        return self.out(out.reshape(*x.shape[:2], -1))

    def _keep(self, rows: int, keys: int, deterministic: bool) -> Float[Array, "B N 1 K"] | None:
        """Dropout of attention weights, or None."""
        if deterministic or not self.config.dropout_rate:
            return None
        chance = 1.0 - self.config.dropout_rate
        shape = (rows, self.config.num_heads, 1, keys)
        return jax.random.bernoulli(self.make_rng("dropout"), chance, shape) / chance


def _query_init(head_dim: int) -> Callable:
    # The scaling by sqrt(D) that T5's attention leaves out is in the initial queries instead.
    return lambda *args: _attention_init(*args) / np.sqrt(head_dim).astype(np.float32)


class MLP(nn.Module):
    """`wo(gelu(wi_0 x) * wi_1 x)`, or `wo(relu(wi x))` in T5 1.0 (Shazeer 2020)."""

    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H"], on_activation: Callable, deterministic: bool = True
    ) -> Float[Array, "B T H"]:
        c = self.config
        dense = functools.partial(Dense, param_dtype=c.float_dtype)
        if c.activation == "relu":
            hidden = nn.relu(dense(c.emb_dim, c.mlp_dim, name="wi")(x))
        else:
            wide = functools.partial(dense, c.emb_dim, c.mlp_dim)
            hidden = _gated_gelu(wide(name="wi_0")(x), wide(name="wi_1")(x))
        hidden = on_activation(hidden).astype(x.dtype)
        hidden = Dropout(c.dropout_rate)(hidden, deterministic)
        return dense(c.mlp_dim, c.emb_dim, name="wo")(hidden)


class RelativePositionBias(nn.Module):
    """A learned bias per head and bucket of the distance between key and query."""

    config: T5Config
    bidirectional: bool

    def setup(self):
        c = self.config
        shape = (c.num_heads, c.position_buckets)
        self.rel_embedding = self.param(
            "rel_embedding", _relpos_init, shape, jnp.dtype(c.float_dtype)
        )

    def _buckets(self, relative_position: np.ndarray) -> np.ndarray:
        c = self.config
        return relative_position_bucket(
            relative_position,
            bidirectional=self.bidirectional,
            buckets=c.position_buckets,
            max_distance=c.position_max_distance,
        )

    def __call__(self, length: int) -> Float[Array, "1 N T T"]:
        """The bias of every pair of positions in a row of `length`, float32."""
        table = self.rel_embedding.astype(jnp.float32)
        distances = np.arange(2 * length)
        distances = np.where(distances < length, distances, distances - 2 * length)
        one_hot = np.eye(self.config.position_buckets, dtype=np.float32)[self._buckets(distances)]
        by_distance = jnp.matmul(table, one_hot.T, precision="highest")  # [N, 2T], d at d mod 2T
        # Repeating 2T numbers into rows of 2T - 1 moves each row one place to the right, so
        # entry (q, k) is that of distance k - q: no gather, hence no scatter in the gradient.
        rows = jnp.tile(by_distance, (1, length))[:, : length * (2 * length - 1)]
        return rows.reshape(1, -1, length, 2 * length - 1)[..., :length]

    def row(self, index: Int[Array, ""], length: int) -> Float[Array, "1 N 1 K"]:
        """The causal bias of the query at `index` to each of `length` keys, float32.

        Args:
            index: position of the query.
            length: number of keys; those after `index` get the bias of distance 0.

        Returns:
            One row of what `__call__` returns.
        """
        buckets = jnp.asarray(self._buckets(-np.arange(length)))
        chosen = buckets[jnp.maximum(index - jnp.arange(length), 0)]
        return self.rel_embedding.astype(jnp.float32)[:, chosen][None, :, None]
