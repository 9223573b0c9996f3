"""Machines by name: what they hold, and what is said of those that do not exist."""

import importlib.util
import math

import pytest

from prompt_jax.errors import UserError
from prompt_jax.plan import topology
from prompt_jax.plan.topology import CHIPS, SHAPES, devices, parse, smaller

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra `plan`"
)


@pytest.mark.parametrize(
    ("name", "full", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5e-256", "v5e:16x16", 256),
        ("v4-8", "v4:2x2x1", 4),  # the number counts cores, two a chip
        ("v5p-8", "v5p:2x2x1", 4),
        ("v6e-1", "v6e:1x1", 1),
        ("gpu:h200x8", "gpu:h200x8", 8),
        ("cpu:8", "cpu:8", 8),
    ],
)
def test_names(name, full, chips):
    machine = parse(name)
    assert (machine.name, machine.chips, machine.slices) == (full, chips, 1)
    assert machine.is_tpu == name.startswith("v")


def test_shapes_hold_as_many_chips_as_they_say():
    for dims, shapes in SHAPES.items():
        for count, shape in shapes.items():
            sides = [int(side) for side in shape.split("x")]
            assert (math.prod(sides), len(sides)) == (count, dims)
    for name in topology.known():
        assert parse(name).chips >= 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v5e:4x5x6", "'v5e:4x4'"),
        ("v5:4x4", "'v5e:4x4'"),
        ("v5e-17", "'v5e-1"),
        ("v5e:0x4", "did you mean"),
        ("gpu:h300x8", "'gpu:h200x8'"),
        ("cpu:0", "'cpu:8'"),
        ("toaster", "valid: "),
    ],
)
def test_an_unknown_machine_names_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"^--topology={name}: no such machine; ") as caught:
        parse(name)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_smaller_machines_end_with_the_one_asked_for():
    assert [m.name for m in smaller(parse("v5e-16"))] == [
        "v5e:1x1",
        "v5e:2x2",
        "v5e:2x4",
        "v5e:4x4",
    ]
    assert [m.chips for m in smaller(parse("gpu:h100x8", 2))] == [1, 2, 4, 8]
    assert [m.chips for m in smaller(parse("cpu:6"))] == [1, 2, 4, 6]
    assert all(m.slices == 2 for m in smaller(parse("v5e-16", 2)))


def test_more_cpus_than_jax_has_started_with_are_refused():
    assert len(devices(parse("cpu:4", 2))) == 8
    with pytest.raises(UserError, match="8 CPU devices, 16 are needed"):
        devices(parse("cpu:16"))
    with pytest.raises(UserError, match="--num_slices=0"):
        parse("cpu:8", 0)


def test_a_missing_libtpu_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'prompt_jax\[plan\]'"):
        devices(parse("v5e:4x4"))


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "slices", "kind"),
    [("v5e:4x4", 1, "TPU v5 lite"), ("v5e:1x1", 1, "TPU v5 lite"), ("v4-8", 1, "TPU v4"),
     ("v5e:2x2", 2, "TPU v5 lite"), ("v6e-8", 1, "TPU v6 lite"), ("v5p-16", 1, "TPU v5")],
)  # fmt: skip
def test_a_tpu_chip_is_one_device_and_slices_come_in_order(name, slices, kind, capfd):
    machine = parse(name, slices)
    found = devices(machine)
    assert len(found) == machine.chips * slices
    assert {device.device_kind for device in found} == {kind}
    order = [getattr(device, "slice_index", 0) or 0 for device in found]
    assert order == sorted(order) and len(set(order)) == slices
    assert capfd.readouterr().err == ""


@needs_libtpu
def test_a_shape_that_libtpu_does_not_know_is_refused():
    with pytest.raises(UserError, match="v5e:3x5: libtpu refuses it: INVALID_ARGUMENT"):
        devices(parse("v5e:3x5"))


def test_the_chips_are_in_order_of_magnitude():
    for chip in CHIPS.values():
        if chip.flops:
            assert 1e14 < chip.flops < 1e16 and 1e10 < chip.memory < 1e12
            assert chip.flops > 100 * chip.bandwidth > 100 * chip.link > 500 * chip.network
