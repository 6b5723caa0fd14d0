"""The command `python -m kdlab.check`: the invariances of a loss, on the user's own configuration.

No torch before the configuration is found to be right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdlab import compose, effects, files, runtime
from kdlab.artifacts.store import Store
from kdlab.errors import ConfigError, UserError
from kdlab.recipes.plan import make_plan

HELP = """Checks that the objective of a configuration is what it says: padding, cuts, equality, gradients, teacher,
vocabulary, chunks, resuming. Uses what is finished in the store, and stands in for the rest; makes no artefact.

  python -m kdlab.check [+experiment=NAME] [group=option ...] [key=value ...]     as for python -m kdlab.run

Prints a table and leaves it as check.md and check.json in runs/<name>/<point>/; exit code 1 when a check fails.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 when a check fails or the configuration is wrong."""
    parser = argparse.ArgumentParser("kdlab.check", description=HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the configuration; see python -m kdlab.run --help")
    parser.add_argument("--config-dir", type=Path, help="your own YAML, before kdlab's")
    parser.add_argument("--config-name", default="config", help="another primary configuration")
    asked = parser.parse_intermixed_args(None if arguments is None else list(arguments))
    try:
        composed = compose.compose(asked.overrides, config_dir=asked.config_dir, config_name=asked.config_name)
        if problems := effects.idle(composed.unresolved, composed.values, make_plan):
            raise ConfigError(problems)
        return check(composed)
    except UserError as error:
        runtime.say(str(error))
        return 1
    except KeyboardInterrupt:
        runtime.say("stopped")
        return 130


def check(composed: compose.Composed) -> int:
    """Runs all checks, prints and stores the table; 1 when one fails."""
    from kdlab.checks import suite, table
    from kdlab.checks.material import gather

    cfg, title = composed.cfg, f"{composed.cfg.name}/{composed.point}"
    runtime.start_torch(cfg.trainer.threads)
    with tempfile.TemporaryDirectory(prefix="kdlab-check-") as work:
        material = gather(make_plan(cfg), Store(cfg.paths.store), Path(work))
        for what, origin in material.origins.items():
            runtime.say(f"{what}: {origin}")
        findings = suite.run(material)
    folder = Path(cfg.paths.runs) / cfg.name / composed.point
    print(table.render(findings), end="", flush=True)
    files.write_text(folder / "check.md", table.report(title, material.origins, findings))
    record = {
        "overrides": composed.overrides,
        "commit": runtime.commit(),
        "material": material.origins,
        "checks": table.as_json(findings),
        "cpu_seconds": round(runtime.cpu_seconds(), 1),
    }
    files.write_json(folder / "check.json", record)
    for finding in findings:
        if finding.holds is False:
            runtime.say(finding.failure())
    runtime.say(f"{folder / 'check.md'}, {runtime.cpu_seconds():.0f} CPU-seconds")
    return int(any(finding.holds is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
