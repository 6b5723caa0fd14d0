"""The command `python -m kdlab.budget`: memory and traffic of every training of a configuration, under each strategy.

No torch: the arithmetic is strategies/footprint.py and strategies/lecture.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdlab import compose, effects, runtime, schema
from kdlab.artifacts.stage import plan_keys
from kdlab.artifacts.store import Store
from kdlab.errors import ConfigError, UserError
from kdlab.models.shapes import num_parameters, parameter_shapes
from kdlab.planned import Planned, trainings
from kdlab.recipes.plan import make_plan
from kdlab.strategies import footprint, lecture
from kdlab.strategies.footprint import Layout

HELP = """Memory and communication of every training of a configuration, without a GPU and before one is paid for.

  python -m kdlab.budget [+experiment=NAME] [group=option ...] [key=value ...]     as for python -m kdlab.run, and

  device_memory_gb=<x>  memory of one device in GB, 1e9 bytes                                        (80)
  num_devices=<n>       over which a strategy spreads a step (single uses one)                       (strategy's, or 8)
  tokens_per_s=<x>      target tokens a second of all devices together: how long a training takes    (not said)

Two views: as built, what kdlab's strategies hold and send; paper, the usual mixed-precision sums (2 + 2 + 12 bytes a
parameter), with the reasons for each difference. MB are 1e6 bytes. Not counted: the CUDA context, workspaces of its
libraries, what the allocator loses; leave a tenth of the memory for them.
"""
OPTIONS: dict[str, tuple[type, Any]] = {
    "device_memory_gb": (float, 80.0),
    "num_devices": (int, None),
    "tokens_per_s": (float, None),
}
NUM_DEVICES = 8
PARTS = ("parameters", "gradients", "optimizer", "copies", "teacher", "activations", "loss", "validation", "peak")
KINDS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "ring")
FOOTNOTES = """parameters, gradients and optimizer are held between steps, the rest while one is computed.
copies: bf16 and gathered weights, gradients on their way, positions. teacher: weights, and the outputs of its layers
for a microbatch. activations: what autograd saves (kdlab/models/activations.py), sentences of the greatest length.
loss: logits of a chunk, gradients of head and hidden states. validation: its own microbatch and the gradient of each
term, beside parameters and optimizer. peak: the greater of a step and of validation. Measured on CPUs, not on GPUs.
Traffic: whole buffers, once each; ring: what a ring sends, times N / (N - 1). What cpu_offload keeps in the CPU's
memory is not shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 when the configuration is wrong."""
    parser = argparse.ArgumentParser("kdlab.budget", description=HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the configuration; see python -m kdlab.run --help")
    parser.add_argument("--config-dir", type=Path, help="your own YAML, before kdlab's")
    parser.add_argument("--config-name", default="config", help="another primary configuration")
    asked = parser.parse_intermixed_args(None if arguments is None else list(arguments))
    try:
        options, overrides = parse(asked.overrides)
        composed = compose.compose(overrides, config_dir=asked.config_dir, config_name=asked.config_name)
        if problems := effects.idle(composed.unresolved, composed.values, make_plan):
            raise ConfigError(problems)
        print("\n".join(report(composed, **options)), flush=True)
    except UserError as error:
        runtime.say(str(error))
        return 1
    return 0


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """This command's own options, and the overrides. Raises: ConfigError with every problem of the options."""
    options = {name: default for name, (_, default) in OPTIONS.items()}
    overrides, problems = [], []
    for argument in arguments:
        name, _, text = argument.partition("=")
        if name not in OPTIONS:
            overrides.append(argument)
            continue
        kind, default = OPTIONS[name]
        try:
            options[name] = kind(text)
        except ValueError:
            options[name] = None
        if options[name] is None or not 0 < options[name] < float("inf"):
            number = "a whole number" if kind is int else "a number"
            problems.append(f"{name}={text}, but it counts; write {number} above 0, e.g. {name}={default or 8:g}")
    if problems:
        raise ConfigError(problems)
    return options, overrides


def report(
    composed: compose.Composed, *, device_memory_gb: float, num_devices: int | None, tokens_per_s: float | None
) -> Iterator[str]:
    """Everything that the command prints, line by line."""
    cfg, plan = composed.cfg, make_plan(composed.cfg)
    num_devices = num_devices or (cfg.strategy.devices if cfg.strategy.get("devices", 1) > 1 else NUM_DEVICES)
    layouts = _layouts(composed)
    for layout in layouts.values():
        if num_devices % layout.replicas:
            raise UserError(
                f"num_devices={num_devices} but strategy.replicas={layout.replicas}: groups that each hold all "
                f"parts are of one size; write a multiple of {layout.replicas}"
            )
    store, keys = Store(cfg.paths.store), plan_keys(plan)
    corpus = (store.manifest("prepare_corpus", keys["corpus"]) or {}).get("summary", {}).get("train")
    chosen = composed.choices["strategy"]
    yield f"{cfg.name}: {num_devices} devices of {device_memory_gb:g} GB; strategy={chosen} is marked *"
    for planned in trainings(cfg, plan, store):
        yield ""
        yield from _training(planned, layouts, chosen, device_memory_gb, num_devices)
        yield from _duration(planned, corpus, tokens_per_s)
    yield from ("", "why as built differs from the paper:", *_differences(cfg.trainer.precision))
    yield from ("", *FOOTNOTES.splitlines())


def _layouts(composed: compose.Composed) -> dict[str, Layout]:
    """Every strategy with the options of its YAML, the chosen one with those of the configuration."""
    found = {}
    for name in footprint.STRATEGIES:
        path = schema.config_dir() / "strategy" / f"{name}.yaml"
        node: Any = OmegaConf.load(path) if path.is_file() else {}
        found[name] = Layout.of(name, composed.cfg.strategy if name == composed.choices["strategy"] else node)
    return found


def _training(
    planned: Planned, layouts: dict[str, Layout], chosen: str, device_memory_gb: float, num_devices: int
) -> Iterator[str]:
    training = planned.training
    shapes, size = training.shapes, training.microbatch(num_devices)
    beside = ""
    if training.teacher:
        kept = "" if training.cache == "none" else f", read from a cache ({training.cache})"
        count = num_parameters(parameter_shapes(training.teacher))
        beside = f"; beside it a teacher of {count:,} in {training.teacher_precision}{kept}"
    num = num_parameters(shapes)
    yield f"{planned.name}: {num:,} parameters, {training.precision}{beside}"
    yield (
        f"  a step: {training.tokens_per_step:,} target tokens, {training.tokens_per_step / num_devices:,.0f} a device "
        f"in microbatches ({training.num_microbatches(num_devices)}) of {size.src:,} source and {size.tgt:,} target "
        f"positions, sentences of {training.longest}"
    )
    held, sent = [["as built, MB a device", *PARTS, "fits"]], [["as built, MB a step", *KINDS]]
    paper = [["paper, MB a device", *lecture.ALL, "together", "traffic / parameters", "as built"]]
    for strategy, layout in layouts.items():
        name = f"{strategy}{' *' if strategy == chosen else ''}"
        memory = footprint.memory(training, layout, num_devices)
        traffic = footprint.traffic(training, layout, num_devices)
        fits = "yes" if footprint.fits(memory, device_memory_gb) else "no"
        held.append([name, *(_mb(getattr(memory, part)) for part in PARTS), fits])
        sent.append([name, *(_mb(getattr(traffic, kind)) for kind in KINDS)])
        theirs = lecture.memory(num, strategy, num_devices)
        ratio = f"{traffic.ring / (footprint.FP32 * num):.2f}"
        parts = [_mb(float(theirs[part])) for part in lecture.ALL]
        paper.append(
            [name, *parts, _mb(float(sum(theirs.values()))), f"{lecture.traffic(strategy, num_devices)}", ratio]
        )
    for table in (held, sent, paper):
        yield from _aligned(table)
        yield ""


def _differences(precision: str) -> Iterator[str]:
    """Each reason once, with the strategies that it is true of; then the lecture's own example."""
    of = {name: lecture.differences(name, precision) for name in footprint.STRATEGIES}
    for reason in dict.fromkeys(reason for reasons in of.values() for reason in reasons):
        names = [name for name, reasons in of.items() if reason in reasons]
        yield f"  - {'all' if len(names) == len(of) else ', '.join(names)}: {reason}"
    example = [
        f"{name} {float(sum(lecture.memory(7_500_000_000, name, 3).values())) / 1e9:g} GB, {lecture.traffic(name, 3)} P"
        for name in ("ddp", "zero1", "zero2", "zero3")
    ]
    yield f"the paper view's example, 7.5 billion parameters P on 3 devices: {'; '.join(example)}"


def _duration(planned: Planned, corpus: dict[str, Any] | None, tokens_per_s: float | None) -> Iterator[str]:
    training = planned.training
    tokens = training.tokens_per_step * planned.max_steps
    epoch = corpus["tgt_tokens"] * training.targets_per_source if corpus else None
    told = f"{epoch:,} target tokens" if epoch else "not known before the corpus is prepared (until=corpus)"
    yield f"  {planned.max_steps:,} steps: {tokens:,} target tokens; an epoch of all rows: {told}"
    if tokens_per_s:
        took = f"; that epoch: {_time(epoch / tokens_per_s)}" if epoch else ""
        yield f"  at {tokens_per_s:,.0f} target tokens a second all steps take {_time(tokens / tokens_per_s)}{took}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of one width, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield f"  {'  '.join(cells)}"


if __name__ == "__main__":
    sys.exit(main())
