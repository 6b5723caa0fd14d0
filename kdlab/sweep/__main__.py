"""The command `python -m kdlab.sweep`: a grid on this machine, or on a SLURM cluster, where it is submitted, watched,
gathered, cancelled."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdlab import compose, files, grid, runtime, schema
from kdlab.artifacts.stage import plan_keys
from kdlab.artifacts.store import Store
from kdlab.errors import ConfigError, UserError, did_you_mean
from kdlab.planned import trainings
from kdlab.recipes.plan import make_plan
from kdlab.strategies.footprint import Layout
from kdlab.sweep import graph, local, room, scripts, slurm, status
from kdlab.sweep.cell import Cell
from kdlab.sweep.record import FILE, Submitted
from kdlab.sweep.runner import Places

FOLDER = schema.config_dir() / "sweep"
HELP = """Runs a grid: shared steps once, then the students, then the report.

On this machine:
  python -m kdlab.sweep run [sweep=NAME[,NAME...]] [+experiment=NAME] [key=a,b ...] [option=value ...]
      workers=<number>        points at a time                                                          (1)
      experiments=<folder>    <folder>/<name>/results.csv of each experiment gets its rows    (experiments)
run prints what the grid will cost, then runs it, the lowest seeds first; dry_run=true only prints. When a point ends,
its rows are added to results.csv; points that are there already are skipped, with or without their runs, so parts may
run on different machines and days. A failed point is one cell, and the exit code is 1 in the end. Ctrl-C or SIGTERM:
the points save and leave, and the same command goes on. In the background: nohup python -m kdlab.sweep run ... &

On a SLURM cluster:
  python -m kdlab.sweep submit [sweep=NAME] [+experiment=NAME] [key=a,b ...] [cluster.key=value ...]
  python -m kdlab.sweep status <folder>      what runs, waits, has failed or was killed (with its last line) or is done
  python -m kdlab.sweep gather <folder>      the report of what is there, now
  python -m kdlab.sweep cancel <folder>      ends what waits or runs; what is done stays
submit prints the runs and the graph of jobs; dry_run=true only writes the scripts. What is done already is not
submitted again: give the same command to go on after a failure. Time, memory, GPUs and the partition are cluster.*
(conf/cluster).

Both take the overrides of kdlab.run -m, or named grids of conf/sweep.

grids: {grids}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP.format(grids=", ".join(_grids())), end="")
        return 0
    try:
        verb, *rest = argv
        if verb not in VERBS:
            raise UserError(
                f"'{verb}' is no verb of kdlab.sweep{did_you_mean(verb, VERBS)}; nothing was done; write one of "
                f"{', '.join(VERBS)}"
            )
        return VERBS[verb](rest) or 0
    except UserError as error:
        runtime.say(str(error))
        return 1


def run(arguments: list[str]) -> int:
    """Checks every point, prints the cost and runs what is not done yet; returns the exit code."""
    workers, experiments, overrides = _options(arguments)
    names = [name for text in overrides if text.startswith("sweep=") for name in text.partition("=")[2].split(",")]
    mine = [text for text in overrides if not text.startswith("sweep=")]
    lines = [(name, line) for name in dict.fromkeys(names) for line in _lines([f"sweep={name}", *mine])[1]]
    lines = lines if names else [("", line) for line in _lines(mine)[1]]
    composed = grid.points([line for _, line in lines], make_plan)
    first = composed[0].cfg
    name = "+".join(dict.fromkeys(names)) or _unnamed(first.name, [line for _, line in lines])
    cells = [_cell(grid_name or name, one) for (grid_name, _), one in zip(lines, composed, strict=True)]
    runs = Path(first.paths.runs)
    return local.run(
        cells,
        Places(Path(first.paths.store), runs, experiments, runs / ".sweeps" / name / "logs"),
        device=runtime.device(first.trainer.device),
        threads=first.trainer.threads,
        workers=workers,
        dry_run=first.dry_run,
        again=shlex.join(["python", "-m", "kdlab.sweep", "run", *arguments]),
    )


def submit(overrides: list[str]) -> None:
    """Checks every point, writes the scripts and hands them to the cluster, upstream first."""
    name, lines = _lines(overrides)
    composed = grid.points(lines, make_plan)
    first = composed[0].cfg
    points = [_point(one) for one in composed]
    if len({point.folder for point in points}) < len(points):
        raise ConfigError(["two points of the grid are the same run; leave out the values that repeat"])
    store = Store(first.paths.store)
    jobs = graph.jobs(points, lambda stage, key: store.manifest(stage, key) is not None, first.cluster.label_tasks)
    name = name or _unnamed(first.name, lines)
    folder = Path(first.paths.runs) / ".sweeps" / name
    if not first.dry_run:
        _refuse(folder, composed)
    runs = sorted({str(Path(one.cfg.paths.runs) / one.cfg.name) for one in composed})
    sweep = Submitted(folder, Path(first.paths.store), runs, jobs, {})
    written = _write(sweep, name, OmegaConf.to_container(first.cluster, resolve=True))
    _print(points, jobs, folder)
    for line in room.warnings(_requests(composed, points, store)):
        runtime.say(line)
    if first.dry_run:
        return
    for job in jobs:
        after = sweep.ids.get(job.after) if job.after else None
        sweep.ids[job.name] = slurm.submit(written[job.name], after=after, anyhow=job.anyhow)
        sweep.write()  # after each: what was submitted is known whatever comes next
    runtime.say(f"submitted; python -m kdlab.sweep status {folder}")


def show(arguments: list[str]) -> None:
    """Prints the state of every task."""
    print(status.table(status.states(_sweep(arguments))))


def gather(arguments: list[str]) -> None:
    """Runs the report over the sweep's runs, finished or not."""
    import subprocess

    sweep = _sweep(arguments)
    if subprocess.run([sys.executable, "-m", "kdlab.report", *sweep.runs], check=False).returncode:
        raise UserError("the report could not be made, see above; mend that and gather again")


def cancel(arguments: list[str]) -> None:
    """Cancels the jobs of a sweep."""
    sweep = _sweep(arguments)
    slurm.cancel(list(sweep.ids.values()))
    runtime.say(f"cancelled {len(sweep.ids)} jobs; what is done stays, and submit goes on from there")


VERBS: dict[str, Callable[[list[str]], int | None]]
VERBS = {"run": run, "submit": submit, "status": show, "gather": gather, "cancel": cancel}


def _options(arguments: list[str]) -> tuple[int, Path, list[str]]:
    """The number of workers, the folder of the experiments, and the overrides."""
    workers, experiments, overrides = "1", "experiments", []
    for text in arguments:
        name, _, value = text.partition("=")
        if name == "workers":
            workers = value
        elif name == "experiments":
            experiments = value
        else:
            overrides.append(text)
    if not workers.isdecimal() or int(workers) < 1:
        raise ConfigError([f"workers={workers}, but it counts processes; write workers=1 or more"])
    return int(workers), Path(experiments), overrides


def _unnamed(experiment: str, lines: list[list[str]]) -> str:
    """A name for a grid that has none in conf/sweep."""
    essence = sorted(sorted(text for text in line if not text.startswith("dry_run=")) for line in lines)
    return f"{experiment}-{hashlib.sha256(repr(essence).encode()).hexdigest()[:6]}"


def _cell(name: str, composed: compose.Composed) -> Cell:
    point = _point(composed)
    steps = {step.name: {"stage": step.stage, "key": point.keys[step.name]} for step in point.steps}
    config = OmegaConf.to_container(composed.cfg, resolve=True)
    return Cell(name, point, {"config": config, "choices": composed.choices, "steps": steps})


def _lines(overrides: list[str]) -> tuple[str | None, list[list[str]]]:
    """(name of the grid, overrides of every point); a named grid is one or more lines, each with the user's values."""
    named = [text.partition("=")[2] for text in overrides if text.startswith("sweep=")]
    mine = [text for text in overrides if not text.startswith("sweep=")]
    if not named:
        return None, compose.expand(mine)
    if named[-1] not in _grids():
        raise ConfigError(
            [f"sweep={named[-1]} does not exist{did_you_mean(named[-1], _grids())}; there are {', '.join(_grids())}"]
        )
    node = OmegaConf.load(FOLDER / f"{named[-1]}.yaml")
    lines = [line for grid_line in node.grids for line in compose.expand([*shlex.split(grid_line), *mine])]
    return named[-1], lines


def _grids() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _point(composed: compose.Composed) -> graph.Point:
    steps = make_plan(composed.cfg)
    overrides = [text for text in composed.overrides if not text.startswith("dry_run=")]
    until = None if composed.cfg.until == "report" else composed.cfg.until
    return graph.Point(overrides, f"{composed.cfg.name}/{composed.point}", steps, plan_keys(steps), until)


def _requests(
    composed: Sequence[compose.Composed], points: Sequence[graph.Point], store: Store
) -> Iterator[room.Request]:
    """Every training that is not done yet, once, with what its task asks for."""
    seen = set()
    for one, point in zip(composed, points, strict=True):
        cfg = one.cfg
        try:
            planned = trainings(cfg, point.steps, store)
        except UserError:  # a teacher that must be fetched before its size is known
            continue
        on_gpu = cfg.trainer.device == "cuda" or (cfg.trainer.device == "auto" and cfg.cluster.gpus > 0)
        for training in planned:
            key = point.keys[training.name]
            if key in seen or store.manifest("train_model", key) is not None:
                continue
            seen.add(key)
            yield room.Request(
                training.name,
                point.folder,
                training.training,
                Layout.of(one.choices["strategy"], cfg.strategy),
                cfg.strategy.get("devices", 1),
                gpu_memory_gb=cfg.cluster.gpu_memory_gb if on_gpu else None,
                mem_gb=cfg.cluster.mem_gb,
            )


def _write(sweep: Submitted, name: str, cluster: Any) -> dict[str, Path]:
    """Writes the scripts; returns that of each job."""
    (sweep.folder / "logs").mkdir(parents=True, exist_ok=True)
    written = {}
    for job in sweep.jobs:
        written[job.name] = sweep.folder / f"{job.name}.sbatch"
        text = scripts.script(job, sweep=name, folder=sweep.folder, cluster=cluster, report=sweep.runs)
        files.write_text(written[job.name], text)
    return written


def _refuse(folder: Path, composed: Sequence[compose.Composed]) -> None:
    """Raises: UserError where tasks of this sweep are still in the queue, or would wait there for GPUs in vain."""
    for one in composed:
        needed = one.cfg.strategy.get("devices", 1) if one.cfg.trainer.device == "cuda" else 0
        if one.cfg.cluster.gpus < needed:
            raise ConfigError(
                [
                    f"cluster.gpus={one.cfg.cluster.gpus} but trainer.device=cuda with {needed} processes: every task "
                    f"would wait for its turn and then find no GPU; write cluster.gpus={needed}"
                ]
            )
    if not (folder / FILE).exists():
        return
    if left := slurm.queue(list(Submitted.read(folder).ids.values())):
        raise UserError(
            f"{len(left)} tasks of this sweep are still in the queue: they would be submitted twice, and status and "
            f"cancel would forget the first; wait for them, or python -m kdlab.sweep cancel {folder}"
        )


def _print(points: list[graph.Point], jobs: list[graph.Job], folder: Path) -> None:
    """The runs and the graph of jobs."""
    students = graph.students(points)
    teachers = {point.keys["teacher"] for point in points if "teacher" in point.keys}
    for task in students:
        print(
            f"{task.key}  {task.point}{'  (student alone)' if task.overrides[-1] == 'until=evaluate_baseline' else ''}"
        )
    print(f"\n{len(students)} students, {len(teachers)} teachers: {len(students) + len(teachers)} runs\n")
    for job in jobs:
        after = f" after {job.after}{' (in whatever way it ends)' if job.anyhow else ''}" if job.after else ""
        print(f"job {job.name}: {len(job.tasks) or 1} tasks{after}")
    print(f"scripts: {folder}", flush=True)


def _sweep(arguments: list[str]) -> Submitted:
    if len(arguments) != 1:
        raise UserError(
            f"{len(arguments)} folders were given, but one sweep is looked at; write the folder that submit has printed"
        )
    return Submitted.read(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main())
