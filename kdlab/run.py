"""The one command: composes a configuration, makes a plan of it, walks the plan and prints the table.

No torch here: a stage imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import compose, effects, files, grid, points, runtime, usage
from kdlab.artifacts.stage import Step, plan_keys
from kdlab.artifacts.store import Store
from kdlab.errors import ConfigError, UserError
from kdlab.recipes.plan import make_plan

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # no log files of Hydra's; kdlab says what happens


class PointFailed(UserError):
    """A point of a sweep has failed and its message is printed; keeps the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _command(argv)
    except PointFailed:
        return 1
    except UserError as error:
        runtime.say(str(error))
        return 1
    except KeyboardInterrupt:
        runtime.say("stopped; the same command continues where this one was")
        return 130


def execute(composed: compose.Composed) -> None:
    """Makes what a configuration asks for: prints the plan (`dry_run`), or walks it and prints the table."""
    cfg = composed.cfg
    store, plan = Store(cfg.paths.store), make_plan(cfg)
    if cfg.dry_run:
        print(plan_table(store, plan, cfg.until), flush=True)
        return
    folder = Path(cfg.paths.runs) / cfg.name / composed.point
    keys = plan_keys(plan)
    record = {
        "overrides": composed.overrides,
        "choices": composed.choices,
        "values": [key for key in composed.values if not points.is_silent(key)],
        "config": OmegaConf.to_container(cfg, resolve=True),
        "steps": {step.name: {"stage": step.stage, "key": keys[step.name]} for step in plan},
    }
    try:
        files.write_json(folder / "run.json", record)
    except OSError as error:
        raise UserError(
            f"the run's folder {folder} cannot be written ({error.strerror}), and its result has to go there; mend its "
            "permissions or free some space, or write paths.runs=<a folder of yours>"
        ) from error
    for step in plan:
        if step.local.get("loggers"):
            step.local["run"] = str(folder)  # loggers show its name and its configuration
    runtime.say(f"{folder}")
    with _failure_noted(folder / "error.txt"):
        _has_devices(cfg)
        store.walk(plan, until=cfg.until)
    _report(folder, cfg)


def _has_devices(cfg: DictConfig) -> None:
    """Raises: UserError where GPUs are missing, before hours of preparation and not after."""
    devices, nodes = cfg.strategy.get("devices", 1), runtime.num_nodes()
    if devices > 1 and devices % nodes:
        raise UserError(
            f"strategy.devices={devices}, but this SLURM job has {nodes} nodes, and each gets equally many of a "
            f"training's processes; write strategy.devices=<a multiple of {nodes}>, or ask for one node"
        )
    if cfg.trainer.device == "cuda" and runtime.device("auto") != "cuda":
        raise UserError(
            "trainer.device=cuda, but torch finds no GPU here, so nothing can run on it; run on a machine that has "
            "one, or write trainer.device=cpu (full-size presets need a GPU; for a laptop there are toy_* and small_*)"
        )
    if devices > 1 and runtime.device(cfg.trainer.device) == "cuda" and devices > (found := runtime.num_gpus() * nodes):
        there = "here" if nodes == 1 else f"here on one of {nodes} nodes"
        raise UserError(
            f"strategy.devices={devices}, but torch finds {found // nodes} GPUs {there}, and every process needs one "
            f"of its own; write strategy.devices={found}"
        )


@contextlib.contextmanager
def _failure_noted(file: Path) -> Iterator[None]:
    """Leaves the error of a failed run for reports and `status`; a stop (Ctrl-C, SIGTERM) is no failure."""
    file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            files.write_text(file, f"{type(error).__name__}: {error}\n")
        raise


def plan_table(store: Store, plan: Sequence[Step], until: str | None) -> str:
    """The plan as aligned columns: step, stage, key, and what would be done (reuse, run, or skip: not needed)."""
    lines = [("step", "stage", "key", "state")]
    lines += [(step.name, step.stage, key, state) for step, key, state in store.plan(plan, until)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def point(_: DictConfig) -> None:
    """One point of a sweep, called by Hydra's launcher: in this process, or in a job of its own."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    mine = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    overrides = list(hydra.overrides.task)
    title = " ".join(overrides)
    try:
        composed = compose.compose(
            overrides,
            config_dir=Path(mine[0]) if mine else None,
            config_name=hydra.job.config_name or "config",
            in_sweep=True,
        )
        runtime.say(f"point {title}")
        if composed.cfg.dry_run:
            print(f"\n{title}", flush=True)
        execute(composed)
    except UserError as error:
        runtime.say(f"point {title}: {error}")
        raise PointFailed(str(error)) from None


def _command(argv: list[str]) -> int:
    args = _parse(argv)
    config_dir = Path(args.config_dir) if args.config_dir else None
    config_name = args.config_name or "config"
    if args.config_path:
        raise ConfigError(["--config-path would hide kdlab's own YAML; use --config-dir, which goes before it"])
    if args.help:
        print(usage.text(config_dir))
        return 0
    if args.multirun or "hydra.mode=MULTIRUN" in args.overrides:
        return _multirun(args.overrides, config_dir, config_name)
    if args.hydra_help or args.shell_completion or args.info:
        return _ask_hydra(argv)
    composed = compose.compose(args.overrides, config_dir=config_dir, config_name=config_name, in_sweep=args.point)
    if args.cfg:
        return _ask_hydra(argv)
    if not args.point and (problems := effects.idle(composed.unresolved, composed.values, make_plan)):
        raise ConfigError(problems)
    execute(composed)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    from hydra.main import get_args_parser

    parser = get_args_parser()
    # What kdlab.sweep starts: a value that does nothing in this point does something in another.
    parser.add_argument("--point", action="store_true", help="a point of a grid that was checked as a whole")
    namespace: argparse.Namespace = parser.parse_intermixed_args(argv)
    return namespace


def _ask_hydra(argv: list[str]) -> int:
    """Lets Hydra answer what is Hydra's to answer: --cfg, --info, --hydra-help, shell completion."""
    import hydra

    from kdlab import schema

    schema.register()
    sys.argv = [sys.argv[0], *argv]
    hydra.main(version_base=compose.VERSION_BASE, config_path=str(schema.config_dir()), config_name="config")(point)()
    return 0


def _multirun(overrides: list[str], config_dir: Path | None, config_name: str) -> int:
    """Checks every point, then hands the sweep to Hydra's sweeper and launcher."""
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    settings = [text for text in overrides if text.startswith("hydra")]
    if not any(text.startswith("hydra/sweeper=") for text in settings):  # another sweeper makes its points itself
        lines = compose.expand(overrides, config_dir=config_dir)
        grid.points(lines, make_plan, config_dir=config_dir, config_name=config_name)
    GlobalHydra.instance().clear()
    try:
        search_path = compose.loader(config_dir).get_search_path()
        launch = [*(line for line in QUIET if not any(s.startswith(line.partition("=")[0]) for s in settings))]
        Hydra.create_main_hydra2("run", search_path).multirun(
            config_name=config_name, task_function=point, overrides=[*overrides, *launch, "hydra.mode=MULTIRUN"]
        )
    finally:
        GlobalHydra.instance().clear()
    return 0


def _report(folder: Path, cfg: Any) -> None:
    """Prints the table of this run and leaves it beside run.json; nothing where `until` stopped before the scores."""
    from kdlab.report.collect import collect
    from kdlab.report.table import render

    rows = collect([folder], cfg.paths.store)
    if any(row.tests for row in rows):
        table = render(rows)
        files.write_text(folder / "table.md", table)
        print(table, end="", flush=True)


if __name__ == "__main__":
    from kdlab.run import main as importable_main  # so that a launcher can pickle `point` by its name

    sys.exit(importable_main())
