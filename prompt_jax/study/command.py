"""`prompt-jax study`: resolves, launches, draws; or shows what would be done."""

import dataclasses
import json
import logging
import pathlib
import re
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.study import forecast, launch, packing
from prompt_jax.study.finished import MISSING, Finished
from prompt_jax.study.launch import Share
from prompt_jax.study.study import Runs, resolve_study

log = logging.getLogger("prompt_jax")


def study_command(args: Any) -> None:
    """Does what the command line says of a study.

    Args:
        args: `gin_file`, `gin`, `gin_search_paths`, and the flags of `study`.

    Raises:
        UserError: the study or one of its runs is wrong; nothing has begun.
        RunFailed: some runs failed.
        Interrupted: the same command goes on.
    """
    share = Share(part_of(args.part), args.of_workers or args.workers)
    if args.dry_run or args.workers > 1:
        _open_no_device()
    runs = resolve_study(
        args.gin_file, args.gin, args.gin_search_paths, checked=not (args.report or args.of_workers)
    )
    finished = Finished(runs.folder)
    if args.dry_run:
        show_plan(runs, share, finished)
    elif args.report:
        draw(runs, finished)
    elif args.of_workers:
        launch.launch(runs, share, finished)
    else:
        for note in runs.notes:
            log.info("%s", note)
        _launch(args, runs, share, finished)
    if args.json:
        told = json.dumps(summary(runs, share, finished), indent=1)
        pathlib.Path(args.json).write_text(told + "\n")


def part_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        UserError: it says something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part={text}: write i/n, 1 <= i <= n, e.g. --part=1/4")
    return int(match[1]), int(match[2])


def _open_no_device() -> None:
    """Shapes are followed on this machine's CPU; whoever trains opens the devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _launch(args: Any, runs: Runs, share: Share, finished: Finished) -> None:
    if args.launcher == "ray":
        from prompt_jax.study import ray_launch

        ray_launch.launch(runs, share, finished, args.retry)
    elif args.workers > 1:
        if args.retry:
            packing.ensure_plan(runs, finished, lambda: planned_machine(share), retry=True)
        launch.spawn(_same_command(args), args.workers)
    else:
        launch.launch(runs, share, finished, args.retry)
    if runs.study.report and not set(runs.members) - set(finished.records()):
        draw(runs, finished)
    launch.finish(runs, finished)


def planned_machine(share: Share) -> packing.Machine:
    """This host without its devices: what fleets are planned for where none may be opened."""
    return packing.this_machine(share.workers, devices=False)


def _same_command(args: Any) -> list[str]:
    """The arguments of a worker."""
    paths = (
        [f"--gin_search_paths={','.join(args.gin_search_paths)}"] if args.gin_search_paths else []
    )
    return [
        "study",
        *(f"--gin_file={file}" for file in args.gin_file),
        *(f"--gin.{binding}" for binding in args.gin),
        *paths,
        f"--part={args.part}",
        f"--of_workers={args.workers}",
    ]


def draw(runs: Runs, finished: Finished) -> None:
    """Draws the study's report, OUT/report, from the records that are there."""
    from prompt_jax.study import page

    found, study = finished.records(), runs.study
    # A record that another study has left in this folder has other labels.
    records = [
        {**found[name], "study": study.name, "point": member.point.labels}
        for name, member in runs.members.items()
        if name in found
    ]
    folder = f"{runs.folder}/report"
    page.write_report(study.name, study.description, study.report, records, folder)
    print(f"{len(records)} records: {folder}/report.html, report.md")


# --- what would be done ---


def _plan(runs: Runs, share: Share, finished: Finished) -> list[packing.Fleet]:
    """The fleets that are planned, and those that a launch here would plan for the other runs."""
    plan = packing.read_plan(runs.folder)
    missing = packing.unplanned(runs, plan, finished.status())
    wanted = [name for name in runs.members if name in missing]
    machine = planned_machine(share)
    return plan + packing.pack(runs.members, wanted, runs.study.fleets, machine, len(plan))


def _status(runs: Runs, finished: Finished) -> dict[str, str]:
    ended = finished.status()
    return {name: ended.get(name, MISSING) for name in runs.members}


def show_plan(runs: Runs, share: Share, finished: Finished) -> None:
    """Prints runs, fleets and what they will take; writes nothing and opens no device."""
    plan, status = _plan(runs, share, finished), _status(runs, finished)
    print(f"study {runs.study.name}: {len(runs.members)} runs in {runs.folder}")
    for note in runs.notes:
        print(note)
    print(forecast.table(runs.members, status, packing.owners(plan)))
    own = {fleet.id: packing.own_members(fleet, plan, runs.members) for fleet in plan}
    print(
        f"{sum(map(bool, own.values()))} fleets, by the memory of this host where none is planned:"
    )
    for fleet in plan:
        left = sum(status[name] == MISSING for name in own[fleet.id])
        if own[fleet.id]:
            print(f"  {fleet.id}  {len(own[fleet.id])} runs, {left} left, {fleet.map}")
    found = forecast.forecasts(runs.members, finished.records())
    left = [name for name in runs.members if status[name] == MISSING]
    print(forecast.words(found, left, max(own.values(), key=len, default=())))


def summary(runs: Runs, share: Share, finished: Finished) -> dict[str, Any]:
    """Runs, fleets and what they take, as JSON."""
    plan, status = _plan(runs, share, finished), _status(runs, finished)
    owner, found = packing.owners(plan), forecast.forecasts(runs.members, finished.records())
    return {
        "study": runs.study.name,
        "out_dir": runs.folder,
        "runs": [
            {
                "id": name,
                "status": status[name],
                "point": member.point.labels,
                "needs": list(member.needs),
                "fleet": owner.get(name),
                "model_dir": member.run.model_dir,
                "config_hash": member.resolved.hash,
                "forecast": dataclasses.asdict(found[name]),
            }
            for name, member in runs.members.items()
        ],
        "fleets": [dataclasses.asdict(fleet) for fleet in plan],
    }
