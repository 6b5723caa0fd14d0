"""What making pseudo-labels asks for: beams wide enough, an engine that can, an ensemble with one vocabulary, a choice.

Called by contradictions.py, before a teacher is trained for hours; torch-free like it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import targets, teacher_checks

NOISY_STUDENT = "kdlab.recipes.noisy_student.plan"
PYTORCH = "write label_decode.engine=pytorch"


def how_labels_are_made(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of label_decode in a recipe that makes labels."""
    if "pseudo_label" not in cfg.recipe.steps:
        return
    node = cfg.label_decode
    if node.sampling is None and node.n_best > node.beam_size:
        yield (
            f"label_decode.n_best={node.n_best} but label_decode.beam_size={node.beam_size}: a search finishes "
            f"beam_size hypotheses; write label_decode.n_best={node.beam_size}, or widen the beam"
        )
    if node.engine == "ctranslate2":
        yield from _ctranslate2(cfg)
    elif node.precision == "fp16":
        yield (
            f"label_decode.precision=fp16 but label_decode.engine={node.engine}, which does not know it; write "
            "label_decode.precision=bf16 or label_decode.engine=ctranslate2"
        )
    yield from _ensemble(cfg)


def how_labels_are_chosen(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of labels in a recipe that makes some."""
    if "pseudo_label" not in cfg.recipe.steps:
        return
    choose, cache = cfg.labels.choose, cfg.teacher_cache.kind
    if choose in ("bleu", "chrf", "all") and cfg.label_decode.n_best == 1:
        yield (
            f"labels.choose={choose} but label_decode.n_best=1, so there is one hypothesis and no choice; write e.g. "
            "label_decode.n_best=5, or labels=first"
        )
    if choose == "all" and cache != "none" and any(teacher_checks.kd_terms(cfg)):
        yield (
            f"labels.choose=all but teacher_cache={names.get('teacher_cache', cache)}: a cache keeps what the teacher "
            "says of one label a row, and each epoch takes another; choose teacher_cache=none or labels=first"
        )
    folder = cfg.labels.reverse.path
    if folder is not None and "architecture" not in (teacher_checks.config_of(folder) or {}):
        yield (
            f"labels.reverse.path={folder} holds no config.json of a kdlab model, so it cannot judge labels; write the "
            "folder of one that translates back (it has weights.safetensors and config.json)"
        )


def reverse(cfg: DictConfig) -> list[str]:
    """Name of the step that fetches the model which judges labels, if one is asked for."""
    return ["reverse"] if "pseudo_label" in cfg.recipe.steps and cfg.labels.reverse.path is not None else []


def members(cfg: DictConfig) -> list[str]:
    """Names of the steps that fetch the further models of an ensemble; the first is the teacher."""
    makes_labels = "pseudo_label" in cfg.recipe.steps
    return [f"teacher_{number}" for number, _ in enumerate(cfg.label_decode.ensemble, 2)] if makes_labels else []


def _ctranslate2(cfg: DictConfig) -> Iterator[str]:
    if importlib.util.find_spec("ctranslate2") is None:
        yield (
            "label_decode.engine=ctranslate2 needs a package that is not installed; write pip install 'kdlab[ct2]', "
            "or label_decode.engine=pytorch"
        )
    if cfg.label_decode.sampling is not None:
        yield (
            "label_decode.engine=ctranslate2 draws samples that depend on threads and neighbours, so that no run could "
            f"be repeated; {PYTORCH}, or choose label_decode=beam5"
        )
    if cfg.label_decode.ensemble:
        yield f"label_decode.engine=ctranslate2 asks one model, but label_decode.ensemble names more; {PYTORCH}"


def _ensemble(cfg: DictConfig) -> Iterator[str]:
    if isinstance(cfg.label_decode.ensemble, str):  # of which the schema speaks
        return
    folders = [Path(path) for path in cfg.label_decode.ensemble]
    if folders and cfg.teacher.source == "folder" and cfg.teacher.path is not None:
        folders.insert(0, Path(cfg.teacher.path))
    first: tuple[Path, str] | None = None
    for folder in folders:
        try:
            fingerprint = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))[
                "fingerprint"
            ]
        except (OSError, ValueError, KeyError, TypeError):
            if str(folder) != cfg.teacher.path:  # of which others speak
                yield (
                    f"label_decode.ensemble names {folder}, which holds no readable tokenizer/tokenizer.json, so it is "
                    "no kdlab model; write folders of such (with weights.safetensors, config.json and tokenizer/)"
                )
            continue
        first = first or (folder, fingerprint)
        if fingerprint != first[1]:
            yield (
                f"label_decode.ensemble names {folder}, whose vocabulary is not that of {first[0]}, but the mean is "
                "taken over probabilities of the same tokens; name models that were trained with one tokenizer"
            )


def source_only(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of text without targets: sets that are scored have none of it, and somebody must give it targets."""
    for part in ("valid", "tests"):
        for path, share in _shares(cfg.data[part], f"data.{part}"):
            if share > 0:
                yield (
                    f"{path} brings lines without a target, on which nothing can be measured; source-only text belongs "
                    "to data.train"
                )
    shares = [share for _, share in _shares(cfg.data.train, "data.train")]
    if not shares or min(shares) < 1:
        return
    text, recipe = "no line of data.train has a target", names.get("recipe", cfg.recipe._target_)
    if "pseudo_label" not in cfg.recipe.steps:
        yield f"{text} and recipe={recipe} makes no pseudo-labels, so it can train on nothing; choose recipe=seq_kd"
        return
    if cfg.teacher.source == "train":
        yield f"{text}, from which a teacher could learn; choose teacher=folder or teacher=marian, or add such lines"
    if cfg.data.tokenizer.path is None:
        yield f"{text}, from which a vocabulary could be learnt; write data.tokenizer.path=<folder of a tokenizer>"
    if cfg.baseline:
        yield f"{text}, from which the student alone could learn; write baseline=false, or add such lines"
    if cfg.mix > 0:
        yield f"mix={cfg.mix} draws gold rows but {text}; write mix=0"


def tag(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of label_tag: a source that has two targets, layers that are compared, positions."""
    if cfg.label_tag is None or "pseudo_label" not in cfg.recipe.steps:
        return
    if cfg.mix_by == "weights":
        yield (
            f"label_tag={cfg.label_tag} marks the sources of pseudo-labels, but with mix_by=weights gold and label "
            "share one source; write mix_by=sampling"
        )
    yield from _encoder_terms(cfg, f"label_tag={cfg.label_tag}")
    longest, model = cfg.data.cleaning.max_tokens, cfg.student
    if longest is not None and longest == model.get("max_positions", 1024):
        yield (
            f"data.cleaning.max_tokens={longest} fills student.max_positions, and label_tag={cfg.label_tag} makes "
            "sources one longer; lower the first or raise the second"
        )


def noise(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of source_noise: encoder states that are compared with those of a teacher who reads clean text."""
    if any(cfg.source_noise.values()):
        yield from _encoder_terms(cfg, f"source_noise={names.get('source_noise', 'default')}")


def rounds(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of several rounds: what fits the first teacher need not fit a student that is the next one."""
    if cfg.recipe._target_ != NOISY_STUDENT or cfg.rounds == 1:
        return
    if targets.signature(str(cfg.init._target_)).takes("teacher"):
        yield (
            f"init={names.get('init', cfg.init._target_)} starts each student from its teacher, but with rounds="
            f"{cfg.rounds} the next teacher is a student of the same shape, which would go on instead of starting; "
            "choose init=random"
        )
    for name, term in cfg.objective.terms.items():
        if term.weight > 0 and targets.compares_layers(str(term.term._target_)):
            yield (
                f"objective.terms.{name} compares layers of student and teacher, but with rounds={cfg.rounds} the next "
                f"teacher has other layers than the first; leave it out: objective.terms.{name}.weight=0"
            )


def later_rounds(cfg: DictConfig, cached: Iterable[str]) -> list[str]:
    """Names of the steps of the second round on."""
    if cfg.recipe._target_ != NOISY_STUDENT:
        return []
    again = ("hypotheses", "pseudo_label", *cached, "student", "evaluate")
    return [f"{name}_{number}" for number in range(2, cfg.rounds + 1) for name in again]


def _encoder_terms(cfg: DictConfig, what: str) -> Iterator[str]:
    """Terms that compare encoder states, where the student's sources are not the teacher's."""
    for name, term in cfg.objective.terms.items():
        if term.weight > 0 and term.term.get("stack") == "encoder":
            yield (
                f"objective.terms.{name} compares encoder states position by position, but with {what} the student "
                f"reads other sources than the teacher; write objective.terms.{name}.term.stack=decoder"
            )


def _shares(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """Of each source the share of its lines that have no target; sources that cannot be built are left out."""
    nodes = [(path, node)] if "_target_" in node else targets.nodes(node, path)
    for where, found in nodes:
        if not OmegaConf.missing_keys(found) and not any(targets.node_problems(where, found)):
            plain = OmegaConf.to_container(found, resolve=True)
            assert isinstance(plain, dict)
            yield where, float(getattr(targets.build(plain), "source_only", 0.0))
