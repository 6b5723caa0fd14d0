"""What a teacher that is brought along must be, and what the student takes from it: vocabulary, first weights.

Called by contradictions.py; torch-free like it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import targets
from kdlab.models import layer_rules

LAYER_SKIP = "kdlab.models.layer_skip.layer_skip"
SIZES = ("src_vocab_size", "tgt_vocab_size")
BROUGHT = ("folder", "marian", "huggingface")  # values of teacher.source
ADOPT = "teacher"  # of data.tokenizer.path: corpus and student take the teacher's vocabulary


def folder(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of teacher=folder: its path, its kind, its vocabulary."""
    if cfg.teacher.source != "folder":
        if cfg.teacher.path is not None and cfg.teacher.source not in BROUGHT:
            yield f"teacher.path={cfg.teacher.path} has no effect: only teacher=folder reads it; choose teacher=folder"
        return
    if cfg.teacher.path is None:
        yield "teacher=folder has no path to take the model from; write teacher.path=<folder of a kdlab model>"
        return
    config = config_of(cfg.teacher.path)
    if config is None:
        yield (
            f"teacher.path={cfg.teacher.path} holds no readable config.json, so it is no kdlab model; "
            "write the folder of one (it has weights.safetensors and config.json)"
        )
        return
    if (kind := config.get("model_type")) is not None:
        other = "marian" if kind == "marian" else "huggingface, which makes labels"
        yield f"teacher.path={cfg.teacher.path} is a Hugging Face model and no kdlab one; choose teacher={other}"
        return
    theirs = (architecture(cfg) or {}).get("tgt_vocab_size")
    if any(kd_terms(cfg)) and theirs is not None and theirs != cfg.vocab_size and cfg.data.tokenizer.path is None:
        yield (
            f"the teacher in {cfg.teacher.path} has a vocabulary of {theirs}, the student {cfg.vocab_size}, "
            f"but a kd term compares token by token; write data.tokenizer.path={ADOPT}, which adopts the teacher's, or "
            "recipe=seq_kd, which needs no common vocabulary"
        )


def marian(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of teacher=marian: its path or name and commit, its vocabulary."""
    if cfg.teacher.source != "marian":
        return
    path = cfg.teacher.path
    yield from hub_or_folder(cfg)
    if path is not None and Path(path).is_dir():
        found = (config_of(path) or {}).get("model_type")
        if found != "marian":
            other = "teacher=folder for a kdlab model" if found is None else "teacher=huggingface, which makes labels"
            yield (
                f"teacher.path={path} has a config.json with model_type {found!r}, so it is no Hugging Face Marian "
                f"model; write the folder of one, or choose {other}"
            )
    if path is not None and cfg.data.tokenizer.path is None and any(kd_terms(cfg)):
        yield (
            "a Marian teacher has a vocabulary of its own, but a kd term compares token by token; write "
            f"data.tokenizer.path={ADOPT}, which adopts it, or recipe=seq_kd, which needs no common vocabulary"
        )


def hub_or_folder(cfg: DictConfig) -> Iterator[str]:
    """Problems of a path that may be a folder, or a name on the hub with a commit."""
    path, revision = cfg.teacher.path, cfg.teacher.get("revision")
    if path is None:
        yield (
            f"teacher={cfg.teacher.source} has no path to take the model from; write teacher.path=<its folder, or a "
            "name on the hub>"
        )
    elif Path(path).is_dir():
        if revision is not None:
            yield f"teacher.revision={revision} has no effect: only a name on the hub has revisions; leave it out"
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        yield f"teacher.path={path} is no folder, and no name on the hub either; write e.g. Helsinki-NLP/opus-mt-de-en"
    elif not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        yield (
            f"teacher.path={path} is no folder, and as a name on the hub it needs teacher.revision=<commit>, got "
            f"{revision}: what a name or a branch stands for changes, and results are known by their inputs; write the "
            "40 hex digits that the hub shows under 'Files and versions'"
        )


def adopted_vocabulary(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of data.tokenizer.path=teacher: there must be a teacher that brings a vocabulary."""
    if cfg.data.tokenizer.path != ADOPT:
        return
    if "teacher" not in cfg.recipe.steps:
        yield (
            f"data.tokenizer.path={ADOPT} takes the teacher's vocabulary, but recipe="
            f"{names.get('recipe', cfg.recipe._target_)} has no teacher; write the path of a folder with a tokenizer"
        )
    elif cfg.teacher.source == "huggingface":
        yield (
            f"data.tokenizer.path={ADOPT} takes the teacher's vocabulary, but that of a Hugging Face teacher is no "
            "vocabulary of ours; leave it out: labels are encoded as the corpus is"
        )
    elif cfg.teacher.source not in BROUGHT:
        yield (
            f"data.tokenizer.path={ADOPT} takes the teacher's vocabulary, but one trained here takes the corpus's;"
            " leave it out, or choose teacher=folder or teacher=marian"
        )


def cache(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """What a teacher cache cannot keep, and settings of it that nothing reads."""
    node, chosen = cfg.teacher_cache, names.get("teacher_cache", cfg.teacher_cache.kind)
    unread = {"none": ("dtype", "top_k", "temperatures"), "hidden": ("top_k", "temperatures"), "top_k": ()}
    for key in unread[node.kind]:
        if node[key] is not None:
            yield (
                f"teacher_cache.{key}={node[key]} has no effect: teacher_cache={chosen} does not read it; leave it "
                "out, or choose teacher_cache=top_k"
            )
    if node.kind == "none":
        return
    for name, term in kd_terms(cfg):
        wanted = targets.signature(term.term._target_)
        if targets.compares_layers(term.term._target_):
            stack, layers = (term.term.get(name, wanted.flags.get(name)) for name in ("stack", "layers"))
            is_last = (stack, layers) == ("decoder", "last")
            if node.kind != "hidden" or not is_last:
                kept = "the decoder's last layer alone" if node.kind == "hidden" else "no hidden states"
                yield (
                    f"objective.terms.{name} compares hidden states of {stack} layers {layers}, but teacher_cache="
                    f"{chosen} keeps {kept}; choose teacher_cache={'hidden' if is_last else 'none'}, or take the term "
                    f"out: objective.terms.{name}.weight=0"
                )
        elif wanted.flags.get("counts_padding"):
            yield (
                f"objective.terms.{name} looks at padding, where teacher_cache={chosen} has nothing; "
                "choose teacher_cache=none"
            )
        elif node.kind == "top_k" and wanted.flags.get("needs_all_logits"):
            yield (
                f"objective.terms.{name} compares the logits of all tokens, but teacher_cache={chosen} keeps a few; "
                "choose teacher_cache=hidden, or a divergence of distributions, e.g. objective=word_kd"
            )
        elif node.kind == "top_k" and node.temperatures is not None:
            temperature = term.term.get("temperature", wanted.flags.get("temperature", 1.0))
            if temperature not in (1, *node.temperatures):
                known = ", ".join(f"{known:g}" for known in node.temperatures)
                yield (
                    f"objective.terms.{name} is at temperature {temperature:g}, but teacher_cache={chosen} knows the "
                    f"mass of the other tokens at {known} alone; add it to teacher_cache.temperatures, or choose "
                    "teacher_cache=hidden, exact at every temperature"
                )
    if node.kind == "top_k" and None in (node.top_k, node.temperatures):
        yield "teacher_cache.kind=top_k needs teacher_cache.top_k and .temperatures; choose teacher_cache=top_k"
    elif node.kind == "top_k" and cfg.data.tokenizer.path != ADOPT and node.top_k >= cfg.vocab_size:
        yield (
            f"teacher_cache.top_k={node.top_k} of a vocabulary of {cfg.vocab_size}, one of which is padding and no "
            f"token; write less than {cfg.vocab_size}, e.g. 8, or choose teacher_cache=hidden"
        )


def init(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of an init that starts from the teacher."""
    target = str(cfg.init._target_)
    if not targets.signature(target).takes("teacher"):
        return
    if "teacher" not in cfg.recipe.steps:
        yield (
            f"init={names.get('init', target)} starts the student from a teacher but "
            f"recipe={names.get('recipe', cfg.recipe._target_)} has none; choose init=random or e.g. recipe=word_kd"
        )
        return
    teacher = architecture(cfg)
    if teacher and not layer_rules.REQUIRED.issubset(teacher):
        return  # load_model says what is missing
    if target == LAYER_SKIP and teacher and str(cfg.student._target_).endswith(".TransformerConfig"):
        rules, student = (OmegaConf.to_container(node, resolve=True) for node in (cfg.init, cfg.student))
        assert isinstance(rules, dict) and isinstance(student, dict)
        if cfg.data.tokenizer.path == ADOPT:
            student |= {name: teacher[name] for name in SIZES}
        yield from layer_rules.problems(_named(rules), teacher, _named(student))


def architecture(cfg: DictConfig) -> dict[str, Any] | None:
    """The teacher's TransformerConfig where it is known before anything runs; of its vocabulary, what is read of it."""
    model = cfg.teacher.model
    if cfg.teacher.source == "train" and model is not None and str(model._target_).endswith(".TransformerConfig"):
        return _named(OmegaConf.to_container(model, resolve=True))
    if cfg.teacher.source == "folder" and cfg.teacher.path is not None:
        found = (config_of(cfg.teacher.path) or {}).get("architecture")
        card = _json(Path(cfg.teacher.path) / "tokenizer" / "tokenizer.json") or {}
        sizes = {name: card[name] for name in SIZES if name in card}  # the model may have more rows
        return {**found, **sizes} if found else found
    return None


def config_of(folder: str) -> dict[str, Any] | None:
    """What config.json of a model folder says; None where there is none to read."""
    return _json(Path(folder) / "config.json")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _named(plain: Any) -> dict[str, Any]:
    return {str(name): value for name, value in plain.items()}


def kd_terms(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The terms with a weight that compare with a teacher."""
    return (
        (str(n), term)
        for n, term in cfg.objective.terms.items()
        if term.weight > 0 and targets.needs_teacher(term.term._target_)
    )
