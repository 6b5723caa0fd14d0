"""Settings that each are fine and together are not: what to choose instead.

Each check names the groups that it reads, so that it is left out where one of them could not be composed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdlab import targets
from kdlab.errors import UserError, did_you_mean
from kdlab.models import layer_rules

Check = Callable[[DictConfig, dict[str, str]], Iterator[str]]

# `${weight_kd}` and the like reach the terms; a dial that no term names would be set in vain.
OBJECTIVE_DIALS = ("weight_nll", "weight_pseudo", "weight_kd", "temperature")
MIXING_DIALS = ("mix", "mix_by")
LAYER_SKIP = "kdlab.models.layer_skip.layer_skip"
BASELINE_STEPS = ("baseline", "evaluate_baseline")
BROUGHT = ("folder", "marian")  # values of teacher.source
ADOPT = "teacher"  # of data.tokenizer.path: corpus and student take the teacher's vocabulary


def contradictions(
    cfg: DictConfig, *, choices: dict[str, str] | None = None, doubtful: Collection[str] = (), tolerant: bool = False
) -> list[str]:
    """The problems between keys.

    Args:
        choices: the option of each group, to name it in the message.
        doubtful: groups whose choice failed, so that what stands there is not what the user meant.
        tolerant: other problems are known; a check that stumbles over one of them says nothing.
    """
    names = choices or {}
    found: list[str] = []
    for groups, check in CHECKS:
        if set(groups) & set(doubtful):
            continue
        try:
            found += check(cfg, names)
        except (OmegaConfBaseException, UserError, AttributeError, KeyError, TypeError, ValueError):
            if not tolerant:
                raise
    return found


def without_effect(cfg: DictConfig, dials: Collection[str], choices: dict[str, str]) -> list[str]:
    """Of the dials that the user turned, those that nothing listens to; `cfg` unresolved."""
    objectives = json.dumps([OmegaConf.to_container(cfg.objective), OmegaConf.to_container(cfg.baseline_objective)])
    objective, recipe = choices.get("objective", "this one"), choices.get("recipe", "this one")
    found = []
    for dial in dials:
        if dial in OBJECTIVE_DIALS and f"${{{dial}}}" not in objectives:
            found.append(
                f"{dial}={cfg[dial]} has no effect: no term of objective={objective} uses it; leave it out, "
                "or choose e.g. objective=hybrid"
            )
        if dial == "vocab_size" and cfg.data.tokenizer.path == ADOPT:
            found.append(
                f"vocab_size={cfg[dial]} has no effect: data.tokenizer.path={ADOPT} takes the teacher's vocabulary as "
                "large as it is; leave one of the two out"
            )
        if dial in MIXING_DIALS and "pseudo_label" not in cfg.recipe.steps:
            found.append(
                f"{dial}={cfg[dial]} has no effect: recipe={recipe} has no pseudo-labels to mix with; leave it out, "
                "or choose e.g. recipe=hybrid"
            )
    if cfg.teacher_cache.kind != "none" and not any(_kd_terms(cfg)):
        cache = choices.get("teacher_cache", cfg.teacher_cache.kind)
        found.append(
            f"teacher_cache={cache} has no effect: no term of objective={objective} that has a weight compares with a "
            "teacher; leave it out, or choose e.g. objective=hybrid"
        )
    return found


def _teacher(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    source, recipe = cfg.teacher.source, names.get("recipe", cfg.recipe._target_)
    objective = names.get("objective", "this one")
    kd = any(_kd_terms(cfg))
    pseudo = [name for name, term in cfg.objective.terms.items() if term.weight > 0 and term.on == "pseudo"]
    on_labels = any(term.weight > 0 and term.on != "gold" for term in cfg.objective.terms.values())
    makes_labels = "pseudo_label" in cfg.recipe.steps
    if source == "none" and kd:
        yield "objective has a kd term but teacher=none; choose e.g. teacher=wide_24x6"
    elif source == "none" and "teacher" in cfg.recipe.steps:
        yield f"recipe={recipe} learns from a teacher but teacher=none; choose teacher=toy_2x2 or recipe=train_only"
    elif kd and "teacher" not in cfg.recipe.steps:
        yield f"objective={objective} has a kd term but recipe={recipe} has no teacher; choose e.g. recipe=word_kd"
    elif pseudo and not makes_labels:
        yield (
            f"objective={objective} has a term on pseudo-labels ({', '.join(pseudo)}) but recipe={recipe} makes none; "
            "choose recipe=seq_kd or recipe=hybrid"
        )
    elif makes_labels and not on_labels:
        yield (
            f"recipe={recipe} makes pseudo-labels but objective={objective} has no term on them; "
            "choose e.g. objective=hybrid or recipe=word_kd"
        )
    elif "teacher" in cfg.recipe.steps and not kd and not makes_labels:
        yield f"recipe={recipe} has a teacher but objective={objective} has no kd term; choose e.g. objective=word_kd"
    if source == "train" and None in (cfg.teacher.model, cfg.teacher.optim, cfg.teacher.max_steps, cfg.teacher.seed):
        yield "teacher.source=train needs teacher.model, .optim, .max_steps and .seed; choose e.g. teacher=toy_2x2"


def _teacher_folder(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if cfg.teacher.source != "folder":
        if cfg.teacher.path is not None and cfg.teacher.source not in BROUGHT:
            yield f"teacher.path={cfg.teacher.path} has no effect: only teacher=folder reads it; choose teacher=folder"
        return
    if cfg.teacher.path is None:
        yield "teacher=folder has no path to take the model from; write teacher.path=<folder of a kdlab model>"
        return
    try:
        config = json.loads((Path(cfg.teacher.path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        yield (
            f"teacher.path={cfg.teacher.path} holds no readable config.json, so it is no kdlab model; "
            "write the folder of one (it has weights.safetensors and config.json)"
        )
        return
    if config.get("model_type") == "marian":
        yield f"teacher.path={cfg.teacher.path} is a Hugging Face model and no kdlab one; choose teacher=marian"
        return
    theirs, kd = config.get("architecture", {}).get("tgt_vocab_size"), any(_kd_terms(cfg))
    if kd and theirs is not None and theirs != cfg.vocab_size and cfg.data.tokenizer.path is None:
        yield (
            f"the teacher in {cfg.teacher.path} has a vocabulary of {theirs}, the student {cfg.vocab_size}, "
            f"but a kd term compares token by token; write data.tokenizer.path={ADOPT}, which adopts the teacher's, or "
            "recipe=seq_kd, which needs no common vocabulary"
        )


def _teacher_marian(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    path, revision = cfg.teacher.path, cfg.teacher.get("revision")
    is_folder = path is not None and Path(path).is_dir()
    if revision is not None and (cfg.teacher.source != "marian" or is_folder):
        yield f"teacher.revision={revision} has no effect: only a name on the hub has revisions; leave it out"
    if cfg.teacher.source != "marian":
        return
    if path is None:
        yield "teacher=marian has no path to take the model from; write teacher.path=<its folder, or a name on the hub>"
        return
    if is_folder:
        try:
            config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = None
        found = config.get("model_type") if isinstance(config, dict) else None
        if found != "marian":
            yield (
                f"teacher.path={path} has a config.json with model_type {found!r}, so it is no Hugging Face Marian "
                "model; write the folder of one, or choose teacher=folder for a kdlab model"
            )
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        yield f"teacher.path={path} is no folder, and no name on the hub either; write e.g. Helsinki-NLP/opus-mt-de-en"
    elif not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        yield (
            f"teacher.path={path} is no folder, and as a name on the hub it needs teacher.revision=<commit>, got "
            f"{revision}: what a name or a branch stands for changes, and results are known by their inputs; write the "
            "40 hex digits that the hub shows under 'Files and versions'"
        )
    if cfg.data.tokenizer.path is None and any(_kd_terms(cfg)):
        yield (
            "a Marian teacher has a vocabulary of its own, but a kd term compares token by token; write "
            f"data.tokenizer.path={ADOPT}, which adopts it, or recipe=seq_kd, which needs no common vocabulary"
        )


def _adopted_vocabulary(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if cfg.data.tokenizer.path != ADOPT:
        return
    if "teacher" not in cfg.recipe.steps:
        yield (
            f"data.tokenizer.path={ADOPT} takes the teacher's vocabulary, but recipe="
            f"{names.get('recipe', cfg.recipe._target_)} has no teacher; write the path of a folder with a tokenizer"
        )
    elif cfg.teacher.source not in BROUGHT:
        yield (
            f"data.tokenizer.path={ADOPT} takes the teacher's vocabulary, but one trained here takes the corpus's;"
            " leave it out, or choose teacher=folder or teacher=marian"
        )


def _teacher_cache(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    node, cache = cfg.teacher_cache, names.get("teacher_cache", cfg.teacher_cache.kind)
    unread = {"none": ("dtype", "top_k", "temperatures"), "hidden": ("top_k", "temperatures"), "top_k": ()}
    for key in unread[node.kind]:
        if node[key] is not None:
            yield (
                f"teacher_cache.{key}={node[key]} has no effect: teacher_cache={cache} does not read it; leave it out, "
                "or choose teacher_cache=top_k"
            )
    if node.kind == "none":
        return
    for name, term in _kd_terms(cfg):
        wanted = targets.signature(term.term._target_)
        if wanted.takes("stack"):
            yield (
                f"objective.terms.{name} compares hidden states of layers, which teacher_cache={cache} does not keep; "
                f"choose teacher_cache=none, or take the term out: objective.terms.{name}.weight=0"
            )
        elif wanted.flags.get("counts_padding"):
            yield (
                f"objective.terms.{name} looks at padding, where teacher_cache={cache} has nothing; "
                "choose teacher_cache=none"
            )
        elif node.kind == "top_k" and node.temperatures is not None:
            temperature = term.term.get("temperature", wanted.flags.get("temperature", 1.0))
            if temperature not in (1, *node.temperatures):
                known = ", ".join(f"{known:g}" for known in node.temperatures)
                yield (
                    f"objective.terms.{name} is at temperature {temperature:g}, but teacher_cache={cache} knows the "
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


def _terms(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if not any(term.weight > 0 for term in cfg.objective.terms.values()):
        yield "no term of the objective has a weight > 0, so there is nothing to train on; set e.g. weight_nll=1"
    looks_at = {term.on for term in cfg.objective.terms.values() if term.weight > 0}
    if cfg.mix > 0 and looks_at == {"pseudo"} and "pseudo_label" in cfg.recipe.steps:
        objective = names.get("objective", "this one")
        yield f"mix={cfg.mix} draws gold rows but objective={objective} has no term on them; write mix=0"
    for name, term in cfg.baseline_objective.terms.items():
        if _has_baseline(cfg) and (term.on == "pseudo" or _needs_teacher(term)):
            yield (
                f"baseline_objective.terms.{name} needs a teacher, but the baseline has none; "
                "choose objective@baseline_objective=nll"
            )


def _until(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    cached = ("cache_teacher",) if cfg.teacher_cache.kind != "none" and any(_kd_terms(cfg)) else ()
    steps = [*cfg.recipe.steps, *cached, *(BASELINE_STEPS if _has_baseline(cfg) else ()), "report"]
    if cfg.until is not None and cfg.until not in steps:
        recipe = names.get("recipe", cfg.recipe._target_)
        nearest = did_you_mean(cfg.until, steps) or f"; choose one of {', '.join(steps)}"
        yield f"until={cfg.until} is no step of recipe={recipe}{nearest}"


def _models(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    for path, model in (("student", cfg.student), ("teacher.model", cfg.teacher.model)):
        if model is None or not str(model._target_).endswith(".TransformerConfig"):
            continue
        if model.d_model > 0 and model.num_heads > 0 and (model.d_model % model.num_heads or model.d_model % 2):
            yield (
                f"{path}.d_model={model.d_model} does not split evenly over {path}.num_heads={model.num_heads}; "
                f"choose an even multiple of {model.num_heads}"
            )
        joint = cfg.data.tokenizer.joint or cfg.data.tokenizer.path is not None  # of a given one its files tell
        if model.get("tie", "all") == "all" and not joint:
            yield (
                f"{path}.tie=all shares one matrix between both languages but data.tokenizer.joint=false; "
                f"choose {path}.tie=decoder_softmax or data.tokenizer.joint=true"
            )
        sizes = model.src_vocab_size, model.tgt_vocab_size
        if sizes != (cfg.data.tokenizer.vocab_size, cfg.data.tokenizer.vocab_size):
            yield (
                f"{path} has vocabularies of {sizes[0]} and {sizes[1]} but data.tokenizer.vocab_size="
                f"{cfg.data.tokenizer.vocab_size}; leave both at ${{vocab_size}} and set vocab_size"
            )
        longest = cfg.data.cleaning.max_tokens
        if longest is not None and longest > model.get("max_positions", 1024):
            yield (
                f"data.cleaning.max_tokens={longest} is more than {path}.max_positions={model.max_positions}, "
                "so long sentences have no position; lower the first or raise the second"
            )


def _init(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    target = str(cfg.init._target_)
    if not targets.signature(target).takes("teacher"):
        return
    if "teacher" not in cfg.recipe.steps:
        yield (
            f"init={names.get('init', target)} starts the student from a teacher but "
            f"recipe={names.get('recipe', cfg.recipe._target_)} has none; choose init=random or e.g. recipe=word_kd"
        )
        return
    teacher = _teacher_architecture(cfg)
    if target == LAYER_SKIP and teacher and str(cfg.student._target_).endswith(".TransformerConfig"):
        rules, student = (OmegaConf.to_container(node, resolve=True) for node in (cfg.init, cfg.student))
        assert isinstance(rules, dict) and isinstance(student, dict)
        yield from layer_rules.problems(_named(rules), teacher, _named(student))


def _teacher_architecture(cfg: DictConfig) -> dict[str, Any] | None:
    """The teacher's TransformerConfig where it is known before anything runs."""
    model = cfg.teacher.model
    if cfg.teacher.source == "train" and model is not None and str(model._target_).endswith(".TransformerConfig"):
        return _named(OmegaConf.to_container(model, resolve=True))
    if cfg.teacher.source == "folder" and cfg.teacher.path is not None:
        try:
            config = json.loads((Path(cfg.teacher.path) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # _teacher_folder says so
        architecture = config.get("architecture", {})
        return architecture if layer_rules.REQUIRED.issubset(architecture) else None  # load_model says what is missing
    return None


def _named(plain: Any) -> dict[str, Any]:
    return {str(name): value for name, value in plain.items()}


def _tests(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    known = list(cfg.data.tests)
    for test in cfg.evaluate.tests or ():
        if test not in known:
            nearest = did_you_mean(test, known)
            yield f"evaluate.tests names '{test}', which data.tests does not have{nearest or f'; it has {known}'}"


def _data(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    option, root = names.get("data", cfg.data.name), cfg.data.root
    raw = json.dumps(OmegaConf.to_container(cfg.data))
    expected = [part.partition('"')[0] for part in raw.split('"${data.root}/')[1:]]
    if expected and (root is None or not Path(root).is_dir()):
        problem = "has no data.root" if root is None else f"looks in data.root={root}, which is no folder"
        yield f"data={option} {problem}; write data.root=<folder with {', '.join(dict.fromkeys(expected))}>"
        return
    if root is not None and not expected and f'"{root}/' not in raw:  # resolved, no reference is left
        yield (
            f"data.root={root} has no effect: data={option} reads nothing below it; "
            "leave it out, or choose data=files for your own"
        )
    for path, node in targets.nodes(cfg.data):
        if OmegaConf.missing_keys(node) or any(targets.node_problems(path, node)):
            continue  # reported as such
        plain = OmegaConf.to_container(node, resolve=True)
        assert isinstance(plain, dict)
        for problem in targets.build(plain).check():
            yield f"data.{path}: {problem}"


def _has_baseline(cfg: DictConfig) -> bool:
    return bool(cfg.baseline) and "teacher" in cfg.recipe.steps  # without a teacher the student is its own baseline


def _kd_terms(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The terms with a weight that compare with a teacher."""
    return ((str(n), term) for n, term in cfg.objective.terms.items() if term.weight > 0 and _needs_teacher(term))


def _needs_teacher(term: DictConfig) -> bool:
    return bool(targets.signature(term.term._target_).flags.get("needs_teacher", True))


CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("recipe", "objective", "teacher"), _teacher),
    (("teacher", "objective"), _teacher_folder),
    (("teacher", "objective", "data"), _teacher_marian),
    (("teacher", "recipe", "data"), _adopted_vocabulary),
    (("recipe", "objective", "objective@baseline_objective"), _terms),
    (("teacher_cache", "objective", "data"), _teacher_cache),
    (("recipe", "teacher_cache", "objective"), _until),
    (("student", "teacher", "data"), _models),
    (("init", "recipe", "student", "teacher"), _init),
    (("data", "evaluate"), _tests),
    (("data",), _data),
)
