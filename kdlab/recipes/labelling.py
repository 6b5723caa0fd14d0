"""The steps that make pseudo-labels."""

from __future__ import annotations

from kdlab.artifacts.stage import Step
from kdlab.recipes.settings import Settings, device, uses_labels
from kdlab.stages import decode_sources, pseudo_label


def pseudo_labels(settings: Settings) -> list[Step]:
    """What the teacher says of the training sources, and the labels chosen from it.

    Nothing when no term of the objective looks at labels.
    """
    if not uses_labels(settings["objective"]):
        return []
    decode = dict(settings["label_decode"])
    if decode["engine"] == "pytorch":
        del decode["engine"]  # keys are what they were before there was a second one
    hypotheses = Step(
        name="hypotheses",
        stage="decode_sources",
        version=decode_sources.VERSION,
        params={"decode": decode},
        inputs={"corpus": "corpus", "teacher": "teacher"},
        run=decode_sources.run,
        local=device(settings),
        assist=decode_sources.assist,
    )
    return [
        hypotheses,
        Step(
            name="pseudo_label",
            stage="pseudo_label",
            version=pseudo_label.VERSION,
            params={},
            inputs={"corpus": "corpus", "hypotheses": "hypotheses"},
            run=pseudo_label.run,
            local={"min_labelled": settings["min_labelled"]},
        ),
    ]
