"""The steps that make pseudo-labels."""

from __future__ import annotations

from kdlab.artifacts.stage import Step
from kdlab.recipes.settings import Settings, device, uses_labels
from kdlab.stages import pseudo_label


def pseudo_labels(settings: Settings) -> list[Step]:
    """The teacher's translation of the training sources; nothing when no term of the objective looks at it."""
    if not uses_labels(settings["objective"]):
        return []
    decode = dict(settings["label_decode"])
    if decode["engine"] == "pytorch":
        del decode["engine"]  # keys are what they were before there was a second one
    return [
        Step(
            name="pseudo_label",
            stage="pseudo_label",
            version=pseudo_label.VERSION,
            params={"decode": decode},
            inputs={"corpus": "corpus", "teacher": "teacher"},
            run=pseudo_label.run,
            local={**device(settings), "min_labelled": settings["min_labelled"]},
        )
    ]
