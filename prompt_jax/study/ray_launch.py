"""Trains a study's fleets as Ray tasks, on any number of hosts that share its folder.

Claims, plan and ledger are those of the local launcher, so that both may work on one study at once;
Ray places the fleets and starts those of a lost node again.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from prompt_jax.environment import QUIET
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.study import launch as local
from prompt_jax.study import packing
from prompt_jax.study.finished import Finished
from prompt_jax.study.launch import Share
from prompt_jax.study.study import Runs

RETRIES = 10  # of a fleet whose node is lost: by Ray, and of tasks that Ray gives up
# What a task's process must know before it imports JAX.
PASSED = (*QUIET, "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")

log = logging.getLogger("prompt_jax")


def train(runs: Runs, fleet_id: str) -> str:
    """Does one fleet: the body of a task.

    Args:
        runs: the study.
        fleet_id: of its plan.

    Returns:
        `fleet_id`, once all records are there.
    """
    logging.getLogger("prompt_jax").setLevel(logging.INFO)
    finished = Finished(runs.folder)
    while not local.work(runs, fleet_id, finished):
        time.sleep(local.POLL)  # the claim of a lost host is free when it has been silent
    return fleet_id


def launch(
    runs: Runs,
    share: Share,
    finished: Finished,
    retry: bool = False,
    task: Callable[[Runs, str], str] = train,
) -> None:
    """Trains every fleet of this launcher's part on the cluster of RAY_ADDRESS, or on this host.

    A fleet has one GPU; without GPUs a node's CPUs, or one of `share.workers` parts of them.

    Args:
        runs: the study; its folder must be the same on all nodes.
        share: of the fleets.
        finished: what has ended.
        retry: what has failed is run again.
        task: as `train`.

    Raises:
        UserError: Ray is not installed.
        Interrupted: a task was told to stop; the same command goes on.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher=ray needs Ray: pip install 'prompt_jax[ray]'") from error
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True)
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    options = {**resources(ray, share.workers), "runtime_env": {"env_vars": passed}}
    packing.ensure_plan(
        runs,
        finished,
        lambda: ray.get(ray.remote(**options)(packing.this_machine).remote(share.workers)),
        retry,
    )
    options |= {"max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
    remote, study = ray.remote(**options)(task), ray.put(runs)
    running: dict[Any, packing.Fleet] = {}
    losses: dict[str, int] = {}
    began, before = time.monotonic(), len(local.of_study(runs, finished))
    try:
        while True:
            plan = packing.read_plan(runs.folder)
            mine = [fleet for number, fleet in enumerate(plan) if share.takes(number)]
            status = finished.status()
            for fleet in mine:
                state = local.state_of(fleet, plan, runs, status)
                if state.left and not state.waits and fleet not in running.values():
                    running[remote.remote(study, fleet.id)] = fleet
            if not running:
                return
            for done in ray.wait(list(running))[0]:
                fleet = running.pop(done)
                if not _ended(ray, done, fleet, losses):
                    continue
                own = packing.own_members(fleet, plan, runs.members)
                local.say(runs, fleet, own, finished, before, began)
    finally:
        for left in running:
            ray.cancel(left)


def resources(ray: Any, workers: int) -> dict[str, int]:
    """What a fleet asks of a node.

    Args:
        ray: the module.
        workers: parts that a node without GPUs is divided into.

    Raises:
        UserError: the cluster has no node with a CPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU") for node in nodes):
        return {"num_gpus": 1}
    counts = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not counts:
        raise UserError("the Ray cluster has no node with a CPU")
    return {"num_cpus": max(1, min(counts) // workers)}


def _ended(ray: Any, done: Any, fleet: packing.Fleet, losses: dict[str, int]) -> bool:
    """Whether a task came to its end; one that Ray has lost is to be started again.

    Raises:
        RunFailed: Ray loses it again and again.
        Exception: the task's own.
    """
    try:
        ray.get(done)
        return True
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        losses[fleet.id] = losses.get(fleet.id, 0) + 1
        if losses[fleet.id] > RETRIES:
            raise RunFailed(
                f"Ray has lost fleet {fleet.id} {losses[fleet.id]} times: {error}"
            ) from error
        log.warning("fleet %s is started again: %s", fleet.id, error)
        return False
