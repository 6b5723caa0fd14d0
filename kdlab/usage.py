"""The first screen of `python -m kdlab.run --help`: what to write, the dials, the groups with their options."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import OmegaConf

from kdlab import compose, schema

USAGE = """kdlab: a parallel corpus and a teacher go in; a small student, its scores and a table come out.

usage: python -m kdlab.run [+experiment=NAME] [group=option ...] [key=value ...]
  python -m kdlab.run                                  the toy: teacher, student alone, student with hybrid distillation
  python -m kdlab.run +experiment=hybrid_wmt20 dry_run=true        print a plan: step, stage, key; reuse, run or skip
  python -m kdlab.run -m seed=1,2,3 temperature=1,2                six runs, one behind the other

  -m, --multirun       run every combination of key=a,b    --cfg job [--resolve]   print the configuration
  --config-dir DIR     your own YAML, before ours          --config-name NAME      another primary configuration
  --info [what]        how Hydra put it together           --hydra-help            all of Hydra's flags
"""


def text(config_dir: Path | None = None) -> str:
    """The whole screen."""
    return "\n".join([USAGE, "dials:", *_dials(), "", "groups (the default first):", *_groups(config_dir)])


def _dials() -> list[str]:
    """The root keys of config.yaml with their values and comments, as they stand there."""
    lines = (schema.config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(\w+): (\S+) # (.*)", line) for line in lines]
    return [f"  {f'{m[1]}={m[2]}':<22} {m[3]}" for m in found if m]


def _groups(config_dir: Path | None) -> list[str]:
    usual = {}
    for entry in OmegaConf.load(schema.config_dir() / "config.yaml").defaults:
        if not isinstance(entry, str):
            ((group, option),) = entry.items()
            usual[str(group)] = option
    lines = []
    for group in [*usual, *(f"+{name}" for name in compose.NEEDS_PLUS)]:
        known = compose.options(group.lstrip("+").partition("@")[0], config_dir)
        first = [usual[group]] if group in usual else []
        lines.append(f"  {group:<30} {', '.join([*first, *(o for o in known if o not in first)])}")
    return lines
