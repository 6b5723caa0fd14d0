"""The loggers of a training beside metrics.csv: opened before it, told the result after it, closed however it ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from kdlab.data.prepared import PreparedCorpus
    from kdlab.training.metrics import MetricsCsv

NUM_SAMPLES = 8  # validation sentences in the table of translations
CURVES = ("train/loss", "valid/nll", "valid/bleu")
FILES = ("weights.safetensors", "config.json", "card.md", "objective.md", "metrics.csv", "tokenizer/*")


@contextlib.contextmanager
def opened(local: dict[str, Any], scratch: Path) -> Iterator[list[Logger]]:
    """The loggers that local["loggers"] describes, for the training of the run whose folder is local["run"]."""
    if not local["loggers"]:
        yield []
        return
    from kdlab.training.loggers import Training, build

    training, made = Training.of_run(Path(local["run"]), step=local["name"], scratch=scratch), []
    failed = True
    try:
        for node in local["loggers"]:
            made.append(build(node, training))
        yield made
        failed = False
    finally:
        for logger in _wandb(made):
            logger.close(failed=failed)
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish()  # of Lightning's own logger; the next training of this process would go on in the same run


def tell_result(
    loggers: list[Logger],
    out: Path,
    inputs: dict[str, Path],
    corpus: PreparedCorpus,
    metrics: MetricsCsv,
    summary: dict[str, Any],
) -> None:
    """Shows a finished model at W&B: its scores, sample translations beside its teacher's, its curves, its folder.

    Teachers keep their folders here: they are large, and W&B's place is not.
    """
    wandb = [logger for logger in _wandb(loggers) if logger.mode != "disabled"]
    if not wandb:
        return
    from kdlab.models.folder import read_config
    from kdlab.training import curves

    history = metrics.history()
    picture = curves.draw({name: history[name] for name in CURVES if name in history})
    best = {f"best/{name}": value for name, value in summary["best_validation"].items()}
    for logger in wandb:
        name = "teacher" if logger.step == "teacher" else "student"
        columns, rows = samples({"teacher": inputs.get("teacher"), name: out}, corpus)
        logger.keep_samples(columns, rows, picture, summary["steps"])
        logger.keep_summary({"parameters": summary["parameters"], "steps": summary["steps"], **best})
        if name == "student":
            logger.keep_model(out, FILES, read_config(out)["card"])


def samples(models: dict[str, Path | None], corpus: PreparedCorpus) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the first validation sentences, their references, and what each model makes of them, greedily.

    On the CPU, because a GPU may have no room for a second copy of a teacher.
    """
    from kdlab.decoding.beam import BeamConfig
    from kdlab.decoding.translate import translate
    from kdlab.models.folder import load_model

    src_lines, references = (lines[:NUM_SAMPLES] for lines in corpus.valid_text)
    table = {"source": src_lines, "reference": references}
    src_ids, greedy = corpus.tokenizer.encode_src(src_lines), BeamConfig(beam_size=1, length_penalty=1.0)
    for name, folder in models.items():
        if folder is not None:
            found = translate(load_model(folder).eval(), src_ids, greedy, batch_tokens=8192, progress=None)
            table[name] = [corpus.tokenizer.decode_tgt(nbest[0].ids) for nbest in found]
    return list(table), [list(row) for row in zip(*table.values(), strict=True)]


def _wandb(loggers: list[Logger]) -> list[Any]:
    """Those of kdlab's own logger for W&B, which is imported where it is used alone."""
    module = sys.modules.get("kdlab.training.wandb_logger")
    return [logger for logger in loggers if module is not None and isinstance(logger, module.WandbLogger)]
