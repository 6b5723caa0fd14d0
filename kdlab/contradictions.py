"""Settings that each are fine and together are not: what to choose instead.

Each check names the groups that it reads, so that it is left out where one of them could not be composed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdlab import huggingface_checks, label_checks, logger_checks, targets, teacher_checks, term_checks
from kdlab.errors import UserError, did_you_mean

Check = Callable[[DictConfig, dict[str, str]], Iterator[str]]

# `${weight_kd}` and the like reach the terms; a dial that no term names would be set in vain.
OBJECTIVE_DIALS = ("weight_nll", "weight_pseudo", "weight_kd", "weight_cos", "temperature")
MIXING_DIALS = ("mix", "mix_by")
BASELINE_STEPS = ("baseline", "evaluate_baseline")
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my")  # languages in which BLEU's tok:13a finds one word a sentence


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
        if dial == "vocab_size" and cfg.data.tokenizer.path == teacher_checks.ADOPT:
            found.append(
                f"vocab_size={cfg[dial]} has no effect: data.tokenizer.path={teacher_checks.ADOPT} takes the teacher's "
                "vocabulary as large as it is; leave one of the two out"
            )
        if dial in MIXING_DIALS and "pseudo_label" not in cfg.recipe.steps:
            found.append(
                f"{dial}={cfg[dial]} has no effect: recipe={recipe} has no pseudo-labels to mix with; leave it out, "
                "or choose e.g. recipe=hybrid"
            )
    if cfg.teacher_cache.kind != "none" and not any(teacher_checks.kd_terms(cfg)):
        cache = choices.get("teacher_cache", cfg.teacher_cache.kind)
        found.append(
            f"teacher_cache={cache} has no effect: no term of objective={objective} that has a weight compares with a "
            "teacher; leave it out, or choose e.g. objective=hybrid"
        )
    return found


def _teacher(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    source, recipe = cfg.teacher.source, names.get("recipe", cfg.recipe._target_)
    objective = names.get("objective", "this one")
    kd = any(teacher_checks.kd_terms(cfg))
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


def _terms(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if not any(term.weight > 0 for term in cfg.objective.terms.values()):
        yield "no term of the objective has a weight > 0, so there is nothing to train on; set e.g. weight_nll=1"
    looks_at = {term.on for term in cfg.objective.terms.values() if term.weight > 0}
    if cfg.mix > 0 and looks_at == {"pseudo"} and "pseudo_label" in cfg.recipe.steps:
        objective = names.get("objective", "this one")
        yield f"mix={cfg.mix} draws gold rows but objective={objective} has no term on them; write mix=0"
    for name, term in cfg.baseline_objective.terms.items():
        if _has_baseline(cfg) and (term.on == "pseudo" or targets.needs_teacher(term.term._target_)):
            yield (
                f"baseline_objective.terms.{name} needs a teacher, but the baseline has none; "
                "choose objective@baseline_objective=nll"
            )


def _until(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    cached = ("cache_teacher",) if cfg.teacher_cache.kind != "none" and any(teacher_checks.kd_terms(cfg)) else ()
    members = label_checks.members(cfg) + label_checks.reverse(cfg)
    steps = [
        *cfg.recipe.steps,
        *members,
        *(("pretrain",) if cfg.pretrain_steps else ()),
        *cached,
        *label_checks.later_rounds(cfg, cached),
        *(BASELINE_STEPS if _has_baseline(cfg) else ()),
        "report",
    ]
    if cfg.until is not None and cfg.until not in steps:
        recipe = names.get("recipe", cfg.recipe._target_)
        nearest = did_you_mean(cfg.until, steps) or f"; choose one of {', '.join(steps)}"
        yield f"until={cfg.until} is no step of recipe={recipe}{nearest}"


def _devices(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if cfg.trainer.teacher_precision == "int8" and cfg.trainer.device != "cpu":
        yield (
            f"trainer.teacher_precision=int8 but trainer.device={cfg.trainer.device}: int8 teachers are for CPUs, "
            "where they are faster than bf16; write trainer.teacher_precision=bf16 or trainer.device=cpu"
        )
    for group in ("decode", "label_decode"):
        ours = cfg[group].get("engine", "pytorch") == "pytorch"
        if ours and cfg[group].precision == "int8" and cfg.trainer.device != "cpu":
            yield (
                f"{group}.precision=int8 but trainer.device={cfg.trainer.device}: int8 layers are for CPUs; write "
                f"{group}.precision=bf16 or trainer.device=cpu"
            )


def _strategy(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    strategy = cfg.strategy
    devices, replicas, place = strategy.get("devices"), strategy.get("replicas", 1), strategy.get("teacher")
    if devices is not None and replicas > 0 and devices % replicas:  # 0 is out of its range, and told as such
        yield (
            f"strategy.replicas={replicas} but strategy.devices={devices}: each group of devices must hold all parts, "
            f"so groups are of one size; choose a divisor of {devices}"
        )
    if devices is None and place == "sharded":
        yield (
            "strategy.teacher=sharded but strategy=single: there is no other process to keep a part; write "
            "strategy.teacher=offloaded, or choose e.g. strategy=zero3"
        )
    if place != "replicated" and (cfg.teacher_cache.kind != "none" or not any(teacher_checks.kd_terms(cfg))):
        yield (
            f"strategy.teacher={place} has no effect: no teacher stands beside the student, for no term compares with "
            "one, or a teacher cache has taken its place; leave it out"
        )
    if place != "replicated" and cfg.trainer.teacher_precision == "int8":
        yield (
            f"strategy.teacher={place} but trainer.teacher_precision=int8: int8 layers can be neither sharded nor sent "
            "to a GPU; write trainer.teacher_precision=bf16 or strategy.teacher=replicated"
        )
    if strategy.get("gather") == "bf16" and cfg.trainer.precision == "fp32":
        yield (
            "strategy.gather=bf16 but trainer.precision=fp32: layers would compute in bf16, and a strategy may not "
            "choose the precision of a result; write trainer.precision=bf16 or strategy.gather=fp32"
        )


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


def _tests(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    known = list(cfg.data.tests)
    for test in cfg.evaluate.tests or ():
        if test not in known:
            nearest = did_you_mean(test, known)
            yield f"evaluate.tests names '{test}', which data.tests does not have{nearest or f'; it has {known}'}"


def _chosen_by_bleu(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    if cfg.data.tgt_lang not in WITHOUT_SPACES:
        return
    for path, value, instead in (
        ("trainer.select", cfg.trainer.select, "loss"),
        ("labels.choose", cfg.labels.choose, "chrf"),
    ):
        if value == "bleu":
            yield (
                f"{path}=bleu but data.tgt_lang={cfg.data.tgt_lang}: BLEU counts words between spaces (tok:13a), and a "
                f"sentence without any is one word, right or wrong, so the choice would be arbitrary; write "
                f"{path}={instead}, and evaluate.metrics=[chrf] for the scores"
            )


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


def _time(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    limit_s = 60 * cfg.cluster.time_min
    if cfg.cluster.signal_s > limit_s / 2:
        yield (
            f"cluster.signal_s={cfg.cluster.signal_s} but cluster.time_min={cfg.cluster.time_min} is {limit_s} s: a "
            "task is told to save so long before its end, and would hardly have begun; write at most "
            f"cluster.signal_s={limit_s // 2}, or a longer time"
        )


CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("recipe", "objective", "teacher"), _teacher),
    (("teacher", "objective"), teacher_checks.folder),
    (("teacher", "objective", "data"), teacher_checks.marian),
    (("teacher",), huggingface_checks.unread),
    (("teacher",), huggingface_checks.place),
    (("teacher", "objective", "init"), huggingface_checks.only_labels),
    (("teacher", "decode", "label_decode"), huggingface_checks.decoding),
    (("teacher", "recipe", "data"), teacher_checks.adopted_vocabulary),
    (("recipe", "objective", "objective@baseline_objective"), _terms),
    (("teacher_cache", "objective", "data"), teacher_checks.cache),
    (("objective", "objective@baseline_objective"), term_checks.one_term),
    (("objective", "student", "teacher"), term_checks.hidden_states),
    (("recipe",), _until),
    (("trainer", "decode", "label_decode"), _devices),
    (("recipe", "teacher", "label_decode"), label_checks.how_labels_are_made),
    (("recipe", "teacher_cache", "objective", "label_decode", "labels"), label_checks.how_labels_are_chosen),
    (("strategy", "trainer"), _strategy),
    (("student", "teacher", "data"), _models),
    (("init", "recipe", "student", "teacher"), teacher_checks.init),
    (("data", "evaluate"), _tests),
    (("data", "trainer", "labels"), _chosen_by_bleu),
    (("data",), _data),
    (("data", "recipe", "teacher"), label_checks.source_only),
    (("data", "recipe", "student", "objective"), label_checks.tag),
    (("source_noise", "objective"), label_checks.noise),
    (("recipe", "objective", "init"), label_checks.rounds),
    (("cluster",), _time),
    (("logger",), logger_checks.packages),
    (("logger",), logger_checks.tags),
    ((), logger_checks.secrets),
)
