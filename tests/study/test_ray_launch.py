"""Fleets as Ray tasks on two nodes, of which one is lost in the middle of a run."""

import os
import pathlib
import sys
import threading
import time

import pytest
import toy_study as toy

from prompt_jax.errors import UserError
from prompt_jax.study import claims, launch, packing, ray_launch
from prompt_jax.study.finished import Finished
from prompt_jax.study.launch import Share

HERE = pathlib.Path(__file__).resolve().parent


def toy_task(runs, fleet_id):
    launch.POLL = 0.2
    launch.train_fleet = toy.log_and_train(runs.folder, 0.5)
    return ray_launch.train(runs, fleet_id)


class FakeRay:
    """A cluster of the given nodes."""

    def __init__(self, *nodes):
        self._nodes = nodes

    def nodes(self):
        return [{"Alive": True, "Resources": dict(node)} for node in self._nodes]


def test_resources():
    head = {"memory": 1e9}
    eight, six = {"CPU": 8.0}, {"CPU": 6.0}
    assert ray_launch.resources(FakeRay(head, eight, six), 1) == {"num_cpus": 6}
    assert ray_launch.resources(FakeRay(eight), 3) == {"num_cpus": 2}
    assert ray_launch.resources(FakeRay(eight, {"CPU": 4.0, "GPU": 2.0}), 3) == {"num_gpus": 1}
    with pytest.raises(UserError, match="no node with a CPU"):
        ray_launch.resources(FakeRay(head), 1)


def test_a_machine_without_ray_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    runs = toy.study(tmp_path, [toy.member(tmp_path, "r0")], size=1)
    with pytest.raises(UserError, match=r"pip install 'prompt_jax\[ray\]'"):
        ray_launch.launch(runs, Share(), Finished(runs.folder))


@pytest.fixture
def cluster(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield ray, made, nodes
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_lost_node_costs_its_fleet_alone(cluster, tmp_path):
    ray, made, nodes = cluster
    members = [toy.member(tmp_path, f"r{n}") for n in range(8)]
    members.append(toy.member(tmp_path, "r8", needs=("r0",)))
    runs = toy.study(tmp_path, members, size=2)
    finished = Finished(runs.folder)
    killed = []

    def lose_a_node():
        """One of them goes once both nodes are at work."""
        while len({pid for _, pid, _ in toy.trained(tmp_path)}) < 2:
            time.sleep(0.05)
        killed.append(toy.trained(tmp_path)[-1])
        own = ray.get_runtime_context().get_node_id()  # this process hangs on one of them
        lost = next(node for node in nodes if node.node_id != own)
        made.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    ray_launch.launch(runs, Share(), finished, task=toy_task)
    thread.join()
    records = finished.records()
    assert killed and sorted(records) == [f"r{n}" for n in range(9)]
    assert {record["status"] for record in records.values()} == {"ok"}
    lines = toy.trained(tmp_path)
    assert len({pid for _, pid, _ in lines}) >= 2
    order = [name for name, _, _ in lines]
    assert 9 < len(order) <= 9 + 2  # the lost fleet, of two runs, began again
    assert order.index("r8") > order.index("r0")
    plan = packing.read_plan(runs.folder)
    for fleet in plan:
        assert claims.holder(tmp_path / "claims", fleet.id) is None
