"""The command `python -m kdlab.dashboard`: a project's workspace at Weights & Biases, declared here and made there.

What it plots is what training/wandb_logger.py sends. Needs the package wandb-workspaces, of the extra `dashboard`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kdlab import compose, runtime
from kdlab.errors import UserError

HELP = """Makes a workspace for kdlab's runs in a project at Weights & Biases.

  python -m kdlab.dashboard [logger.wandb.project=NAME] [logger.wandb.entity=NAME]

Sections: training, temperature, mixing, size against quality, system. Teachers are left out. Each call makes a new
view, so that nobody's own changes are lost; dry_run=true prints it and sends nothing.
Needs pip install 'kdlab[dashboard]', and a key (`wandb login`).
"""
QUALITY = "best/bleu"  # of the best validation; trainer.select=loss has none


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        _make(argv)
    except UserError as error:
        runtime.say(str(error))
        return 1
    return 0


def workspace(entity: str, project: str) -> Any:
    """The workspace, not sent yet. Raises: UserError without the package that describes it."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            f"a W&B workspace is described with the package wandb-workspaces, which cannot be imported ({error}); "
            "run pip install 'kdlab[dashboard]'"
        ) from error
    quality = wr.SummaryMetric(QUALITY)

    def against(config: str, **more: Any) -> list[Any]:
        """The quality over a dial: every run, then the mean of the runs (seeds) of each value."""
        return [
            wr.ScatterPlot(title=f"BLEU against {config}", x=wr.Config(config), y=quality, **more),
            wr.BarPlot(
                title=f"mean BLEU by {config}",
                metrics=[QUALITY],
                groupby=wr.Config(config),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
            ),
        ]

    def curve(*metrics: str, **more: Any) -> Any:
        return wr.LinePlot(title=", ".join(metrics), x="step", y=list(metrics), **more)

    training = [curve("valid/bleu"), curve("valid/nll", "train/nll"), curve("valid/kd"), curve("train/grad_norm")]
    mixing = [*against("mix"), *against("gold_share", log_x=True)]
    temperature = [*against("temperature", log_x=True), curve("valid/bleu", groupby=wr.Config("temperature"))]
    columns = (wr.Config("student.d_model"), wr.Config("temperature"), wr.SummaryMetric("parameters"), quality)
    size = [
        wr.ScatterPlot(title="BLEU against size", x=wr.SummaryMetric("parameters"), y=quality, log_x=True),
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]),
    ]
    system = [curve("train/tokens_per_s"), curve("train/peak_memory_mib")]
    samples = [wr.WeavePanelSummaryTable(table_name="samples"), wr.MediaBrowser(media_keys=["curves"])]
    sections = {
        "training": training,
        "temperature": temperature,
        "mixing": mixing,
        "size against quality": size,
        "system": system,
        "translations": samples,
    }
    return ws.Workspace(
        name="kdlab",
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(filters=expr.And(expr.Metric("JobType") != "teacher")),
    )


def _make(overrides: list[str]) -> None:
    chosen = [] if any(text.startswith("logger=") for text in overrides) else ["logger=wandb"]
    cfg = compose.compose([*chosen, *overrides]).cfg
    node = cfg.logger.get("wandb")
    if node is None or not node.get("project"):
        raise UserError("logger.wandb has no project, so there is no place for a dashboard; choose logger=wandb")
    if cfg.dry_run:
        view = workspace(node.get("entity") or "entity", node.project)._to_model()
        print(view.model_dump_json(by_alias=True, exclude_none=True, indent=1))
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "W&B has no key here (or WANDB_MODE is offline), so nothing can be sent; run `wandb login` once, or write "
            "dry_run=true to see the workspace"
        )
    try:
        workspace(str(node.get("entity") or wandb.Api().default_entity), node.project).save()
    except wandb.Error as error:
        raise UserError(
            f"W&B did not take the workspace ({error}); check the network, the names logger.wandb.entity and "
            f"logger.wandb.project={node.project} (a run must have made it), and `wandb login`"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
