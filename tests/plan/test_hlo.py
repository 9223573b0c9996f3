"""Collectives of programs whose numbers are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prompt_jax.parallel.mesh import Parallel
from prompt_jax.plan import hlo
from prompt_jax.plan.hlo import Collective, collectives

DATA, MODEL, TRIPS = 4, 2, 5


def program():
    """5 trips of a sum over `model` [6] f32, one sum over `data` [6], one gather to [8, 6]."""
    mesh = Parallel(DATA, MODEL).mesh()

    def local(x):
        def body(carry, _):
            return jnp.tanh(jax.lax.psum(carry, "model")), None

        carry, _ = jax.lax.scan(body, x[0], None, length=TRIPS)
        total = jax.lax.psum(carry, "data")
        return jax.lax.all_gather(x[0] + total, ("data", "model"))

    spec = PartitionSpec(("data", "model"))
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
    )
    x = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(mapped).lower(x).compile().as_text()


def test_a_loops_collectives_count_once_a_trip():
    found = collectives(program(), 8, per_slice=4)
    reduced = [each for each in found if each.kind == "all-reduce"]
    gathered = [each for each in found if each.kind == "all-gather"]
    # Devices are numbered with `model` running fastest: groups over `data` leave a slice of four.
    shape = ("f32[6]",)
    assert Collective("all-reduce", 24, TRIPS, MODEL, False, shape) in reduced
    assert Collective("all-reduce", 24, 1, DATA, True, shape) in reduced
    assert len(reduced) == 2
    assert [(g.bytes, g.times, g.group, g.crosses) for g in gathered] == [(192, 1, 8, True)]
    assert not any(each.crosses for each in collectives(program(), 8))


def test_what_a_ring_sends():
    def of(kind, group):
        return Collective(kind, 800, 3, group, False, ()).sent

    assert of("all-reduce", 8) == 2 * 7 / 8 * 800 * 3
    assert of("all-gather", 8) == of("reduce-scatter", 8) == of("all-to-all", 8) == 7 / 8 * 800 * 3
    assert of("collective-permute", 2) == 800 * 3
    assert of("all-reduce", 1) == 0


# As libtpu writes it: layouts, no trip count, one gather in two fusions under one channel.
TPU = """HloModule jit_step, is_scheduled=true

%fused.1 (p: bf16[256,4096]) -> bf16[4096,4096] {
  %all-gather.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=16] {'b'}, dimensions={0}
}

%fused.2 (p: bf16[256,4096]) -> bf16[4096,4096] {
  %all-gather.2 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=16] {'b'}, dimensions={0}
}

%body.1 (p: (s32[], bf16[256,4096])) -> (s32[], bf16[256,4096]) {
  %a = bf16[4096,4096]{1,0} fusion(%p), kind=kLoop, calls=%fused.1
  %b = bf16[4096,4096]{1,0} fusion(%p), kind=kLoop, calls=%fused.2
}

%condition.1 (p: (s32[], bf16[256,4096])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%gte, %constant.7), direction=LT
}

ENTRY %main (p: bf16[256,4096]) -> f32[100,8] {
  %while.1 = (s32[]{:T(128)}, bf16[256,4096]{1,0}) while(%t), condition=%condition.1, body=%body.1
  %all-reduce.3 = (f32[100,8]{1,0:T(8,128)}, f32[]{:T(128)S(6)}) all-reduce(%x, %y), channel_id=9, replica_groups=mesh['a'=2,'b'=16] {'a'}, to_apply=%add
  %ag = (bf16[2,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%p), channel_id=3, replica_groups=[2,16]<=[32]
  %done = bf16[32,8]{1,0} all-gather-done(%ag)
}
"""  # noqa: E501


def test_libtpus_text():
    assert collectives(TPU, 32, per_slice=16) == [
        Collective("all-gather", 2 * 4096 * 4096, 24, 16, False, ("bf16[4096,4096]",)),
        Collective("all-reduce", 4 * 801, 1, 2, True, ("f32[100,8]", "f32[]")),
        Collective("all-gather", 2 * 32 * 8, 1, 16, False, ("bf16[32,8]",)),
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=(0,3,1,2) {'y'}", [[0, 3], [1, 2]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1], [1, 2]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups(text, groups):
    np.testing.assert_array_equal(hlo._groups(text, 4), groups)
