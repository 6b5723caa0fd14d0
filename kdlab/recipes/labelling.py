"""The steps that make pseudo-labels."""

from __future__ import annotations

from typing import Any

from kdlab.artifacts.stage import Step
from kdlab.recipes.settings import Settings, device, uses_labels
from kdlab.recipes.teachers import fetched
from kdlab.stages import decode_sources, pseudo_label


def pseudo_labels(settings: Settings) -> list[Step]:
    """What the teacher says of the training sources, and the labels chosen from it.

    Nothing when no term of the objective looks at labels.
    """
    if not uses_labels(settings["objective"]):
        return []
    members, (judge, chosen) = ensemble(settings), choice(settings)
    return [
        *members,
        Step(
            name="hypotheses",
            stage="decode_sources",
            version=decode_sources.VERSION,
            params={"decode": decode_params(settings)},
            inputs={"corpus": "corpus", "teacher": "teacher", **{step.name: step.name for step in members}},
            run=decode_sources.run,
            local=device(settings),
            assist=decode_sources.assist,
        ),
        *judge,
        chosen,
    ]


def choice(settings: Settings) -> tuple[list[Step], Step]:
    """The model that judges labels, if any, and the labels; of their settings params hold what is not as ever."""
    node, local = settings["labels"], {"min_labelled": settings["min_labelled"]}
    params = {name: node[name] for name, usual in pseudo_label.DEFAULTS.items() if node[name] != usual}
    inputs, judge = {"corpus": "corpus", "hypotheses": "hypotheses"}, []
    if (folder := node["reverse"]["path"]) is not None:
        judge = [fetched(settings, "reverse", folder, "labels.reverse.path")]
        params["drop_share"], inputs["reverse"] = node["reverse"]["drop_share"], "reverse"
        local |= device(settings)
    return judge, Step(
        name="pseudo_label",
        stage="pseudo_label",
        version=pseudo_label.VERSION,
        params=params,
        inputs=inputs,
        run=pseudo_label.run,
        local=local,
    )


def ensemble(settings: Settings) -> list[Step]:
    """The further models of an ensemble, teacher_2 and so on, each known by its content."""
    folders = enumerate(settings["label_decode"]["ensemble"], 2)
    return [fetched(settings, f"teacher_{number}", path, "label_decode.ensemble") for number, path in folders]


def decode_params(settings: Settings) -> dict[str, Any]:
    """What decoding/engines.py is told; what is as ever is left out, so that keys stay what they were."""
    node = dict(settings["label_decode"])
    del node["ensemble"]  # the models are inputs
    usual = {"engine": "pytorch", "n_best": 1, "sampling": None}
    unread = ("beam_size",) if node["sampling"] is not None else ()
    return {name: value for name, value in node.items() if name not in unread and (name, value) not in usual.items()}
