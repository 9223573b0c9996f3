"""Records of a study that was never run: every axis, seeds, a sweep, curves, failures."""

import itertools
import random
from typing import Any

SIZES = {"micro_xs": 900_000, "micro_s": 4_408_320, "micro_m": 14_700_000}
METHODS = {"prompt_tuning": 1280, "model_tuning": None, "prompt_design": 0}
RATES = (0.03, 0.1, 0.3, 1.0)


def record(point: dict[str, Any], i: int = 0, **over) -> dict[str, Any]:
    """One run's record; the numbers are a function of the point, the noise of `i`."""
    noise = random.Random(i)
    model, method = point.get("model", "micro_s"), point.get("method", "prompt_tuning")
    rate, size = point.get("rate", 0.3), SIZES[model]
    away = abs([*RATES].index(rate) - 2) if rate in RATES else 0
    base = {"prompt_tuning": 0.52, "model_tuning": 0.74, "prompt_design": 0.4}[method]
    slope = {"prompt_tuning": 0.13, "model_tuning": 0.05, "prompt_design": 0.06}[method]
    test = base + slope * [*SIZES].index(model) - 0.05 * away + noise.gauss(0, 0.015)
    trained = METHODS[method] if METHODS[method] is not None else size
    steps = range(50, 501, 50)
    curve = [{"step": s, "loss": 3.0 / (1 + s / 90) + noise.gauss(0, 0.05)} for s in steps]
    for entry in curve[1::2]:
        entry["eval/accuracy"] = test * (1 - 0.6 * 0.99 ** entry["step"]) + noise.gauss(0, 0.01)
    return {
        "run": f"run{i}",
        "id": f"{i:04d}-{noise.getrandbits(24):06x}",
        "study": "made_up",
        "point": point,
        "method": method,
        "mixture": point.get("task", "micro_sentiment"),
        "backbone": {"path": f"prompt_jax:{model}", "fingerprint": "f" * 16, "parameters": size},
        "trainable_parameters": trained,
        "config": {"Run.train_steps": 500, "Adafactor.learning_rate": rate, "Run.final_splits": []},
        "seed": point.get("RANDOM_SEED", 0),
        "steps": 500,
        "seconds": {"total": 60.0 + i % 7, "train": 40.0 + size / 1e6},
        "metrics": {
            "validation": {"accuracy": test + noise.gauss(0, 0.005)},
            "test": {"accuracy": test, "f1": test - 0.02},
            "micro_qa/validation": {"f1": test / 2},
        },
        "best": {"step": 400, "metric": "accuracy", "value": test},
        "curve": curve,
        "code_version": "0.1+abc1234",
        "written": "2027-01-01T00:00:00+00:00",
        "status": "ok",
        "reason": None,
        **over,
    }


def study(seeds: int = 3, tasks: tuple[str, ...] = ("micro_sentiment",)) -> list[dict[str, Any]]:
    """3 sizes x 3 methods x 4 rates x seeds (x tasks); every 17th run failed."""
    points = itertools.product(SIZES, METHODS, RATES, range(seeds), tasks)
    records = []
    for i, (model, method, rate, seed, task) in enumerate(points):
        point = {"model": model, "method": method, "RANDOM_SEED": seed, "rate": rate, "task": task}
        failed = {"status": "failed", "reason": "no finite loss at step 12", "metrics": {}}
        records.append(record(point, i, **(failed if i % 17 == 5 else {})))
    return records
